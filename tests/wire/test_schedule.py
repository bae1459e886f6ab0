"""Schedules of learning rates: values worked out by hand, and where they apply."""

import math
from typing import Any

import pytest

from wire.errors import SpecError
from wire.schedule import ScheduleSpec
from wire.spec import RunSpec, parse_spec, validate_spec


def factors(rounds: int, **schedule: Any) -> list[float]:
    made = ScheduleSpec(**schedule)
    return [made.factor(number, rounds) for number in range(1, rounds + 1)]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({}, [1, 1, 1, 1, 1]),
        ({"kind": "linear"}, [1, 0.75, 0.5, 0.25, 0]),
        ({"kind": "linear", "final": 0.2}, [1, 0.8, 0.6, 0.4, 0.2]),
        ({"kind": "cosine"}, [1, 0.5 + math.sqrt(2) / 4, 0.5, 0.5 - math.sqrt(2) / 4, 0]),
        ({"kind": "exponential", "decay": 0.5}, [1, 0.5, 0.25, 0.125, 0.0625]),
        ({"kind": "step", "decay": 0.1, "every": 2}, [1, 1, 0.1, 0.1, 0.01]),
        ({"kind": "inverse_root"}, [1, 1 / math.sqrt(2), 1 / math.sqrt(3), 0.5, 1 / math.sqrt(5)]),
        ({"warmup_rounds": 3}, [0.25, 0.5, 0.75, 1, 1]),
        ({"kind": "linear", "warmup_rounds": 2}, [1 / 3, 2 / 3, 1, 0.5, 0]),
        # The schedule of the transformer: up to the round after the warm-up, then down with the root.
        ({"kind": "inverse_root", "warmup_rounds": 1}, [0.5, 1, math.sqrt(2 / 3), math.sqrt(0.5), math.sqrt(0.4)]),
        ({"kind": "cosine", "warmup_rounds": 9}, [0.1, 0.2, 0.3, 0.4, 0.5]),
    ],
)
def test_factor_is_that_worked_out_by_hand(schedule: dict[str, Any], expected: list[float]) -> None:
    assert factors(5, **schedule) == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "exponential", "step", "inverse_root"])
def test_factor_of_a_run_of_one_round_is_full(kind: str) -> None:
    assert factors(1, kind=kind) == [1.0]


@pytest.mark.parametrize(
    ("schedule", "key"),
    [
        ({"kind": "constant", "final": 0.5}, "final"),
        ({"kind": "cosine", "decay": 0.5}, "decay"),
        ({"kind": "inverse_root", "every": 5}, "every"),
        ({"kind": "exponential", "every": 5}, "every"),
        ({"kind": "step", "final": 0.5}, "final"),
    ],
)
def test_key_of_another_kind_is_refused(schedule: dict[str, Any], key: str) -> None:
    message = f"local.schedule: {key} must be left out where kind is {schedule['kind']}, got {schedule[key]}\\.$"
    with pytest.raises(SpecError, match=message):
        spec(local={"optimizer": {"name": "sgd", "learning_rate": 1.0}, "schedule": schedule})


def spec(**parts: Any) -> RunSpec:
    return validate_spec({"name": "a", "learner": {"name": "mlp"}, "rounds": 5, "cohort": {"size": 2}, **parts})


def test_schedule_multiplies_the_rate_of_its_own_optimizer_in_each_round() -> None:
    half = {"kind": "exponential", "decay": 0.5}
    run = spec(
        local={"optimizer": {"name": "adam", "learning_rate": 0.4, "eps": 1e-7}, "schedule": half, "epochs": 3},
        server={"optimizer": {"name": "sgd", "learning_rate": 1.0}, "schedule": {"kind": "linear"}},
    )
    found = run.local_in(3)
    assert found.optimizer.parameters == {"learning_rate": pytest.approx(0.1), "eps": 1e-7}
    assert (found.optimizer.name, found.epochs) == ("adam", 3)
    assert run.server_in(2).optimizer.parameters == {"learning_rate": 0.75}
    assert run.local.optimizer.parameters["learning_rate"] == 0.4
    assert validate_spec(run.model_dump(mode="json")) == run


def test_no_schedule_leaves_everything_as_it_is() -> None:
    run = spec()
    assert run.local_in(4) is run.local
    assert run.server_in(4) is run.server


@pytest.mark.parametrize("part", ["local", "server"])
def test_schedule_without_a_rate_to_multiply_is_refused(part: str) -> None:
    with pytest.raises(
        SpecError, match=rf"{part}: schedule must have an optimizer\.learning_rate to multiply, got none"
    ):
        spec(**{part: {"optimizer": {"name": "adam"}, "schedule": {}}})


def test_schedule_of_another_kind_is_refused() -> None:
    with pytest.raises(SpecError, match=r"local\.schedule\.kind must be 'constant', .*, got 'cos'\."):
        spec(local={"schedule": {"kind": "cos"}})


def test_batch_size_all_is_every_example() -> None:
    run = parse_spec("{name: a, learner: {name: mlp}, rounds: 1, cohort: {size: 1}, local: {batch_size: all}}")
    assert run.local.batch_size == 1_000_000
    with pytest.raises(SpecError, match=r"local\.batch_size: must be a number of examples or 'all', got 'most'\."):
        spec(local={"batch_size": "most"})
