"""A trace: a CSV file of what real clients, or real devices, were measured to do.

Its first line names the columns, each once and in any order: `client`, an identity such as "client-0007"; `seconds_per_example`;
`bytes_per_second`; and, together, `from_seconds` and `until_seconds`, a period of presence. A client has one row for each of its periods,
earlier ones first. What its rows say beside that must agree, and may be left empty in some of them or in all.
"""

import csv
from array import array
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from client.data.fields import reason, shown
from simulation.errors import SimulationError
from wire.realism import LEAST, MOST

PERIOD = ("from_seconds", "until_seconds")
COLUMNS = ("client", "seconds_per_example", "bytes_per_second", *PERIOD)


@dataclass(frozen=True, slots=True)
class Device:
    """What a trace says of one client, or of one device that clients may have.

    Attributes:
        seconds_per_example: Time of a training example; None where the trace does not tell.
        bytes_per_second: Rate of its link; None where the trace does not tell.
        edges: When it comes and goes, in turn, ascending, seconds, (2 * periods,). Periods that touch are one.
    """

    seconds_per_example: float | None
    bytes_per_second: float | None
    edges: "array[float]"


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace that was read.

    Attributes:
        clients: The devices of named clients; empty if the trace names none.
        devices: The rows of a trace that names no clients.
        has_periods: Whether it says when clients are present.
    """

    clients: Mapping[str, Device]
    devices: Sequence[Device]
    has_periods: bool


def read_trace(path: Path, end_seconds: float = MOST) -> Trace:
    """Read a trace.

    Args:
        path: The CSV file, in UTF-8.
        end_seconds: Latest end of a period.

    Raises:
        SimulationError: The file cannot be read, or a column or row breaks a rule; its line is named. Nothing was changed.
    """
    clients: dict[str, Device] = {}
    devices: list[Device] = []
    with closing(_records(path)) as records:
        columns = _columns(path, next(records, ("", []))[1])
        for subject, values in records:
            row = _Row(subject, columns, values)
            if "client" in columns:
                _add(row, clients, end_seconds)
            else:
                devices.append(row.device())
    if not clients and not devices:
        raise SimulationError(f"Trace {path}: file must have a row below its columns, got none. Add clients.")
    return Trace(clients, devices, PERIOD[0] in columns)


class _Row:
    """One row, with what errors call it."""

    def __init__(self, subject: str, columns: Sequence[str], values: Sequence[str]) -> None:
        if len(values) != len(columns):
            raise SimulationError(
                f"{subject}: row must have {len(columns)} values, got {len(values)}. Mend or drop the line."
            )
        self._subject = subject
        self.cells = dict(zip(columns, values, strict=True))

    def refusal(self, column: str, rule: str) -> SimulationError:
        found = shown(self.cells[column])
        return SimulationError(f"{self._subject}: {column} must {rule}, got {found}. Mend or drop the line.")

    def number(self, column: str, least: float, most: float = MOST) -> float | None:
        """Return the value in a column, or None where there is none."""
        if not (text := self.cells.get(column, "")):
            return None
        try:
            number = float(text)
        except ValueError:
            raise self.refusal(column, "be a number") from None
        if not least <= number <= most:
            raise self.refusal(column, f"be from {least:.15g} to {most:.15g}")
        return number

    def device(self) -> Device:
        """Return what the row says, apart from its period."""
        return Device(self.number("seconds_per_example", 0.0), self.number("bytes_per_second", LEAST), array("d"))


def _records(path: Path) -> Generator[tuple[str, list[str]], None, None]:
    """Yield the values of each line that has any, with what errors call it."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, skipinitialspace=True, strict=True)
            try:
                for values in reader:
                    if values:
                        yield f"Trace {path}, line {reader.line_num}", [value.strip() for value in values]
            except csv.Error as error:
                raise SimulationError(
                    f"Trace {path}, line {reader.line_num}: line must be CSV, got {reason(error)}. Mend or drop it."
                ) from error
    except OSError as error:
        raise SimulationError(
            f"Trace {path}: file must be there to be read, got {reason(error)}. A path counts from the working directory, {Path.cwd()}."
        ) from error
    except ValueError as error:
        raise SimulationError(f"Trace {path}: file must be text in UTF-8, got {reason(error)}. Check it.") from error


def _columns(path: Path, names: Sequence[str]) -> Sequence[str]:
    """Return the columns that the first line names, after a check."""
    for name in names:
        if name not in COLUMNS:
            raise SimulationError(
                f"Trace {path}: columns must be of {', '.join(COLUMNS)}, got {shown(name)}. Rename or drop it."
            )
        if names.count(name) > 1:
            raise SimulationError(f"Trace {path}: columns must have different names, got {name} twice. Drop one.")
    if not set(names) - {"client"}:
        found = ", ".join(names) or "none"
        raise SimulationError(f"Trace {path}: columns must tell something of clients, got {found}. Add some.")
    if (PERIOD[0] in names) != (PERIOD[1] in names) or (PERIOD[0] in names and "client" not in names):
        raise SimulationError(
            f"Trace {path}: columns of periods must be client, from_seconds and until_seconds, got {', '.join(names)}. "
            "Add what is missing."
        )
    return names


def _add(row: _Row, clients: dict[str, Device], end_seconds: float) -> None:
    """Take up one row of a trace that names clients."""
    if not (name := row.cells["client"]):
        raise row.refusal("client", "be given")
    found = row.device()
    known = clients.get(name, found)
    device = clients[name] = Device(
        _agreed(row, "seconds_per_example", known.seconds_per_example, found.seconds_per_example),
        _agreed(row, "bytes_per_second", known.bytes_per_second, found.bytes_per_second),
        known.edges,
    )
    if PERIOD[0] in row.cells:
        _add_period(row, device.edges, end_seconds)


def _agreed(row: _Row, column: str, known: float | None, found: float | None) -> float | None:
    if known is None or found is None:
        return found if known is None else known
    if known != found:
        raise row.refusal(column, f"be {known:.15g} as in the client's rows before, or be left empty")
    return known


def _add_period(row: _Row, edges: "array[float]", end_seconds: float) -> None:
    start, end = row.number(PERIOD[0], 0.0), row.number(PERIOD[1], 0.0, end_seconds)
    if start is None:
        raise row.refusal(PERIOD[0], "be given")
    if end is None:
        raise row.refusal(PERIOD[1], "be given")
    if start >= end:
        raise row.refusal(PERIOD[1], f"be above from_seconds, {start:.15g}")
    if edges and start < edges[-1]:
        raise row.refusal(PERIOD[0], f"be at least {edges[-1]:.15g}, where the client's period before ends")
    if edges and start == edges[-1]:
        edges[-1] = end
    else:
        edges.extend((start, end))
