"""The figures of `benchmarks.secagg`: what is compared with what, and the targets."""

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.mask_rates import Rates
from benchmarks.secagg_result import Case, SessionResult

CLIENT_COUNTS = (10, 50, 100)
PARAMETER_COUNTS = (100_000, 1_000_000, 10_000_000)
GONE_FRACTION = 0.1

MAIN = Case(100, 1_000_000, 10)
LARGE = Case(100, 10_000_000, 10)


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure.

    Attributes:
        value: None if it was not measured.
        target: None if it has none.
        is_limit: Whether the target is the most that the value may be; else it is the least.
        unit: Written behind the numbers.
    """

    name: str
    value: float | None
    target: float | None
    is_limit: bool = True
    unit: str = " s"

    @property
    def is_met(self) -> bool | None:
        """Whether the target is met; None without a value or a target."""
        if self.value is None or self.target is None:
            return None
        return self.value <= self.target if self.is_limit else self.value >= self.target


@dataclass(frozen=True, slots=True)
class Measured:
    """Everything that was measured; what was left out is missing.

    Attributes:
        sessions: By case.
        rates: By parameters.
        flower: By case.
        demo_over_plain: How many times as long the digits demo takes with secure aggregation.
        has_failed: Whether something could not be measured.
    """

    sessions: Mapping[Case, SessionResult]
    rates: Mapping[int, Rates]
    flower: Mapping[Case, SessionResult]
    demo_over_plain: float | None = None
    has_failed: bool = False


def cases(client_counts: tuple[int, ...], parameter_counts: tuple[int, ...]) -> list[Case]:
    """Return the sessions that are played, without and with clients that are gone after sharing."""
    return [
        Case(clients, parameters, gone)
        for parameters in parameter_counts
        for clients in client_counts
        for gone in (0, round(clients * GONE_FRACTION))
    ]


def figures(measured: Measured) -> list[Figure]:
    """Return all figures. Seconds are of CPU time; the ratios to Flower say how many times as much it takes."""
    main, large = _seconds(measured.sessions.get(MAIN)), _seconds(measured.sessions.get(LARGE))
    client_ratio, coordinator_ratio = map(_ratio, _seconds(measured.flower.get(MAIN)), main)
    rates, largest = measured.rates.get(MAIN.parameter_count), measured.sessions.get(LARGE)
    return [
        Figure("client_cpu_1e6", main[0], 0.15),
        Figure("coordinator_cpu_1e6", main[1], 1.0),
        Figure("client_cpu_1e7", large[0], 1.2),
        Figure("coordinator_cpu_1e7", large[1], 10.0),
        Figure("flower_client_ratio", client_ratio, 20.0, is_limit=False, unit="x"),
        Figure("flower_coordinator_ratio", coordinator_ratio, 100.0, is_limit=False, unit="x"),
        Figure("mask_over_memcpy", rates.masks_over_memcpy if rates else None, 0.4, is_limit=False, unit="x"),
        Figure("coordinator_rss_models", rss_models(LARGE, largest) if largest else None, 3.0, unit=" vectors"),
        Figure("demo_over_plain", measured.demo_over_plain, 1.5, unit="x"),
    ]


def rss_models(case: Case, result: SessionResult) -> float | None:
    """Return the coordinator's peak memory in vectors of 4 bytes a parameter, or None where it was not measured."""
    return None if result.peak_bytes is None else result.peak_bytes / case.vector_bytes


def _seconds(result: SessionResult | None) -> tuple[float | None, float | None]:
    """Return the CPU seconds of a client and of the coordinator."""
    return (result.client_total, result.coordinator_total) if result else (None, None)


def _ratio(theirs: float | None, ours: float | None) -> float | None:
    return None if theirs is None or ours is None else theirs / ours
