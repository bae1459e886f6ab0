"""Those who train a workload: Choral's engines, the plain loop, Flower and pfl-research, measured in turn.

A machine is never quiet: what is compared is measured alternately, A, B, A, B, ..., and medians over the repeats are compared.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from benchmarks import choral_simulation, flower_simulation, pfl_simulation, plain_loop
from benchmarks.peer_process import PeerFailedError
from benchmarks.peer_result import PeerResult
from benchmarks.simulation_workloads import Workload
from simulation.engines import choose
from simulation.resources import Resources, core_count
from wire.spec import validate_spec

WORKERS = 2
FLOWER_ROUNDS = 6

Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to train a workload.

    Attributes:
        system: The plain loop, one of Choral's engines, or a peer.
        threads: Threads of torch, of each worker; None for what the system takes by itself.
        workers: Processes that share the clients of a round; None for a single one, or for what the system takes by itself.
    """

    system: Literal["plain", "serial", "vectorized", "processes", "ray", "flower", "pfl"]
    threads: int | None = None
    workers: int | None = None

    @property
    def name(self) -> str:
        """Its name among the figures, such as "processes_2_workers"."""
        parts = [
            f"{count}_{unit}{'s' * (count > 1)}"
            for count, unit in ((self.workers, "worker"), (self.threads, "thread"))
            if count
        ]
        return "_".join([self.system, *parts])

    @property
    def title(self) -> str:
        """Its name for people, such as "processes, 2 workers"."""
        titles = {"plain": "plain loop", "flower": "Flower's simulation", "pfl": "pfl-research"}
        _, _, rest = self.name.partition("_")
        words = [titles.get(self.system, self.system)]
        return ", ".join(words + [rest.replace("_", " ").replace("workers 1", "workers of 1")] * bool(rest))


CORES = core_count()
PLAIN = tuple(Contender("plain", threads=threads) for threads in sorted({1, CORES}))
SERIAL = Contender("serial", threads=1)
SERIAL_CORES = Contender("serial", threads=CORES)
VECTORIZED = Contender("vectorized", threads=CORES)
VECTORIZED_1 = Contender("vectorized", threads=1)
PROCESSES = Contender("processes", threads=1, workers=WORKERS)
RAY = Contender("ray", threads=1, workers=WORKERS)
FLOWER = (Contender("flower"), Contender("flower", workers=CORES))
PFL = (Contender("pfl"), Contender("pfl", threads=1, workers=WORKERS))


@dataclass(frozen=True, slots=True)
class Place:
    """Where contenders find what they need.

    Attributes:
        folder: For the examples that Choral reads.
        flower_python: Interpreter that Flower is installed beside; None leaves it out.
        pfl_python: Likewise of pfl-research.
    """

    folder: Path
    flower_python: str | None
    pfl_python: str | None

    def has(self, contender: Contender) -> bool:
        """Whether a contender can be measured."""
        peers = {"flower": self.flower_python, "pfl": self.pfl_python}
        return peers.get(contender.system, "") is not None


def automatic(workload: Workload) -> Contender:
    """Return the engine that `auto` chooses on this machine's cores, as it is by default."""
    spec = validate_spec(choral_simulation.spec_of(workload, 2))
    engine, _ = choose("auto", spec, Resources(device="cpu"))
    if engine == "processes":
        return Contender("processes", threads=1, workers=CORES)
    return VECTORIZED if engine == "vectorized" else SERIAL


def measure(contender: Contender, workload: Workload, rounds: int, place: Place) -> PeerResult:
    """Measure once, in a fresh process.

    Raises:
        PeerFailedError: The contender failed or ran out of time. Its processes have ended.
    """
    match contender:
        case Contender("plain", threads=int(threads)):
            return plain_loop.measure(workload, rounds, threads)
        case Contender("flower", workers=workers):
            assert place.flower_python is not None
            return flower_simulation.measure(workload, FLOWER_ROUNDS, place.flower_python, 1 if workers else None)
        case Contender("pfl", workers=workers):
            assert place.pfl_python is not None
            return pfl_simulation.measure(workload, rounds, place.pfl_python, workers or 1)
    options = ["--device", "cpu"]
    for name, count in (("--threads", contender.threads), ("--workers", contender.workers)):
        options += [name, str(count)] if count else []
    data = choral_simulation.write_data(workload, place.folder)
    return choral_simulation.measure(workload, rounds, contender.system, data, options)


def in_turn(
    keys: Iterable[Key], measure: Callable[[Key], Value], repeats: int, tell: Callable[[Key, PeerFailedError], None]
) -> dict[Key, list[Value]]:
    """Measure each of them once, then each of them once more, and so on.

    Args:
        keys: What is measured, in this order.
        measure: Measures one of them once.
        repeats: Measurements of each.
        tell: Called when one fails, which is then left out.

    Returns:
        All measurements of those that never failed, in the order in which they were made.
    """
    results: dict[Key, list[Value]] = {key: [] for key in keys}
    for _ in range(repeats):
        for key in list(results):
            try:
                results[key].append(measure(key))
            except PeerFailedError as error:
                tell(key, error)
                del results[key]
    return results


@dataclass(frozen=True, slots=True)
class Spread:
    """A median, and the lowest and the highest of what it is the median of, or of the ratios that it comes from."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the spread of measurements, one or more."""
        return cls(statistics.median(values), min(values), max(values))


def speed_ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Return how many times as fast ours is: the ratio of the medians, and the ratios of the pairs measured one after the other.

    Args:
        ours: Seconds of the same work, one or more.
        theirs: As many, measured in turn with ours.
    """
    pairs = [their / our for our, their in zip(ours, theirs, strict=True)]
    return Spread(statistics.median(theirs) / statistics.median(ours), min(pairs), max(pairs))


def fastest(step_seconds: Mapping[Contender, Sequence[float]]) -> Contender:
    """Return who has the lowest median; `step_seconds` names one or more."""
    return min(step_seconds, key=lambda contender: statistics.median(step_seconds[contender]))
