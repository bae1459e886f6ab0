"""Periods of presence: they tile time, hold wherever they are asked for, and have the lengths that the spec names."""

import itertools
import math
import random
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulation.presence import Periods, Presence, RandomPeriods, TracedPeriods
from wire.realism import PresenceSpec

LENGTHS = st.floats(1e-3, 1e9)
SEEDS = st.integers(0, 2**63 - 1)
TIMES = st.floats(0, 1e9)


def at_random(present: float, absent: float, seed: int = 0, client_id: str = "client-0000") -> RandomPeriods:
    return RandomPeriods(PresenceSpec(present_seconds=present, absent_seconds=absent), seed, client_id)


def walk(periods: Periods, until: float, start: float = 0.0) -> list[Presence]:
    """Return the periods from `start` on, each asked for at the end of the one before."""
    found = [periods.at(start)]
    while found[-1].until < until:
        found.append(periods.at(found[-1].until))
    return found


def require_tile(periods: Periods, time: float) -> None:
    """Check the period at a time, and those that lie around it, for gaps and overlaps."""
    here = periods.at(time)
    assert here.since <= time < here.until
    assert periods.at(math.nextafter(here.until, -math.inf) if here.until < math.inf else 1e300) == here
    if here.until < math.inf:
        after = periods.at(here.until)
        assert after.since == here.until < after.until
    if here.since > -math.inf:
        assert periods.at(here.since) == here
        assert periods.at(math.nextafter(here.since, -math.inf)).until == here.since


# At random.


@given(LENGTHS, LENGTHS, SEEDS, TIMES)
def test_random_periods_tile_time(present: float, absent: float, seed: int, time: float) -> None:
    require_tile(at_random(present, absent, seed), time)


@given(LENGTHS, st.floats(0.01, 100), SEEDS, st.randoms(use_true_random=False))
def test_random_periods_are_the_same_in_whatever_order_they_are_asked_for(
    present: float, ratio: float, seed: int, order: random.Random
) -> None:
    absent = min(max(present * ratio, 1e-3), 1e9)
    once = walk(at_random(present, absent, seed), 40 * present)
    assert all(one.is_present != other.is_present for one, other in itertools.pairwise(once))
    again = at_random(present, absent, seed)
    for period in order.sample(once, len(once)):
        time = order.uniform(max(period.since, 0.0), math.nextafter(period.until, 0))
        assert again.at(time) == period
        assert at_random(present, absent, seed).at(time) == period


def test_random_periods_differ_by_client_and_seed() -> None:
    walks = {
        tuple(walk(at_random(60, 60, seed, client_id), 600)) for seed in range(5) for client_id in ("ana", "ben", "cem")
    }
    assert len(walks) == 15
    ends = {period.until for found in walks for period in found}
    assert len(ends) == sum(len(found) for found in walks)


def test_random_periods_have_exponential_lengths_of_the_means() -> None:
    found = walk(at_random(30, 90), 600_000)[1:]
    for is_present, mean in ((True, 30), (False, 90)):
        lengths = np.array([period.until - period.since for period in found if period.is_present is is_present])
        assert len(lengths) > 4500
        assert lengths.mean() == pytest.approx(mean, rel=0.04)
        for part in (0.1, 0.5, 1.0, 3.0):
            assert np.mean(lengths > part * mean) == pytest.approx(math.exp(-part), abs=0.02)
        # The length of a period tells nothing of the next one of its kind.
        assert np.corrcoef(lengths[1:], lengths[:-1])[0, 1] == pytest.approx(0, abs=0.04)


@pytest.mark.parametrize("time", [0.0, 12345.6])
def test_random_periods_are_stationary_at_any_time(time: float) -> None:
    # 20 of 20 + 60 seconds are present; of those present, e^-1 stay for the next 20 s, and were there for the last 20 s.
    found = [at_random(20, 60, client_id=f"client-{number}").at(time) for number in range(5000)]
    present = [period for period in found if period.is_present]
    assert len(present) / len(found) == pytest.approx(0.25, abs=0.015)
    assert np.mean([period.until > time + 20 for period in present]) == pytest.approx(math.exp(-1), abs=0.03)
    assert np.mean([period.since < time - 20 for period in present]) == pytest.approx(math.exp(-1), abs=0.03)


