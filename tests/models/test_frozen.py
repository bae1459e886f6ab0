"""Frozen tensors: they are neither trained nor travel, and modules that have nothing else rest."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models import Contribution, DataError, Examples, Learner, LearnerError, ServerOptimizer
from models.cnn import CNN, CNNParameters
from models.gradient import GradientLearner
from models.mlp import MLP, MLPParameters
from wire.spec import LocalSpec, Named
from wire.tensors import Layout, State

CPU = torch.device("cpu")
FIRST = frozenset({"1.weight", "1.bias"})
NORM = frozenset({"2.weight", "2.bias", "2.running_mean", "2.running_var", "2.num_batches_tracked"})


class Half(MLP):
    """Flatten, dense, batch norm, ReLU, dropout, dense: the first dense layer and its norm are frozen."""

    def frozen_names(self) -> frozenset[str]:
        return FIRST | NORM


class First(MLP):
    """Flatten, dense, ReLU, dense: the first dense layer is frozen."""

    def frozen_names(self) -> frozenset[str]:
        return FIRST


class All(MLP):
    def frozen_names(self) -> frozenset[str]:
        return frozenset(self._module.state_dict())


class Nested(GradientLearner):
    """A frozen part with batch norm and dropout inside, beside dropout and a layer that are not part of it."""

    parameters: MLPParameters

    def build(self) -> nn.Module:
        features = nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        return nn.Sequential(features, nn.Dropout(0.5), nn.Linear(8, 10))

    def frozen_names(self) -> frozenset[str]:
        return frozenset(name for name in self._module.state_dict() if name.startswith("0."))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets)

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {}

    def check(self, data: Examples) -> None:
        pass


def fit(learner: Learner, state: State, data: Examples, **local: Any) -> Contribution:
    return learner.fit(state, data, LocalSpec(**local), torch.Generator().manual_seed(1), lambda fraction: None)


def half() -> Half:
    return Half(MLPParameters(hidden=[16], batch_norm=True, dropout=0.2), CPU)


def module_of(learner: GradientLearner) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in learner._module.state_dict().items()}


def test_frozen_tensors_do_not_travel() -> None:
    learner = half()
    names = ["5.weight", "5.bias"]
    assert list(learner.init(5)) == names
    assert [entry.name for entry in learner.contribution_layout.entries] == names
    assert Layout.of(learner.init(5)) == learner.contribution_layout


def test_init_of_what_is_not_frozen_is_that_of_the_whole_module() -> None:
    whole = MLP(MLPParameters(hidden=[16], batch_norm=True, dropout=0.2), CPU).init(5)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in half().init(5).items())


@pytest.mark.parametrize(
    "local",
    [
        pytest.param({}, id="sgd"),
        pytest.param({"proximal_mu": 0.5, "clip_norm": 1.0}, id="proximal-clipped"),
        pytest.param({"optimizer": Named(name="adamw", weight_decay=0.5)}, id="weight-decay"),
        pytest.param({"optimizer": Named(name="sgd", momentum=0.9, weight_decay=0.1)}, id="momentum"),
        pytest.param({"optimizer": Named(name="lbfgs"), "batch_size": 40}, id="lbfgs"),
    ],
)
def test_fit_leaves_frozen_tensors_as_they_are_to_the_bit(digits: Examples, local: dict[str, Any]) -> None:
    learner, data = half(), digits.select(torch.arange(40))
    before, state = module_of(learner), learner.init(5)
    contribution = fit(learner, state, data, **{"epochs": 3, "batch_size": 8} | local)
    after = module_of(learner)
    assert all(torch.equal(before[name], after[name]) for name in FIRST | NORM)
    assert contribution.vector.shape == (16 * 10 + 10,)
    assert np.count_nonzero(contribution.vector) > 100
    learner.evaluate(state, data)
    assert all(torch.equal(before[name], tensor) for name, tensor in module_of(learner).items() if name in FIRST | NORM)


def test_fit_of_the_last_layer_is_softmax_regression_on_frozen_features(digits: Examples) -> None:
    learner = First(MLPParameters(hidden=[16]), CPU)
    data, state = digits.select(torch.arange(200)), learner.init(5)
    fixed = module_of(learner)
    features = nn.functional.linear(data.inputs, fixed["1.weight"], fixed["1.bias"]).relu()  # (batch, 16)
    plain = MLP(MLPParameters(inputs=[16], hidden=[]), CPU)
    local = {"epochs": 3, "batch_size": 16, "clip_norm": 0.5, "proximal_mu": 0.1}
    renamed = {"1.weight": state["3.weight"], "1.bias": state["3.bias"]}
    expected = fit(plain, renamed, Examples(features, data.targets), **local)
    # Features of a batch and those of all examples are sums made in another order.
    np.testing.assert_allclose(fit(learner, state, data, **local).vector, expected.vector, rtol=1e-4, atol=1e-6)


def test_modules_with_nothing_but_frozen_tensors_rest_while_others_train(digits: Examples) -> None:
    learner = Nested(MLPParameters(), CPU)
    modes: list[list[bool]] = []
    features, dropout, dense = learner._module.children()
    features.register_forward_hook(
        lambda *_: modes.append([part.training for part in (*features.modules(), dropout, dense)])
    )
    state, data = learner.init(5), digits.select(torch.arange(17))
    fit(learner, state, data, batch_size=16)
    learner.evaluate(state, data)
    assert modes == [[False] * 4 + [True] * 2] * 2 + [[False] * 6]


def test_frozen_batch_norm_takes_batches_of_one(digits: Examples) -> None:
    fractions: list[float] = []
    learner, data = half(), digits.select(torch.arange(17))
    learner.fit(learner.init(5), data, LocalSpec(batch_size=16), torch.Generator(), fractions.append)
    assert fractions == [0.5, 1.0]
    assert np.isfinite(fit(learner, learner.init(5), data, batch_size=1).vector).all()
    with pytest.raises(DataError, match="must have at least 2 examples, got 1"):
        fit(MLP(learner.parameters, CPU), MLP(learner.parameters, CPU).init(5), data, batch_size=1)


def test_apply_and_evaluate_need_only_what_travels(digits: Examples) -> None:
    learner = half()
    state = learner.init(5)
    kept = {name: tensor.clone() for name, tensor in state.items()}
    mean = {name: torch.full_like(tensor, 0.25) for name, tensor in state.items()}
    moved = learner.apply(state, mean, ServerOptimizer(Named(name="sgd", learning_rate=1.0)), 1)
    assert list(moved) == list(kept)
    assert all(torch.equal(tensor, kept[name] + 0.25) for name, tensor in moved.items())
    assert learner.evaluate(moved, digits) == half().evaluate(moved, digits)


def test_learner_with_frozen_tensors_builds_on_the_meta_device() -> None:
    learner = Half(MLPParameters(hidden=[16], batch_norm=True, dropout=0.2), torch.device("meta"))
    assert learner.contribution_layout == half().contribution_layout
    assert all(torch.equal(tensor, half().init(5)[name]) for name, tensor in learner.init(5).items())


def test_learner_of_images_keeps_frozen_filters(images: Examples) -> None:
    class Filters(CNN):
        def frozen_names(self) -> frozenset[str]:
            return frozenset(name for name in self._module.state_dict() if name.startswith("0."))

    learner = Filters(CNNParameters(channels=[4]), CPU)
    before = module_of(learner)["0.weight"]
    contribution = fit(learner, learner.init(5), images.select(torch.arange(40)))
    assert torch.equal(module_of(learner)["0.weight"], before)
    assert contribution.vector.any()


def test_learner_with_everything_frozen_is_refused() -> None:
    with pytest.raises(
        LearnerError, match=r"^Learner all: at least one parameter must be trained, got 4 tensors frozen\.$"
    ):
        All(MLPParameters(), CPU)
