"""The clients of a simulation: times by hand, draws against known moments, and the same answers whoever asks when."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulation.errors import SimulationError
from simulation.population import Population
from simulation.presence import Presence, RandomPeriods
from wire.errors import ChoralError, SpecError
from wire.realism import PresenceSpec, SimulationSpec

NAMES = [f"client-{number:04}" for number in range(4000)]
MIXED: dict[str, Any] = {
    "seconds_per_example": {"name": "lognormal", "median": 0.02, "sigma": 1},
    "bytes_per_second": {"name": "exponential", "mean": 1e6},
    "jitter": 0.3,
    "dropout": 0.4,
    "presence": {"present_seconds": 600, "absent_seconds": 300},
}


def population(seed: int = 0, names: list[str] = NAMES, **spec: Any) -> Population:
    return Population(SimulationSpec.model_validate(spec), names, seed)


def constant(value: float) -> dict[str, Any]:
    return {"name": "constant", "value": value}


def traced(folder: Path, *lines: str) -> str:
    path = folder / "trace.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def answers(asked: Population, name: str, number: int = 3, attempt: int = 1, time: float = 5000.0) -> tuple[Any, ...]:
    """Return something of everything that depends on a draw."""
    return (
        asked.train_seconds(name, number, attempt, 100, 1, 2000),
        asked.evaluate_seconds(name, number, 100, 1000),
        asked.dropout_seconds(name, number, attempt, 60.0),
        asked.presence(name, time),
    )


# By hand.


def test_clients_without_any_behaviour_take_no_time_and_are_always_there() -> None:
    asked = population()
    assert asked.train_seconds("client-0000", 1, 0, 1000, 5, 10**9) == 0
    assert asked.evaluate_seconds("client-0000", 1, 1000, 10**9) == 0
    assert asked.dropout_seconds("client-0000", 1, 0, 60.0) is None
    assert asked.presence("client-0000", 1e6) == Presence(is_present=True, since=-math.inf, until=math.inf)
    assert asked.next_presence("client-0000", 1e6) == 1e6


def test_train_seconds_are_download_work_and_upload() -> None:
    asked = population(seconds_per_example=constant(0.5), bytes_per_second=constant(1000))
    # 4,000 bytes down and up at 1,000 a second; 10 examples of half a second, three times.
    assert asked.train_seconds("client-0000", 1, 0, 10, 3, 8000) == 4 + 15 + 4
    assert asked.train_seconds("client-0000", 1, 0, 10, 0, 8000) == 8


def test_evaluate_seconds_are_download_and_a_third_of_the_work() -> None:
    asked = population(seconds_per_example=constant(0.5), bytes_per_second=constant(1000))
    assert asked.evaluate_seconds("client-0000", 1, 12, 4000) == 4 + 2


def test_link_without_a_rate_takes_no_time() -> None:
    assert population(seconds_per_example=constant(2)).train_seconds("client-0000", 1, 0, 3, 1, 10**12) == 6


def test_draws_are_these_in_every_process() -> None:
    train, evaluate, fallen, period = answers(population(7, **MIXED), "client-0003")
    assert train == pytest.approx(1.6756904641480415, rel=1e-12)
    assert evaluate == pytest.approx(0.43538269402308716, rel=1e-12)
    assert fallen == pytest.approx(11.524651759980681, rel=1e-12)
    assert (period.since, period.until) == pytest.approx((4745.8684742705955, 5474.235355043113), rel=1e-12)
    assert period.is_present


# Moments.


def test_each_client_draws_its_own_speed_once() -> None:
    asked = population(seconds_per_example={"name": "lognormal", "median": 0.1, "sigma": 0.5})
    seconds = np.array([asked.train_seconds(name, 1, 0, 10, 1, 0) for name in NAMES])
    assert len(set(seconds)) == len(NAMES)
    assert np.median(seconds) == pytest.approx(1, rel=0.04)
    assert np.log(seconds).std() == pytest.approx(0.5, rel=0.04)
    later = [asked.train_seconds(name, 9, 2, 10, 1, 0) for name in NAMES]
    assert (seconds == later).all()


def test_each_client_draws_its_own_link_once_and_apart_from_its_speed() -> None:
    spec: dict[str, Any] = {
        "seconds_per_example": {"name": "uniform", "low": 1, "high": 2},
        "bytes_per_second": {"name": "uniform", "low": 1, "high": 2},
    }
    asked = population(**spec)
    rates = np.array([2 / asked.train_seconds(name, 1, 0, 0, 1, 2) for name in NAMES])
    speeds = np.array([asked.train_seconds(name, 1, 0, 1, 1, 0) for name in NAMES])
    assert rates.mean() == pytest.approx(1.5, rel=0.02)
    assert np.corrcoef(rates, speeds)[0, 1] == pytest.approx(0, abs=0.04)
    assert [2 / asked.train_seconds(name, 5, 1, 0, 1, 2) for name in NAMES] == rates.tolist()


def test_jitter_is_a_lognormal_factor_of_median_1_for_each_client_round_and_attempt() -> None:
    asked = population(seconds_per_example=constant(1), jitter=0.5)
    columns = [
        [asked.train_seconds(name, number, attempt, 1, 1, 0) for name in NAMES]
        for number, attempt in ((1, 0), (2, 0), (1, 1))
    ]
    columns.append([asked.evaluate_seconds(name, 1, 3, 0) for name in NAMES])
    logs = np.log(columns)
    assert np.median(logs, axis=1) == pytest.approx([0] * 4, abs=0.03)
    assert logs.std(axis=1) == pytest.approx([0.5] * 4, rel=0.04)
    assert np.corrcoef(logs) == pytest.approx(np.eye(4), abs=0.05)


def test_dropout_takes_its_part_of_the_clients_anywhere_in_their_work() -> None:
    asked = population(dropout=0.3)
    drawn = [asked.dropout_seconds(name, 1, 0, 50.0) for name in NAMES]
    times = np.array([time for time in drawn if time is not None])
    assert len(times) / len(NAMES) == pytest.approx(0.3, abs=0.02)
    assert times.min() >= 0
    assert times.max() < 50
    assert np.quantile(times, [0.25, 0.5, 0.75]) == pytest.approx([12.5, 25, 37.5], abs=2.5)
    for number, attempt in ((2, 0), (1, 1)):
        others = [asked.dropout_seconds(name, number, attempt, 50.0) for name in NAMES]
        both = sum(one is not None and other is not None for one, other in zip(drawn, others, strict=True))
        assert both / len(NAMES) == pytest.approx(0.09, abs=0.02)


@pytest.mark.parametrize(("dropout", "count"), [(0.0, 0), (1.0, 200)])
def test_dropout_of_nobody_and_of_everybody(dropout: float, count: int) -> None:
    asked = population(dropout=dropout)
    assert sum(asked.dropout_seconds(name, 1, 0, 1.0) is not None for name in NAMES[:200]) == count


def test_presence_is_that_of_random_periods() -> None:
    asked = population(3, presence={"present_seconds": 20, "absent_seconds": 60})
    spec = PresenceSpec(present_seconds=20, absent_seconds=60)
    for name in NAMES[:50]:
        assert asked.presence(name, 100.0) == RandomPeriods(spec, 3, name).at(100.0)
    assert np.mean([asked.presence(name, 0.0).is_present for name in NAMES]) == pytest.approx(0.25, abs=0.02)


@given(st.integers(0, 2**63 - 1), st.sampled_from(NAMES), st.floats(0, 1e7))
def test_next_presence_is_the_first_moment_from_then_on(seed: int, name: str, time: float) -> None:
    asked = population(seed, presence={"present_seconds": 20, "absent_seconds": 60})
    found = asked.next_presence(name, time)
    assert asked.presence(name, found).is_present
    if found > time:
        assert asked.presence(name, time) == asked.presence(name, math.nextafter(found, 0))
        assert not asked.presence(name, time).is_present


# The same answers, whoever asks when.


@given(
    st.integers(0, 2**63 - 1),
    st.lists(
        st.tuples(
            st.sampled_from(NAMES[:3]), st.integers(1, 3), st.integers(0, 2), st.sampled_from([0.0, 700.0, 1e4, 1e6])
        ),
        min_size=1,
        max_size=12,
    ),
)
def test_answers_do_not_depend_on_what_was_asked_before(
    seed: int, questions: list[tuple[str, int, int, float]]
) -> None:
    undisturbed = population(seed, **MIXED)
    expected = [answers(undisturbed, *question) for question in questions]
    resumed = population(seed, NAMES[:3], **MIXED)
    assert [answers(resumed, *question) for question in reversed(questions)] == expected[::-1]
    assert [answers(population(seed, **MIXED), *question) for question in questions] == expected


def test_answers_differ_by_seed_client_and_round() -> None:
    found = [
        answers(population(seed, **MIXED | {"dropout": 1}), name, number)
        for seed in (0, 1)
        for name in NAMES[:5]
        for number in (1, 2)
    ]
    trains, evaluates, falls, periods = zip(*found, strict=True)
    assert len(set(trains)) == len(set(evaluates)) == len(set(falls)) == 20
    assert len(set(periods)) == 10  # a round has no part in them


def test_a_draw_is_not_moved_by_another_key() -> None:
    plain = population(**MIXED | {"jitter": 0.0, "dropout": 0.0, "bytes_per_second": None, "presence": None})
    mixed = population(**MIXED | {"jitter": 0.0})
    for name in NAMES[:20]:
        assert plain.train_seconds(name, 1, 0, 5, 1, 0) == mixed.train_seconds(name, 1, 0, 5, 1, 0)


# Traces.


def test_traced_clients_are_those_of_the_trace(tmp_path: Path) -> None:
    path = traced(
        tmp_path,
        "client,seconds_per_example,bytes_per_second,from_seconds,until_seconds",
        "client-0000,0.5,1000,10,20",
        "client-0000,,,40,60",
        "client-0001,,50,0,5",
        "client-0009,,,0,1",
    )
    asked = population(names=NAMES[:2], seconds_per_example=constant(2), bytes_per_second=constant(10), trace=path)
    assert asked.train_seconds("client-0000", 1, 0, 10, 1, 2000) == 1 + 5 + 1
    assert asked.train_seconds("client-0001", 1, 0, 10, 1, 2000) == 20 + 20 + 20
    assert asked.presence("client-0000", 15.0) == Presence(is_present=True, since=10, until=20)
    assert [asked.next_presence("client-0000", time) for time in (0.0, 12.0, 30.0, 60.0)] == [10, 12, 40, math.inf]
    assert asked.next_presence("client-0001", 5.0) == math.inf


def test_traced_clients_come_again_with_the_period_of_the_trace(tmp_path: Path) -> None:
    path = traced(tmp_path, "client,from_seconds,until_seconds", "ana,10,20")
    asked = population(names=["ana"], trace=path, trace_period_seconds=100)
    assert [asked.next_presence("ana", time) for time in (0.0, 15.0, 20.0, 1015.0, 1020.0)] == [10, 15, 110, 1015, 1110]


def test_traced_clients_without_periods_come_and_go_at_random(tmp_path: Path) -> None:
    path = traced(tmp_path, "client,seconds_per_example", "ana,1")
    presence = {"present_seconds": 20, "absent_seconds": 60}
    asked, untraced = (population(names=["ana"], presence=presence, trace=trace) for trace in (path, None))
    assert asked.presence("ana", 50.0) == untraced.presence("ana", 50.0)


def test_clients_draw_a_device_each_from_a_trace_without_names(tmp_path: Path) -> None:
    path = traced(tmp_path, "seconds_per_example,bytes_per_second", "1,100", "2,200", "4,")
    asked = population(bytes_per_second=constant(400), trace=path)
    speeds = np.array([asked.train_seconds(name, 1, 0, 1, 1, 0) for name in NAMES])
    rates = np.array([2 / asked.train_seconds(name, 1, 0, 0, 1, 2) for name in NAMES])
    assert rates == pytest.approx(speeds * 100)
    assert [np.mean(speeds == speed) for speed in (1, 2, 4)] == pytest.approx([1 / 3] * 3, abs=0.03)
    other = population(1, bytes_per_second=constant(400), trace=path)
    assert [other.train_seconds(name, 1, 0, 1, 1, 0) for name in NAMES] != speeds.tolist()


@pytest.mark.parametrize(
    ("lines", "spec", "error", "message"),
    [
        pytest.param(
            ["client,seconds_per_example", "client-0001,1"],
            {},
            SimulationError,
            ": client must name each of the 6 clients, got none for 5 of them: 'client-0000', 'client-0002', 'client-0003' "
            "and 2 more. Add their rows, or leave out the column so that each client draws a row.",
            id="many-missing",
        ),
        pytest.param(
            ["client,seconds_per_example", *(f"client-{number:04},1" for number in range(5))],
            {},
            SimulationError,
            ": client must name each of the 6 clients, got none for 1 of them: 'client-0005'. Add their rows,",
            id="one-missing",
        ),
        pytest.param(
            ["client,seconds_per_example", *(f"client-{number:04},1" for number in range(3))],
            {},
            SimulationError,
            ": client must name each of the 6 clients, got none for 3 of them: 'client-0003', 'client-0004', 'client-0005'. "
            "Add their rows,",
            id="few-missing",
        ),
        pytest.param(
            ["client,from_seconds,until_seconds", *(f"client-{number:04},0,1" for number in range(6))],
            {"presence": {"present_seconds": 1, "absent_seconds": 1}},
            SpecError,
            ": simulation.presence must be left out with a trace that has periods of presence, got both. Remove the key, or",
            id="two-presences",
        ),
        pytest.param(
            ["seconds_per_example", "1"],
            {"trace_period_seconds": 60},
            SpecError,
            ": simulation.trace_period_seconds must come with a trace that has periods of presence, got 60. Remove the key,",
            id="nothing-to-repeat",
        ),
        pytest.param(
            ["client,from_seconds,until_seconds", *(f"client-{number:04},50,70" for number in range(6))],
            {"trace_period_seconds": 60},
            SimulationError,
            ", line 2: until_seconds must be from 0 to 60, got '70'. Mend or drop the line.",
            id="longer-than-its-period",
        ),
    ],
)
def test_trace_that_does_not_suit_is_refused(
    tmp_path: Path, lines: list[str], spec: dict[str, Any], error: type[ChoralError], message: str
) -> None:
    path = traced(tmp_path, *lines)
    before = Path(path).read_bytes()
    with pytest.raises(error, match=f"^{re.escape(f'Trace {path}{message}')}"):
        population(names=NAMES[:6], trace=path, **spec)
    assert Path(path).read_bytes() == before


# Cost.


def test_population_keeps_nothing_of_clients_that_were_not_asked_about() -> None:
    asked = population(names=[f"client-{number:05}" for number in range(10_000)], **MIXED)
    answers(asked, "client-00007")
    kept = [part for part in vars(asked).values() if isinstance(part, dict)]
    assert [list(part) for part in kept] == [["client-00007"]] * len(kept)
    assert len(kept) == 3
