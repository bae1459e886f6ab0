"""What is measured of one session of secure aggregation, Choral's or a peer's.

Nothing but the standard library is needed here, so that an environment in which Choral is not installed can import this module too.
"""

import json
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from time import process_time
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Case:
    """One session: clients, coordinates of their vectors, and how many clients share their secrets and then never upload."""

    client_count: int
    parameter_count: int
    gone_count: int

    @property
    def vector_bytes(self) -> int:
        """Size of one vector without its head, 4 bytes a parameter."""
        return 4 * self.parameter_count

    @property
    def client_streams(self) -> int:
        """Masks of one client: its own and one with each other. Those who are gone later had shared."""
        return self.client_count

    @property
    def coordinator_streams(self) -> int:
        """Masks that the coordinator takes off: each survivor's own, and those between the survivors and each of the others."""
        survivors = self.client_count - self.gone_count
        return survivors + self.gone_count * survivors


@dataclass(frozen=True, slots=True)
class SessionResult:
    """What was measured of a session. Seconds are of CPU time, by stage.

    Attributes:
        client_seconds: Of one client: the median over the clients, stage by stage.
        coordinator_seconds: Of the coordinator, for all clients.
        sent_bytes: What one client sends, the median over the clients.
        received_bytes: What one client receives beside the model, likewise.
        peak_bytes: Peak resident memory of the coordinator's process over that before the session; None if it had none of its own.
    """

    client_seconds: Mapping[str, float]
    coordinator_seconds: Mapping[str, float]
    sent_bytes: int
    received_bytes: int
    peak_bytes: int | None = None

    @property
    def client_total(self) -> float:
        """CPU seconds of one client."""
        return sum(self.client_seconds.values())

    @property
    def coordinator_total(self) -> float:
        """CPU seconds of the coordinator."""
        return sum(self.coordinator_seconds.values())

    @property
    def json(self) -> str:
        """The result on one line."""
        return json.dumps(asdict(self))


@dataclass(slots=True)
class Stopwatch:
    """CPU seconds of this process, all its threads included, by what they were spent on."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def time(
        self, stage: str, call: Callable[Arguments, Value], *arguments: Arguments.args, **names: Arguments.kwargs
    ) -> Value:
        """Call, note how long it took, and return what it returned."""
        started = process_time()
        value = call(*arguments, **names)
        self.seconds.setdefault(stage, []).append(process_time() - started)
        return value

    @property
    def medians(self) -> dict[str, float]:
        """The median of each stage."""
        return {stage: statistics.median(values) for stage, values in self.seconds.items()}

    @property
    def totals(self) -> dict[str, float]:
        """The sum of each stage."""
        return {stage: sum(values) for stage, values in self.seconds.items()}


def median_result(results: Iterable[SessionResult]) -> SessionResult:
    """Return the median of each figure over repeats of one case, one or more; what was not measured stays None."""
    repeats = list(results)
    peaks = [result.peak_bytes for result in repeats if result.peak_bytes is not None]
    return SessionResult(
        _medians([result.client_seconds for result in repeats]),
        _medians([result.coordinator_seconds for result in repeats]),
        round(statistics.median(result.sent_bytes for result in repeats)),
        round(statistics.median(result.received_bytes for result in repeats)),
        round(statistics.median(peaks)) if peaks else None,
    )


def _medians(repeats: list[Mapping[str, float]]) -> dict[str, float]:
    return {stage: statistics.median(seconds[stage] for seconds in repeats) for stage in repeats[0]}
