"""The figures of `benchmarks.viewers`: from what was measured to the tables and the JSON."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table

MOST_RATIO = 1.10
MOST_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Stretch:
    """Some seconds of a run.

    Attributes:
        began, ended: UTC seconds since the epoch.
        cpu_seconds: What the coordinator's process took of the cores.
    """

    began: float
    ended: float
    cpu_seconds: float

    def rounds(self, ends: Sequence[float]) -> list[float]:
        """Return when its rounds ended."""
        return [end for end in ends if self.began <= end < self.ended]


@dataclass(frozen=True, slots=True)
class Asked:
    """What came of asking the REST API for some seconds.

    Attributes:
        answers: The path of each answer, and its seconds from when it should have been asked for.
        late: Seconds from when each should have been asked for until it was.
    """

    answers: Sequence[tuple[str, float]]
    late: Sequence[float]


@dataclass(frozen=True, slots=True)
class Result:
    """Everything that was measured.

    Attributes:
        pairs: Stretches without and with viewers.
        asked_stretches: Those in which the REST API was asked.
        asked: What it answered.
        ends: When each round of the run ended, in order.
        stall_seconds: Longest time that the event loop was busy with one thing, from its start until the API was asked.
    """

    pairs: Sequence[tuple[Stretch, Stretch]]
    asked_stretches: Sequence[Stretch]
    asked: Sequence[Asked]
    ends: Sequence[float]
    stall_seconds: float


@dataclass(frozen=True, slots=True)
class Cost:
    """What a round took in a stretch: seconds from one end to the next, and seconds of the cores, each the mean."""

    seconds: float
    cpu_seconds: float


def costs(ends: Sequence[float], *stretches: Stretch) -> tuple[Cost, ...]:
    """Return what a round took in each stretch; nothing where one of them has not two rounds, from whose ends to tell it."""
    found = [stretch.rounds(ends) for stretch in stretches]
    if min(map(len, found)) < 2:
        return ()
    return tuple(
        Cost((rounds[-1] - rounds[0]) / (len(rounds) - 1), stretch.cpu_seconds / len(rounds))
        for rounds, stretch in zip(found, stretches, strict=True)
    )


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the least value that so many percent do not exceed."""
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


def samples(result: Result) -> dict[str, list[float]]:
    """Return, by the name of a figure, the values that it is the median of."""
    pairs = [pair for stretches in result.pairs if (pair := costs(result.ends, *stretches))]
    asked = [one for stretch in result.asked_stretches for one in costs(result.ends, stretch)]
    answers = [[seconds for _, seconds in one.answers] for one in result.asked]
    return {
        "round_seconds": [quiet.seconds for quiet, _ in pairs],
        "viewed_round_seconds": [viewed.seconds for _, viewed in pairs],
        "viewed_over_quiet": [viewed.seconds / quiet.seconds for quiet, viewed in pairs],
        "round_cpu_seconds": [quiet.cpu_seconds for quiet, _ in pairs],
        "viewed_round_cpu_seconds": [viewed.cpu_seconds for _, viewed in pairs],
        "viewed_over_quiet_cpu": [viewed.cpu_seconds / quiet.cpu_seconds for quiet, viewed in pairs],
        "asked_round_seconds": [one.seconds for one in asked],
        "rest_p50_seconds": [statistics.median(one) for one in answers],
        "rest_p99_seconds": [percentile(one, 99) for one in answers],
        "late_p99_seconds": [percentile(one.late, 99) for one in result.asked],
        "loop_stall_seconds": [result.stall_seconds],
    }


def figures(result: Result) -> dict[str, float | None]:
    """Return what `--json` writes, by name."""
    return {name: statistics.median(values) if values else None for name, values in samples(result).items()}


def tables(result: Result, viewer_count: int, rate: float) -> Iterator[Table]:
    """Yield what is shown."""
    rows: dict[str, tuple[str, float | None]] = {
        "round_seconds": ("round", None),
        "viewed_round_seconds": (f"round with {viewer_count} viewers", None),
        "viewed_over_quiet": ("  over a round", MOST_RATIO),
        "round_cpu_seconds": ("coordinator's cores, of a round", None),
        "viewed_round_cpu_seconds": (f"coordinator's cores, with {viewer_count} viewers", None),
        "viewed_over_quiet_cpu": ("  over a round", None),
        "asked_round_seconds": (f"round at {rate:g} requests/s", None),
        "rest_p50_seconds": ("REST, p50", None),
        "rest_p99_seconds": ("REST, p99", MOST_SECONDS),
        "late_p99_seconds": ("  asked late, p99", None),
        "loop_stall_seconds": ("event loop, longest stall", None),
    }
    table = Table("figure", "measured", "lowest to highest", "target", "")
    for name, values in samples(result).items():
        label, target = rows[name]
        scale, unit = (1, "x") if name.startswith("viewed_over") else (1000, " ms")
        shown = (
            [f"{scale * one:.4g}" for one in (statistics.median(values), min(values), max(values))] if values else []
        )
        measured, extent = (f"{shown[0]}{unit}", f"{shown[1]} to {shown[2]}") if shown else ("too few rounds", "")
        is_met = target is not None and bool(values) and statistics.median(values) <= target
        mark = "" if target is None else "[green]met[/green]" if is_met else "[red]missed[/red]"
        table.add_row(label, measured, extent, "" if target is None else f"<= {scale * target:.4g}{unit}", mark)
    yield table
    yield _by_path([answer for one in result.asked for answer in one.answers])


def _by_path(answers: Sequence[tuple[str, float]]) -> Table:
    table = Table("GET", "answers", "p50", "p99", "longest")
    for path in sorted({path for path, _ in answers}):
        seconds = [seconds for one, seconds in answers if one == path]
        times = (statistics.median(seconds), percentile(seconds, 99), max(seconds))
        table.add_row(path, str(len(seconds)), *(f"{1000 * one:.1f} ms" for one in times))
    return table
