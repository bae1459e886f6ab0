import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.errors import SpecError
from wire.spec import SPEC_BYTES, CohortSpec, Named, RunSpec, StopWhen, parse_spec, read_spec, validate_spec

FULL = """
name: digits-cnn
seed: 7
learner: {name: cnn, channels: [16, 32], classes: 10}
rounds: 20
stop_when: {metric: accuracy, at_least: 0.97}
cohort: {size: 10, quorum: 8, over_selection: 1.5, deadline_seconds: 120}
local: {epochs: 1, batch_size: 32, optimizer: {name: sgd, learning_rate: 1e-1}, proximal_mu: 0.01, clip_norm: 5}
server: {optimizer: {name: adam, learning_rate: 1e-3}}
weight_by: quality
evaluate: {every: 2, on: coordinator}
limits: {coordinate_bound: 8, weight_cap: 1000}
"""


def document(**changes: Any) -> dict[str, Any]:
    return {"name": "a", "learner": {"name": "mlp"}, "rounds": 1, "cohort": {"size": 2}} | changes


def test_parse_full_yaml_reads_every_value() -> None:
    spec = parse_spec(FULL)
    assert (spec.name, spec.seed, spec.rounds, spec.weight_by) == ("digits-cnn", 7, 20, "quality")
    assert spec.learner.name == "cnn"
    assert spec.learner.parameters == {"channels": [16, 32], "classes": 10}
    assert spec.stop_when == StopWhen(metric="accuracy", at_least=0.97)
    assert (spec.cohort.size, spec.cohort.fewest, spec.cohort.deadline_seconds) == (10, 8, 120.0)
    assert spec.local.optimizer.parameters == {"learning_rate": 0.1}
    assert spec.server.optimizer.parameters == {"learning_rate": 0.001}
    assert (spec.evaluate.every, spec.evaluate.on) == (2, "coordinator")
    assert (spec.limits.coordinate_bound, spec.limits.weight_cap) == (8.0, 1000)


def test_parse_smallest_spec_has_fedavg_defaults() -> None:
    spec = parse_spec("{name: a, learner: {name: mlp}, rounds: 3, cohort: {size: 2}}")
    assert spec.seed == 0
    assert spec.server.optimizer == Named(name="sgd", learning_rate=1.0)
    assert spec.weight_by == "examples"
    assert spec.cohort.fewest == 2


def test_parse_on_without_quotes_is_a_key_not_a_boolean() -> None:
    spec = parse_spec("{name: a, learner: {name: mlp}, rounds: 1, cohort: {size: 2}, evaluate: {on: coordinator}}")
    assert spec.evaluate.on == "coordinator"


def test_parse_number_in_scientific_notation_is_a_float() -> None:
    text = FULL.replace("learning_rate: 1e-1", "learning_rate: 1e-3")
    assert parse_spec(text).local.optimizer.parameters["learning_rate"] == 1e-3


