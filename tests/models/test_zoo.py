from typing import Any

import pytest
import torch

from models import MODELS, DataError, Examples, LearnerError, build_learner, check_spec
from models.activations import ACTIVATIONS
from models.gradient import GradientLearner
from models.zoo import Model
from wire.errors import SpecError
from wire.spec import Named, RunSpec, parse_spec
from wire.tensors import Layout


def spec_of(learner: str = "{name: mlp}", more: str = "", rounds: int = 1) -> RunSpec:
    return parse_spec(f"name: a\nlearner: {learner}\nrounds: {rounds}\ncohort: {{size: 2}}\n{more}")


def has_defaults(model: Model) -> bool:
    return not any(field.is_required() for field in model.parameters.model_fields.values())


WITH_DEFAULTS = [name for name, model in MODELS.items() if has_defaults(model)]


def test_only_models_of_others_need_to_be_told_which() -> None:
    assert set(MODELS) - set(WITH_DEFAULTS) == {"hf_causal_lm", "hf_sequence_classifier"}


def test_errors_name_each_learner_as_a_spec_does() -> None:
    followers = {name: model.learner for name, model in MODELS.items() if issubclass(model.learner, GradientLearner)}
    assert len(followers) > 15
    assert {name: learner.name for name, learner in followers.items()} == {name: name for name in followers}


@pytest.mark.parametrize("name", WITH_DEFAULTS)
def test_build_with_defaults_gives_a_learner_with_a_summary(name: str) -> None:
    state = build_learner(Named(name=name)).init(1)
    assert 50 < Layout.of(state).size < 1_000_000
    assert MODELS[name].summary.endswith(".")


@pytest.mark.parametrize(
    ("named", "message"),
    [
        pytest.param(
            {"name": "mpl"}, r"^Learner: name must be one of .*cnn, .*lstm, .*mlp.*, got 'mpl'\.$", id="unknown"
        ),
        pytest.param({"name": "mlp", "hiden": [3]}, r"^Learner mlp: hiden is not a key that exists here\.$", id="key"),
        pytest.param({"name": "mlp", "hidden": 3}, r"Learner mlp: hidden must be a valid list, got 3\.", id="list"),
        pytest.param(
            {"name": "mlp", "hidden": [0]}, r"hidden\.0 must be greater than or equal to 1, got 0\.", id="width"
        ),
        pytest.param({"name": "mlp", "inputs": []}, r"inputs must have at least 1 item .*, got \[\]\.", id="no-inputs"),
        pytest.param(
            {"name": "mlp", "activation": "swish"}, r"activation must be 'relu', .*, got 'swish'\.", id="activation"
        ),
        pytest.param({"name": "mlp", "dropout": 1.0}, r"dropout must be less than 1, got 1\.0\.", id="dropout"),
        pytest.param(
            {"name": "mlp", "classes": 1}, r"classes must be greater than or equal to 2, got 1\.", id="classes"
        ),
        pytest.param({"name": "mlp", "batch_norm": 1}, r"batch_norm must be a valid boolean, got 1\.", id="boolean"),
        pytest.param({"name": "cnn", "kernel": 4}, r"^Learner cnn: kernel must be odd, got 4\.$", id="even-kernel"),
        pytest.param(
            {"name": "cnn", "image": [1, 8, 3]},
            r"image must be large enough for 2 blocks, got \[8, 3\]\.",
            id="small-image",
        ),
        pytest.param(
            {"name": "cnn", "image": [1, 5, 8], "channels": [[4, 8]], "kernel": 3, "padding": "valid"},
            r"image must be large enough for 1 blocks, got \[5, 8\]\.",
            id="small-image-without-padding",
        ),
        pytest.param(
            {"name": "cnn", "image": [1, 1, 3]},
            r"image must be large enough for 2 blocks, got \[1, 3\]\.",
            id="short-series",
        ),
        pytest.param({"name": "cnn", "channels": [[]]}, r"channels\.0.+ must have at least 1 item", id="empty-block"),
        pytest.param(
            {"name": "cnn", "image": [8, 8]}, r"image must have at least 3 items .*, got \[8, 8\]\.", id="axes"
        ),
        pytest.param(
            {"name": "cnn", "pooling": "min"}, r"pooling must be 'max' or 'average', got 'min'\.", id="pooling"
        ),
        pytest.param({"name": "lstm", "layers": 17}, r"layers must be less than or equal to 16, got 17\.", id="layers"),
        pytest.param({"name": "lstm", "vocabulary": 1}, r"vocabulary must be greater .* 2, got 1\.", id="vocabulary"),
        pytest.param(
            {"name": "mlp", "hidden": [2**62]}, r"Learner mlp: the model must fit into memory, got: ", id="size"
        ),
        pytest.param(
            {"name": "mlp", "inputs": [2**40] * 4}, r"Learner mlp: the model must fit into memory", id="overflow"
        ),
    ],
)
def test_build_parameter_that_breaks_a_rule_is_refused(named: dict[str, Any], message: str) -> None:
    with pytest.raises(LearnerError, match=message):
        build_learner(Named(**named))