def test_random_periods_remember_as_a_markov_chain_of_two_states_does() -> None:
    # P(present at t | present at 0) = p + (1 - p) * exp(-t * (1/20 + 1/60)) with p = 1/4: at t = 15, 0.25 + 0.75 / e.
    clients = [at_random(20, 60, client_id=f"client-{number}") for number in range(8000)]
    stayed = [client.at(15).is_present for client in clients if client.at(0).is_present]
    assert np.mean(stayed) == pytest.approx(0.25 + 0.75 / math.e, abs=0.03)


def test_random_periods_that_are_much_shorter_than_the_run_cost_no_more_at_its_end() -> None:
    require_tile(at_random(0.001, 0.001), 1e8)


def test_random_periods_do_not_grow_with_the_time_they_are_asked_for() -> None:
    periods = at_random(1, 1)
    sizes = []
    tracemalloc.start()
    try:
        for end in (1_000, 10_000):
            period = periods.at(end / 2)
            while period.until < end:
                period = periods.at(period.until)
            sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert sizes[1] < sizes[0] + 4096


# Measured.

ONCE = TracedPeriods([5.0, 10.0, 20.0, 30.0], None)
EACH_MINUTE = TracedPeriods([5.0, 10.0, 20.0, 30.0], 60.0)
OVER_MIDNIGHT = TracedPeriods([0.0, 10.0, 50.0, 60.0], 60.0)
INF = math.inf


@pytest.mark.parametrize(
    ("periods", "time", "period"),
    [
        pytest.param(ONCE, 0.0, (False, -INF, 5.0), id="before"),
        pytest.param(ONCE, 5.0, (True, 5.0, 10.0), id="first"),
        pytest.param(ONCE, 10.0, (False, 10.0, 20.0), id="between"),
        pytest.param(ONCE, 29.5, (True, 20.0, 30.0), id="last"),
        pytest.param(ONCE, 30.0, (False, 30.0, INF), id="after"),
        pytest.param(EACH_MINUTE, 0.0, (False, -30.0, 5.0), id="before-the-first-cycle"),
        pytest.param(EACH_MINUTE, 7.0, (True, 5.0, 10.0), id="first-cycle"),
        pytest.param(EACH_MINUTE, 30.0, (False, 30.0, 65.0), id="between-cycles"),
        pytest.param(EACH_MINUTE, 625.0, (True, 620.0, 630.0), id="eleventh-cycle"),
        pytest.param(OVER_MIDNIGHT, 0.0, (True, -10.0, 10.0), id="over-the-start"),
        pytest.param(OVER_MIDNIGHT, 55.0, (True, 50.0, 70.0), id="over-the-end"),
        pytest.param(OVER_MIDNIGHT, 70.0, (False, 70.0, 110.0), id="second-cycle"),
        pytest.param(TracedPeriods([0.0, 60.0], 60.0), 75.0, (True, -INF, INF), id="always"),
        pytest.param(TracedPeriods([0.0, 60.0], None), 75.0, (False, 60.0, INF), id="once-from-the-start"),
    ],
)
def test_traced_periods_by_hand(periods: TracedPeriods, time: float, period: tuple[bool, float, float]) -> None:
    assert periods.at(time) == Presence(*period)


@st.composite
def traced(draw: st.DrawFn, numbers: st.SearchStrategy[float]) -> tuple[list[float], float | None]:
    """Draw the edges of some periods, and a cycle that they fit into, or none."""
    edges = sorted(draw(st.lists(numbers, min_size=2, max_size=12, unique=True)))
    edges = edges[: len(edges) // 2 * 2]
    return edges, draw(st.none() | st.just(max(edges[-1], 1.0)) | st.integers(1, 50).map(lambda more: edges[-1] + more))


@given(traced(st.integers(0, 100).map(float)), st.integers(0, 1000))
def test_traced_periods_are_those_of_the_trace(trace: tuple[list[float], float | None], time: int) -> None:
    edges, cycle = trace
    place = time if cycle is None else time % cycle
    is_present = any(start <= place < end for start, end in zip(edges[::2], edges[1::2], strict=True))
    assert TracedPeriods(edges, cycle).at(time).is_present is is_present


@given(traced(st.floats(0, 1e6).map(lambda number: round(number, 3))), st.floats(0, 1e9))
def test_traced_periods_tile_time(trace: tuple[list[float], float | None], time: float) -> None:
    require_tile(TracedPeriods(*trace), time)