def test_fraction_without_quorum_needs_one_contribution() -> None:
    assert CohortSpec(fraction=0.5).fewest == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"round": 3}, r"^Run spec: round is not a key that exists here\.$", id="unknown-key"),
        pytest.param({"cohort": {"size": 2, "quorom": 1}}, r"cohort\.quorom is not a key", id="unknown-nested-key"),
        pytest.param({"rounds": "3"}, r"rounds must be a valid integer, got '3'\.", id="text-for-number"),
        pytest.param({"rounds": 3.0}, r"rounds must be a valid integer, got 3\.0\.", id="float-for-integer"),
        pytest.param({"rounds": True}, r"rounds must be a valid integer, got True\.", id="boolean-for-integer"),
        pytest.param({"rounds": 0}, r"rounds must be greater than or equal to 1, got 0\.", id="no-rounds"),
        pytest.param({"seed": -1}, r"seed must be greater than or equal to 0, got -1\.", id="negative-seed"),
        pytest.param(
            {"seed": 2**63}, r"seed must be less than 9223372036854775808, got 9223372036854775808\.", id="seed"
        ),
        pytest.param({"name": "a b"}, r"name must match pattern '.*', got 'a b'\.", id="name-with-space"),
        pytest.param({"name": "a" * 65}, r"name must match pattern", id="long-name"),
        pytest.param({"learner": {}}, r"learner\.name is required\.", id="nameless-learner"),
        pytest.param(
            {"learner": {"name": 3}}, r"learner\.name must be a valid string, got 3\.", id="learner-name-type"
        ),
        pytest.param({"learner": "mlp"}, r"learner must be .*, got 'mlp'\.", id="learner-as-text"),
        pytest.param({"weight_by": "size"}, r"weight_by must be 'examples' or 'quality', got 'size'\.", id="choice"),
        pytest.param(
            {"evaluate": {"on": True}}, r"evaluate\.on must be 'clients' or 'coordinator', got True\.", id="on-type"
        ),
        pytest.param({"evaluate": {"every": -1}}, r"evaluate\.every must be greater .* 0, got -1\.", id="every"),
        pytest.param({"local": {"epochs": -1}}, r"local\.epochs must be greater .* 0, got -1\.", id="epochs"),
        pytest.param({"local": {"batch_size": 0}}, r"local\.batch_size must be greater .* 1, got 0\.", id="batch-size"),
        pytest.param({"local": {"clip_norm": 0}}, r"local\.clip_norm must be greater than 0, got 0\.", id="clip-norm"),
        pytest.param({"local": {"proximal_mu": -1}}, r"local\.proximal_mu must be greater .* 0, got -1\.", id="mu"),
        pytest.param(
            {"local": {"proximal_mu": float("nan")}}, r"local\.proximal_mu must be a finite number, got nan\.", id="nan"
        ),
        pytest.param(
            {"local": {"optimizer": {"name": "sgd", "learning_rate": float("nan")}}},
            r"local\.optimizer: learning_rate must be plain data without NaN and infinity, got nan\.",
            id="nan-parameter",
        ),
        pytest.param(
            {"learner": {"name": "mlp", "deep": [{"x": float("inf")}]}},
            r"learner: deep must be .*, got \[.*inf",
            id="inf-inside",
        ),
        pytest.param(
            {"cohort": {}}, r"cohort: must have exactly one of size and fraction, got neither\.", id="no-cohort"
        ),
        pytest.param(
            {"cohort": {"size": 2, "fraction": 0.5}},
            r"cohort: must have exactly one of .*, got both\.",
            id="both-cohorts",
        ),
        pytest.param(
            {"cohort": {"size": 2, "quorum": 3}}, r"cohort: quorum must be at most size \(2\), got 3\.", id="quorum"
        ),
        pytest.param({"cohort": {"fraction": 1.5}}, r"cohort\.fraction must be less .* 1, got 1\.5\.", id="fraction"),
        pytest.param({"cohort": {"size": 0}}, r"cohort\.size must be greater .* 1, got 0\.", id="empty-cohort"),
        pytest.param(
            {"cohort": {"size": 2, "over_selection": 0.5}}, r"over_selection must be .* 1, got 0\.5\.", id="under"
        ),
        pytest.param(
            {"cohort": {"size": 2, "deadline_seconds": 0}}, r"deadline_seconds must be .* 0, got 0\.", id="deadline"
        ),
        pytest.param(
            {"stop_when": {"metric": "accuracy"}}, r"stop_when: must have exactly one of .*, got neither\.", id="stop"
        ),
        pytest.param(
            {"stop_when": {"metric": "accuracy", "at_least": 1, "at_most": 0}},
            r"stop_when: .*, got both\.",
            id="both-stops",
        ),
        pytest.param(
            {"stop_when": {"metric": "Top 1", "at_least": 1}}, r"metric must match pattern .*'Top 1'", id="metric"
        ),
        pytest.param(
            {"stop_when": {"metric": "loss", "at_most": 1}, "evaluate": {"every": 0}},
            r"stop_when must have evaluations to look at: evaluate\.every must be at least 1, got 0\.",
            id="stop-without-evaluation",
        ),
        pytest.param(
            {"limits": {"coordinate_bound": 0}}, r"limits\.coordinate_bound must be greater .*, got 0\.", id="bound"
        ),
        pytest.param(
            {"limits": {"coordinate_bound": 1e-300}}, r"coordinate_bound must be greater .*, got 1e-300\.", id="tiny"
        ),
        pytest.param(
            {"limits": {"weight_cap": 2**29 + 1}}, r"weight_cap must be less .* 536870912, got 536870913\.", id="cap"
        ),
        pytest.param(
            {"limits": {"coordinate_bound": 2.0**40, "weight_cap": 2**29}},
            r"coordinate_bound \* limits\.weight_cap \* clients must be below 2\*\*62, got 1099511627776\.0 \* 536870912 \* 3",
            id="grid-overflow",
        ),
    ],
)
def test_validate_broken_rule_names_key_rule_and_value(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        validate_spec(document(**changes))


def test_validate_several_problems_names_each_on_its_line() -> None:
    with pytest.raises(SpecError) as caught:
        validate_spec(document(rounds=0, seed="x"), "run.yaml")
    assert str(caught.value).splitlines() == [
        "run.yaml: seed must be a valid integer, got 'x'.",
        "run.yaml: rounds must be greater than or equal to 1, got 0.",
    ]


@pytest.mark.parametrize("key", ["name", "learner", "rounds", "cohort"])
def test_validate_missing_key_is_named(key: str) -> None:
    incomplete = document()
    del incomplete[key]
    with pytest.raises(SpecError, match=rf"^Run spec: {key} is required\.$"):
        validate_spec(incomplete)


@pytest.mark.parametrize(("value", "kind"), [([], "list"), (None, "NoneType"), ("x", "str")])
def test_validate_other_than_mapping_is_refused(value: object, kind: str) -> None:
    with pytest.raises(SpecError, match=f"must be a mapping of keys to values, got {kind}"):
        validate_spec(value)


def test_validate_keys_that_json_lacks_are_refused() -> None:
    with pytest.raises(SpecError, match="must be plain mappings, lists, text and numbers: keys must be str"):
        parse_spec("? [a, b]\n: 1")


def test_validate_endless_nesting_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(SpecError):
        validate_spec(document(learner={"name": "mlp", "deep": deep}))


def test_validate_spec_too_long_for_a_task_is_refused() -> None:
    with pytest.raises(SpecError, match=rf"must have at most {SPEC_BYTES} bytes as JSON, got \d+\."):
        validate_spec(document(learner={"name": "mlp", "text": "x" * SPEC_BYTES}))


def test_validate_long_value_is_cut_in_the_message() -> None:
    with pytest.raises(SpecError) as caught:
        validate_spec(document(name="a" * 10_000))
    assert len(str(caught.value)) < 400


def test_parse_key_that_stands_twice_is_refused() -> None:
    with pytest.raises(SpecError, match=r'run\.yaml: must be YAML or JSON: .*duplicate key "seed"'):
        parse_spec("name: a\nseed: 1\nseed: 2", "run.yaml")


def test_read_file_gives_its_spec(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(FULL, encoding="utf-8")
    assert read_spec(path) == parse_spec(FULL)


def test_read_unreadable_file_names_the_path(tmp_path: Path) -> None:
    binary = tmp_path / "run.yaml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(SpecError, match=r"run\.yaml: must be a readable UTF-8 file: 'utf-8' codec"):
        read_spec(binary)
    with pytest.raises(SpecError, match=r"none\.yaml: must be a readable UTF-8 file: .*No such file"):
        read_spec(tmp_path / "none.yaml")


def test_spec_is_frozen() -> None:
    spec = parse_spec(FULL)
    with pytest.raises(ValueError, match="frozen"):
        spec.rounds = 3  # type: ignore[misc]


def test_canonical_json_does_not_depend_on_the_order_of_keys() -> None:
    one = parse_spec("{name: a, rounds: 1, cohort: {size: 2}, learner: {name: mlp, hidden: [4], classes: 3}}")
    two = parse_spec("{learner: {classes: 3, hidden: [4], name: mlp}, cohort: {size: 2}, rounds: 1, name: a}")
    assert one.canonical_json() == two.canonical_json()
    assert one.sha256 == two.sha256
    assert one.sha256 != parse_spec(FULL).sha256


@given(
    st.builds(
        document,
        seed=st.integers(0, 2**63 - 1),
        learner=st.dictionaries(
            st.text(min_size=1),
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        ).map(lambda extra: extra | {"name": "mlp"}),
        rounds=st.integers(1, 1_000_000),
        cohort=st.fixed_dictionaries({"fraction": st.floats(0, 1, exclude_min=True)}),
        local=st.fixed_dictionaries({}, optional={"epochs": st.integers(0, 10_000), "proximal_mu": st.floats(0, 1e9)}),
        limits=st.fixed_dictionaries(
            {"coordinate_bound": st.floats(2.0**-40, 2.0**13), "weight_cap": st.integers(1, 2**20)}
        ),
    )
)
def test_canonical_json_round_trips(valid: dict[str, Any]) -> None:
    spec = validate_spec(valid)
    text = spec.canonical_json()
    assert parse_spec(text) == spec
    assert parse_spec(text).canonical_json() == text


@given(st.text(alphabet=st.sampled_from("abcdnmesrolut0123456789.-: {}[],\n'\"#&*!|>%~\t"), max_size=80))
def test_parse_any_text_raises_nothing_but_spec_error(text: str) -> None:
    with contextlib.suppress(SpecError):
        parse_spec(text)


@given(
    st.sampled_from(["learner", "cohort", "local", "stop_when", "name"]),
    st.none()
    | st.booleans()
    | st.floats()
    | st.text()
    | st.dictionaries(st.text(), st.floats() | st.text(), max_size=3),
)
def test_validate_any_data_raises_nothing_but_spec_error(key: str, value: object) -> None:
    with contextlib.suppress(SpecError):
        validate_spec(document(**{key: value}))


def test_json_schema_prints_and_describes_each_key() -> None:
    schema = json.loads(json.dumps(RunSpec.model_json_schema()))
    assert schema["required"] == ["name", "learner", "rounds", "cohort"]
    assert schema["additionalProperties"] is False
    assert "random draw" in schema["properties"]["seed"]["description"]
    for name, part in schema["$defs"].items():
        assert all("description" in key or "$ref" in key for key in part["properties"].values()), name


@pytest.mark.parametrize(
    ("stop", "value", "is_reached"),
    [
        ({"at_least": 0.9}, 0.9, True),
        ({"at_least": 0.9}, 0.8999, False),
        ({"at_most": 0.0}, 0.0, True),
        ({"at_most": 0.5}, 0.51, False),
        ({"at_least": 0.9}, float("nan"), False),
        ({"at_most": 0.9}, float("nan"), False),
    ],
)
def test_stop_when_compares_with_its_bound(stop: dict[str, float], value: float, is_reached: bool) -> None:
    rule = StopWhen(metric="accuracy", **stop)
    assert rule.is_reached({"accuracy": value}) is is_reached
    assert rule.is_reached({"loss": value}) is False