@pytest.mark.parametrize(
    ("name", "parameter", "choices"),
    [
        ("mlp", "activation", list(ACTIVATIONS)),
        ("cnn", "activation", list(ACTIVATIONS)),
        ("cnn", "pooling", ["max", "average"]),
    ],
)
def test_build_each_choice_gives_another_model(name: str, parameter: str, choices: list[str], images: Examples) -> None:
    shape = {"inputs": [1, 8, 8]} if name == "mlp" else {}
    learners = [build_learner(Named(name=name, **{parameter: choice}, **shape)) for choice in choices]
    losses = {learner.evaluate(learner.init(1), images).metrics["loss"] for learner in learners}
    assert len(losses) == len(choices)


@pytest.mark.parametrize(
    ("learner", "more", "message"),
    [
        pytest.param("{name: mpl}", "", r"Learner: name must be one of", id="learner"),
        pytest.param("{name: mlp, classes: 1}", "", r"Learner mlp: classes must be", id="parameter"),
        pytest.param(
            "{name: mlp}",
            "local: {optimizer: {name: sdg}}",
            r"^Run spec: local\.optimizer: Optimizer: name must be",
            id="local",
        ),
        pytest.param(
            "{name: mlp}",
            "server: {optimizer: {name: lbfgs, max_iter: 5}}",
            r"^Run spec: server\.optimizer: Optimizer lbfgs",
            id="server",
        ),
        pytest.param("{name: mlp, hidden: [4611686018427387904]}", "", r"must fit into memory", id="size"),
    ],
)
def test_check_spec_what_only_the_zoo_knows_is_refused(learner: str, more: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        check_spec(spec_of(learner, more))


@pytest.mark.parametrize("name", WITH_DEFAULTS)
def test_check_spec_of_each_default_passes_and_draws_nothing(name: str) -> None:
    before = torch.get_rng_state()
    check_spec(spec_of(f"{{name: {name}}}", rounds=20))
    assert torch.equal(torch.get_rng_state(), before)


def test_check_spec_of_a_large_model_takes_no_memory() -> None:
    # 4 TiB of parameters, which no machine that runs this has.
    check_spec(spec_of("{name: mlp, hidden: [1048576, 1048576]}"))


@pytest.mark.parametrize(
    ("named", "data", "message"),
    [
        pytest.param(
            Named(name="mlp"),
            Examples(torch.zeros(2, 63), torch.zeros(2, dtype=torch.int64)),
            r"Learner mlp: examples must have shape \(64,\) float32, got \(63,\) float32\.",
            id="mlp-shape",
        ),
        pytest.param(
            Named(name="mlp", classes=3),
            Examples(torch.zeros(2, 64), torch.tensor([2, 3])),
            r"Learner mlp: classes must be 0 to 2, got 3 in example 1\.",
            id="mlp-class",
        ),
        pytest.param(
            Named(name="cnn"),
            Examples(torch.zeros(2, 64), torch.zeros(2, dtype=torch.int64)),
            r"Learner cnn: examples must have shape \(1, 8, 8\) float32, got \(64,\) float32\.",
            id="cnn-shape",
        ),
        pytest.param(
            Named(name="cnn"),
            Examples(torch.zeros(2, 1, 8, 8), torch.zeros(2)),
            r"Learner cnn: classes must be int64, got float32\.",
            id="cnn-class",
        ),
        pytest.param(
            Named(name="lstm"),
            Examples(torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)),
            r"Learner lstm: examples must be windows of text, got shape \(5,\)\.",
            id="lstm-shape",
        ),
        pytest.param(
            Named(name="lstm", vocabulary=8),
            Examples(torch.tensor([[0, 8]]), torch.tensor([[0, 0]])),
            r"Learner lstm: codes must be 0 to 7, got 8 in example 0\.",
            id="lstm-code",
        ),
        pytest.param(
            Named(name="lstm", vocabulary=8),
            Examples(torch.zeros(1, 2), torch.zeros(1, 2)),
            r"Learner lstm: codes must be int64, got float32\.",
            id="lstm-type",
        ),
    ],
)
def test_check_data_of_another_kind_is_refused(named: Named, data: Examples, message: str) -> None:
    with pytest.raises(DataError, match=message):
        build_learner(named).check(data)


def test_cnn_of_blocks_of_several_convolutions_has_the_layers_counted_by_hand() -> None:
    # The network of pfl-research's benchmark on CIFAR-10. Sides: 32 - 2 - 2 = 28, halved 14.
    named = Named(name="cnn", image=[3, 32, 32], channels=[[32, 64]], padding="valid", hidden=128, dropout=0.5)
    counts = {name: tensor.numel() for name, tensor in build_learner(named, "meta").init(0).items()}
    convolutions = (3 * 9 + 1) * 32 + (32 * 9 + 1) * 64
    assert sum(counts.values()) == convolutions + (14 * 14 * 64 + 1) * 128 + 129 * 10 == 1_626_442
