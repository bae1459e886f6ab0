"""Which contenders of a simulation are compared, what is asked of the comparison, and whether it was reached.

All ratios are of speeds: above 1, the first of the two is faster.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.contenders import (
    FLOWER,
    PFL,
    PLAIN,
    PROCESSES,
    RAY,
    SERIAL,
    SERIAL_CORES,
    VECTORIZED,
    VECTORIZED_1,
    Contender,
    Spread,
    automatic,
    fastest,
    speed_ratio,
)
from benchmarks.peer_result import PeerResult
from benchmarks.simulation_workloads import WORKLOADS

Results = Mapping[str, Mapping[Contender, Sequence[PeerResult]]]
"""All measurements of each contender, in order, by workload."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two sides of one workload.

    Attributes:
        name: Among the figures.
        workload: One of `WORKLOADS`.
        ours: One of Choral's engines.
        theirs: What it is compared with: the fastest of them.
        target: Least ratio; None where none is asked for.
    """

    name: str
    workload: str
    ours: Contender
    theirs: tuple[Contender, ...]
    target: float | None = None

    def ratio(self, results: Results) -> Spread | None:
        """Return the ratio, or None if a side was not measured."""
        of_workload = results.get(self.workload, {})
        seconds = {
            contender: [result.step_seconds for result in of_workload[contender]]
            for contender in (self.ours, *self.theirs)
            if contender in of_workload
        }
        ours, rivals = seconds.get(self.ours), {key: seconds[key] for key in self.theirs if key in seconds}
        return speed_ratio(ours, rivals[fastest(rivals)]) if ours and rivals else None


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure with its target.

    Attributes:
        measured: None if it was not.
        target: The least value or, for seconds, the greatest; None where none is asked for.
        is_seconds: Whether it is a time, and no ratio of speeds.
    """

    name: str
    measured: Spread | None
    target: float | None
    is_seconds: bool = False

    @property
    def is_met(self) -> bool | None:
        """Whether the target is met; None without a target or a measurement."""
        if self.measured is None or self.target is None:
            return None
        return self.measured.value <= self.target if self.is_seconds else self.measured.value >= self.target


FIRST_ROUNDS: Mapping[str, tuple[str, float]] = {
    "first_round_seconds": ("auto", 6.0),
    "ray_first_round_seconds": ("ray", 15.0),
}
"""Engine of `choral simulate`, and the target in seconds, by figure."""


def comparisons() -> list[Comparison]:
    """Return all comparisons; which engine is that of `auto` depends on the cores of this machine."""
    pfl_auto = automatic(WORKLOADS["pfl-cifar"])
    one, cores = PLAIN[:1], PLAIN[-1:]
    return [
        Comparison("vectorized_over_plain_cnn", "digits-cnn", VECTORIZED, PLAIN, 4.0),
        Comparison("vectorized_over_plain_cnn_100", "digits-cnn-100", VECTORIZED, PLAIN, 10.0),
        Comparison("vectorized_over_plain_mlp", "digits-mlp", VECTORIZED, PLAIN, 6.0),
        Comparison("auto_over_plain_pfl", "pfl-cifar", pfl_auto, PLAIN, 1.3),
        Comparison("vectorized_over_flower", "digits-cnn", VECTORIZED, FLOWER[:1], 30.0),
        Comparison("vectorized_over_flower_tuned", "digits-cnn", VECTORIZED, FLOWER),
        Comparison("vectorized_over_pfl_digits", "digits-cnn", VECTORIZED, PFL, 3.0),
        Comparison("auto_over_pfl_own", "pfl-cifar", pfl_auto, PFL, 1.0),
        Comparison("serial_over_plain", "digits-cnn", SERIAL, one, 1.0),
        Comparison("serial_over_plain_all_cores", "digits-cnn", SERIAL_CORES, cores),
        Comparison("serial_over_plain_pfl", "pfl-cifar", SERIAL, one),
        Comparison("serial_over_plain_pfl_all_cores", "pfl-cifar", SERIAL_CORES, cores),
        Comparison("processes_over_serial", "pfl-cifar", PROCESSES, (SERIAL,), 1.5),
        Comparison("processes_over_serial_all_cores", "pfl-cifar", PROCESSES, (SERIAL_CORES,)),
        Comparison("vectorized_over_plain_cnn_1_thread", "digits-cnn", VECTORIZED_1, PLAIN),
        Comparison("vectorized_over_plain_cnn_100_1_thread", "digits-cnn-100", VECTORIZED_1, PLAIN),
        Comparison("vectorized_over_plain_mlp_1_thread", "digits-mlp", VECTORIZED_1, PLAIN),
        # For the lines of the table: all engines on one workload.
        Comparison("processes_over_plain_cnn", "digits-cnn", PROCESSES, PLAIN),
        Comparison("ray_over_plain_cnn", "digits-cnn", RAY, PLAIN),
    ]


def contenders_of(workload: str) -> list[Contender]:
    """Return who must be measured for the comparisons of a workload, each once, those that are compared close together."""
    order = [*PLAIN, SERIAL, SERIAL_CORES, VECTORIZED, VECTORIZED_1]
    sides = [
        contender
        for comparison in comparisons()
        if comparison.workload == workload
        for contender in (comparison.ours, *comparison.theirs)
    ]
    return list(dict.fromkeys([*(contender for contender in order if contender in sides), *sides]))


def figures(results: Results, first_rounds: Mapping[str, Sequence[float]]) -> list[Figure]:
    """Return all figures with their targets.

    Args:
        results: What was measured of workloads.
        first_rounds: Seconds by name, as in `FIRST_ROUNDS`.
    """
    starts = [
        Figure(name, Spread.of(first_rounds[name]) if first_rounds.get(name) else None, target, is_seconds=True)
        for name, (_, target) in FIRST_ROUNDS.items()
    ]
    ratios = [Figure(each.name, each.ratio(results), each.target) for each in comparisons()]
    return starts + ratios


def flat(results: Results) -> dict[str, float | None]:
    """Return the medians of all contenders by name, such as "digits_mlp_plain_1_thread_rss_mb"; None for what was not run."""
    values: dict[str, float | None] = {}
    for workload in WORKLOADS:
        for contender in contenders_of(workload):
            measured = results.get(workload, {}).get(contender, ())
            name = f"{workload}_{contender.name}".replace("-", "_")
            for figure, spread in summary(measured).items():
                values[f"{name}_{figure}"] = None if spread is None else spread.value
    return values


def summary(measured: Sequence[PeerResult]) -> dict[str, Spread | None]:
    """Return what is shown of one contender's measurements, of which there may be none."""
    values = {
        "steps_per_second": [1.0 / result.step_seconds for result in measured],
        "start_seconds": [result.first_round_seconds for result in measured],
        "rss_mb": [result.rss_mb for result in measured],
    }
    return {name: Spread.of(numbers) if numbers else None for name, numbers in values.items()}
