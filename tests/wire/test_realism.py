"""The spec's key `simulation`: what it says, what it refuses, and the distributions against their known moments."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.errors import SpecError
from wire.realism import (
    LEAST,
    MOST,
    Constant,
    Distribution,
    Exponential,
    Lognormal,
    PresenceSpec,
    SimulationSpec,
    Uniform,
)
from wire.spec import RunSpec, parse_spec, validate_spec

FULL = """
name: fleet
learner: {name: mlp}
rounds: 3
cohort: {size: 2}
simulation:
  seconds_per_example: {name: lognormal, median: 0.02, sigma: 0.8}
  bytes_per_second: {name: uniform, low: 1e5, high: 1e6}
  jitter: 0.25
  dropout: 0.05
  presence: {present_seconds: 3600, absent_seconds: 7200}
  trace: fleet.csv
  trace_period_seconds: 86400
"""

AMOUNTS = st.just(0.0) | st.floats(LEAST, MOST)
POSITIVES = st.floats(LEAST, MOST)
SIGMAS = st.floats(0, 10)
RATES = st.one_of(
    st.builds(Constant, value=POSITIVES),
    st.tuples(POSITIVES, POSITIVES).map(lambda pair: Uniform(low=min(pair), high=max(pair))),
    st.builds(Lognormal, median=POSITIVES, sigma=SIGMAS),
    st.builds(Exponential, mean=POSITIVES),
)
PERIODS = st.floats(1e-3, 1e9)
SPECS = st.builds(
    SimulationSpec,
    seconds_per_example=RATES | st.builds(Constant, value=AMOUNTS) | st.builds(Uniform, low=st.just(0.0), high=AMOUNTS),
    bytes_per_second=st.none() | RATES,
    jitter=SIGMAS,
    dropout=st.floats(0, 1),
    presence=st.none() | st.builds(PresenceSpec, present_seconds=PERIODS, absent_seconds=PERIODS),
    trace=st.just("trace.csv"),
    trace_period_seconds=st.none() | PERIODS,
)


def document(**simulation: Any) -> dict[str, Any]:
    return {"name": "a", "learner": {"name": "mlp"}, "rounds": 1, "cohort": {"size": 2}, "simulation": simulation}


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def drawn(distribution: Distribution, count: int = 40_000) -> list[float]:
    source = generator()
    return [distribution.draw(source) for _ in range(count)]


def test_parse_full_yaml_reads_every_value() -> None:
    assert parse_spec(FULL).simulation == SimulationSpec(
        seconds_per_example=Lognormal(median=0.02, sigma=0.8),
        bytes_per_second=Uniform(low=1e5, high=1e6),
        jitter=0.25,
        dropout=0.05,
        presence=PresenceSpec(present_seconds=3600, absent_seconds=7200),
        trace="fleet.csv",
        trace_period_seconds=86_400,
    )


def test_parse_without_the_key_simulates_no_behaviour() -> None:
    spec = document()
    del spec["simulation"]
    assert validate_spec(spec).simulation is None


def test_parse_empty_key_means_clients_that_take_no_time_and_never_leave() -> None:
    spec = validate_spec(document()).simulation
    assert spec is not None
    assert spec.seconds_per_example == Constant(value=0)
    assert (spec.bytes_per_second, spec.jitter, spec.dropout) == (None, 0, 0)
    assert (spec.presence, spec.trace, spec.trace_period_seconds) == (None, None, None)


@pytest.mark.parametrize(
    ("simulation", "message"),
    [
        pytest.param({"speed": 1}, "simulation.speed is not a key that exists here.", id="unknown-key"),
        pytest.param(
            {"seconds_per_example": 0.1}, "simulation.seconds_per_example must be an object, got 0.1.", id="number"
        ),
        pytest.param(
            {"seconds_per_example": {"value": 0.1}},
            "simulation.seconds_per_example.name is required.",
            id="nameless",
        ),
        pytest.param(
            {"seconds_per_example": {"name": "normal"}},
            "simulation.seconds_per_example.name must be one of 'constant', 'uniform', 'lognormal', 'exponential', "
            "got 'normal'.",
            id="unknown-name",
        ),
        pytest.param(
            {"bytes_per_second": {"name": "x" * 1000}},
            "simulation.bytes_per_second.name must be one of 'constant', 'uniform', 'lognormal', 'exponential', "
            f"got '{'x' * 199}....",
            id="long-name",
        ),
        pytest.param(
            {"seconds_per_example": {"name": "constant"}},
            "simulation.seconds_per_example.constant.value is required.",
            id="no-value",
        ),
        pytest.param(
            {"seconds_per_example": {"name": "constant", "value": 1, "mean": 1}},
            "simulation.seconds_per_example.constant.mean is not a key that exists here.",
            id="key-of-another",
        ),
        pytest.param(
            {"seconds_per_example": {"name": "constant", "value": -0.1}},
            "simulation.seconds_per_example.constant.value must be greater than or equal to 0, got -0.1.",
            id="negative",
        ),
        pytest.param(
            {"seconds_per_example": {"name": "constant", "value": float("inf")}},
            "simulation.seconds_per_example.constant.value must be a finite number, got inf.",
            id="infinite",
        ),
        pytest.param(
            {"seconds_per_example": {"name": "constant", "value": 2e12}},
            "simulation.seconds_per_example.constant.value must be less than or equal to 1000000000000, got 2000000000000.0.",
            id="too-large",
        ),
        pytest.param(
            {"seconds_per_example": {"name": "uniform", "low": 2, "high": 1}},
            "simulation.seconds_per_example.uniform: low must be at most high (1), got 2.",
            id="crossed",
        ),
        pytest.param(
            {"seconds_per_example": {"name": "lognormal", "median": 0, "sigma": 1}},
            "simulation.seconds_per_example.lognormal.median must be greater than or equal to 0.000000001, got 0.",
            id="median",
        ),
        pytest.param(
            {"seconds_per_example": {"name": "lognormal", "median": 1, "sigma": -1}},
            "simulation.seconds_per_example.lognormal.sigma must be greater than or equal to 0, got -1.",
            id="negative-sigma",
        ),
        pytest.param(
            {"seconds_per_example": {"name": "lognormal", "median": 1, "sigma": 11}},
            "simulation.seconds_per_example.lognormal.sigma must be less than or equal to 10, got 11.",
            id="large-sigma",
        ),
        pytest.param(
            {"seconds_per_example": {"name": "exponential", "mean": 0}},
            "simulation.seconds_per_example.exponential.mean must be greater than or equal to 0.000000001, got 0.",
            id="mean",
        ),
        pytest.param(
            {"bytes_per_second": {"name": "constant", "value": 0}},
            "simulation.bytes_per_second: must be at least 1e-09 for every client, got 0.",
            id="no-link",
        ),
        pytest.param(
            {"bytes_per_second": {"name": "uniform", "low": 0, "high": 5}},
            "simulation.bytes_per_second: must be at least 1e-09 for every client, got 0.",
            id="no-link-for-some",
        ),
        pytest.param({"jitter": -1}, "simulation.jitter must be greater than or equal to 0, got -1.", id="jitter"),
        pytest.param({"jitter": 11}, "simulation.jitter must be less than or equal to 10, got 11.", id="wild-jitter"),
        pytest.param({"dropout": -1}, "simulation.dropout must be greater than or equal to 0, got -1.", id="below-0"),
        pytest.param({"dropout": 1.5}, "simulation.dropout must be less than or equal to 1, got 1.5.", id="above-1"),
        pytest.param({"dropout": "0.1"}, "simulation.dropout must be a valid number, got '0.1'.", id="text"),
        pytest.param(
            {"presence": {"present_seconds": 60}}, "simulation.presence.absent_seconds is required.", id="half"
        ),
        pytest.param(
            {"presence": {"present_seconds": 0, "absent_seconds": 1}},
            "simulation.presence.present_seconds must be greater than or equal to 0.001, got 0.",
            id="no-presence",
        ),
        pytest.param(
            {"presence": {"present_seconds": 1, "absent_seconds": 1e10}},
            "simulation.presence.absent_seconds must be less than or equal to 1000000000, got 10000000000.0.",
            id="long-absence",
        ),
        pytest.param({"trace": ""}, "simulation.trace must have at least 1 character, got ''.", id="no-path"),
        pytest.param(
            {"trace_period_seconds": 60},
            "simulation: trace_period_seconds must come with a trace, got 60 without one.",
            id="period-alone",
        ),
        pytest.param(
            {"trace": "a.csv", "trace_period_seconds": 0},
            "simulation.trace_period_seconds must be greater than or equal to 0.001, got 0.",
            id="no-period",
        ),
    ],
)
def test_validate_broken_rule_names_key_rule_and_value(simulation: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        validate_spec(document(**simulation))
    assert str(caught.value) == f"Run spec: {message}"


@given(SPECS)
def test_canonical_json_round_trips(simulation: SimulationSpec) -> None:
    text = json.dumps(document() | {"simulation": simulation.model_dump(mode="json")})
    spec = parse_spec(text)
    assert spec.simulation == simulation
    assert parse_spec(spec.canonical_json()) == spec


def test_json_schema_describes_the_key_and_offers_the_distributions_by_name() -> None:
    schema = RunSpec.model_json_schema()
    assert "How simulated clients behave" in schema["properties"]["simulation"]["description"]
    choices = schema["$defs"]["SimulationSpec"]["properties"]["seconds_per_example"]["discriminator"]
    assert choices["propertyName"] == "name"
    assert choices["mapping"].keys() == {"constant", "uniform", "lognormal", "exponential"}


# Draws.


def test_constant_draws_its_value() -> None:
    assert drawn(Constant(value=3.5), 3) == [3.5, 3.5, 3.5]


def test_uniform_draws_between_its_bounds() -> None:
    values = drawn(Uniform(low=2, high=6))
    assert min(values) >= 2
    assert max(values) <= 6
    assert np.mean(values) == pytest.approx(4, abs=0.02)
    assert np.var(values) == pytest.approx(16 / 12, rel=0.02)


def test_lognormal_draws_around_its_median() -> None:
    # A standard deviation of the logarithm above the median stands 84.13 % of all values.
    below, median, above = np.quantile(drawn(Lognormal(median=0.5, sigma=1.2)), [0.1587, 0.5, 0.8413])
    assert median == pytest.approx(0.5, rel=0.03)
    assert above / median == pytest.approx(math.exp(1.2), rel=0.03)
    assert median / below == pytest.approx(math.exp(1.2), rel=0.03)


def test_exponential_draws_with_its_mean() -> None:
    values = drawn(Exponential(mean=8))
    assert np.mean(values) == pytest.approx(8, rel=0.02)
    assert np.median(values) == pytest.approx(8 * math.log(2), rel=0.02)


def test_exponential_never_draws_0() -> None:
    class Lowest(np.random.Generator):
        def standard_exponential(self, *_: Any, **__: Any) -> Any:
            return 0.0

    assert Exponential(mean=2).draw(Lowest(np.random.PCG64(0))) == 2.0**-52


@given(RATES, st.integers(0, 2**63 - 1))
def test_draw_of_a_rate_leaves_every_time_finite(rate: Distribution, seed: int) -> None:
    value = rate.draw(generator(seed))
    assert 0 < value < math.inf
    assert 1e12 / value < math.inf


@given(RATES, st.integers(0, 2**63 - 1))
def test_draw_is_the_same_from_the_same_seed(rate: Distribution, seed: int) -> None:
    assert rate.draw(generator(seed)) == rate.draw(generator(seed))
