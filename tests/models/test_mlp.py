"""The multilayer perceptron: its layers against the formula, and federations of it against pooled training."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from models import Examples, build_learner
from models.gradient import GradientLearner
from server.checkpoints import checkpoint_path
from server.model import read_checkpoint
from tests.models.form_blocks import CLIENTS, block, blocks, played
from wire.spec import LocalSpec, Named
from wire.tensors import Layout, State, Vector

SOFTMAX = {"name": "mlp", "inputs": [1, 8, 8], "hidden": []}
MLP = {"name": "mlp", "inputs": [1, 8, 8], "hidden": [64]}
CNN = {"name": "cnn", "image": [1, 8, 8]}
ALL_AT_ONCE = 10_000
"""A batch size that no client reaches."""


def learner_of(named: Mapping[str, Any]) -> GradientLearner:
    learner = build_learner(Named.model_validate(dict(named)))
    assert isinstance(learner, GradientLearner)
    return learner


@pytest.mark.parametrize("depth", [0, 1, 5, 20])
def test_layers_of_any_depth_are_what_the_formula_says(digits: Examples, depth: int) -> None:
    """Dense, then norm, then activation, in each hidden layer; dropout is not there in an evaluation."""
    widths = [8 + layer for layer in range(depth)]
    learner = learner_of({"name": "mlp", "hidden": widths, "activation": "tanh", "batch_norm": True, "dropout": 0.3})
    state = dict(learner.init(1))
    generator = torch.Generator().manual_seed(1)
    for name in state:
        if "running" in name:
            state[name] = torch.rand(state[name].shape, generator=generator) + 0.5
    hidden = digits.inputs
    for layer in range(depth):
        # Each hidden layer is four modules: dense, norm, activation, dropout; the first module of all makes vectors.
        dense, norm = f"{1 + 4 * layer}", f"{2 + 4 * layer}"
        hidden = hidden @ state[f"{dense}.weight"].T + state[f"{dense}.bias"]  # (examples, hidden)
        scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + 1e-5).sqrt()
        hidden = ((hidden - state[f"{norm}.running_mean"]) * scale + state[f"{norm}.bias"]).tanh()
    last = f"{1 + 4 * depth}"
    logits = hidden @ state[f"{last}.weight"].T + state[f"{last}.bias"]  # (examples, classes)
    found = learner.evaluate(state, digits).metrics
    assert found["loss"] == pytest.approx(float(functional.cross_entropy(logits, digits.targets)), rel=1e-4)
    assert found["accuracy"] == pytest.approx(float((logits.argmax(1) == digits.targets).double().mean()), abs=2e-3)


@pytest.fixture
def in_float64() -> Iterator[None]:
    """Let what is built be float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def unequal(data: Examples) -> list[Examples]:
    """Deal the data to five clients of unequal sizes, sorted by class."""
    order = data.targets.argsort(stable=True)
    return [data.select(rows) for rows in torch.tensor_split(order, [1, 50, 400, 1000])]


def descended(learner: GradientLearner, state: State, data: Examples, steps: int) -> dict[str, Tensor]:
    """Return the parameters after full-batch steps, at the module's own precision: a contribution is rounded to float32."""
    local = LocalSpec(epochs=steps, batch_size=ALL_AT_ONCE, optimizer=Named(name="sgd", learning_rate=0.5))
    learner.fit(state, data, local, torch.Generator().manual_seed(1), lambda fraction: None)
    return {name: tensor.clone() for name, tensor in learner._module.state_dict().items()}


@pytest.mark.parametrize(
    "named",
    [
        pytest.param({"name": "mlp", "hidden": []}, id="softmax"),
        pytest.param({"name": "mlp", "hidden": [64]}, id="mlp"),
    ],
)
def test_federated_full_batch_descent_is_pooled_descent(
    digits: Examples, named: dict[str, Any], in_float64: None
) -> None:
    """FedSGD: one full-batch step a client, weighted by its examples, is one step on all the data, here for 50 rounds in float64.

    Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017, section 2.
    """
    data = Examples(digits.inputs.double(), digits.targets)
    learner = learner_of(named)
    start = learner.init(5)
    assert all(tensor.dtype == torch.float64 for tensor in start.values())
    state: State = start
    for _ in range(50):
        fits = [(len(part), descended(learner, state, part, 1)) for part in unequal(data)]
        state = {name: sum((count / len(data)) * after[name] for count, after in fits) for name in state}  # type: ignore[misc] # of tensors
    expected = descended(learner, start, data, 50)
    for name, tensor in state.items():
        assert (tensor - expected[name]).abs().max() < 3e-15
        assert (tensor - start[name]).abs().max() > 0.05


async def model_of(named: Mapping[str, Any], parts: Mapping[str, Examples], folder: Path, **changes: Any) -> Vector:
    records = await played(named, parts, folder, **changes)
    layout = Layout.of(learner_of(named).init(0))
    return read_checkpoint(checkpoint_path(folder / "run", records[-1].number), layout).vector


async def test_federated_full_batch_descent_through_the_service_is_pooled_descent_in_float32(tmp_path: Path) -> None:
    """The same with the coordinator's own rounds, grid and server step: float32's rounding is all that is left between them."""
    local = {"epochs": 1, "batch_size": ALL_AT_ONCE, "optimizer": {"name": "sgd", "learning_rate": 0.5}}
    named = MLP | {"activation": "tanh"}
    federated = await model_of(named, blocks(), tmp_path / "federated", rounds=50, local=local)
    pooled = await model_of(named, {"all": block(*CLIENTS)}, tmp_path / "pooled", rounds=50, local=local)
    layout = Layout.of(learner_of(named).init(0))
    start = layout.flatten(learner_of(named).init(0))
    assert np.abs(federated - pooled).max() < 1e-6
    assert np.abs(federated - start).max() > 0.1


async def accuracy_of(named: Mapping[str, Any], parts: Mapping[str, Examples], folder: Path, **changes: Any) -> float:
    return (await played(named, parts, folder, **changes))[-1].metrics["accuracy"]


@dataclass(frozen=True)
class Row:
    """A row of the table of form blocks: what a client alone, the federation and pooled data must reach, after equally many epochs."""

    named: dict[str, Any]
    learning_rate: float
    epochs: int
    alone: float
    federated: float
    pooled: float


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "row",
    [
        pytest.param(Row(SOFTMAX, 0.5, 1, 0.70, 0.85, 0.88), id="softmax-1-epoch"),
        pytest.param(Row(SOFTMAX, 0.5, 5, 0.70, 0.88, 0.88), id="softmax-5-epochs"),
        pytest.param(Row(MLP, 0.2, 1, 0.70, 0.85, 0.90), id="mlp-1-epoch"),
        pytest.param(Row(MLP, 0.2, 5, 0.70, 0.88, 0.90), id="mlp-5-epochs"),
        pytest.param(Row(CNN, 0.1, 1, 0.55, 0.77, 0.92), id="cnn-1-epoch"),
    ],
)
async def test_federation_of_form_blocks_comes_near_its_reference(tmp_path: Path, row: Row) -> None:
    """References for 1 and 5 epochs a round: softmax alone 75.2, federated 87.4 and 90.0, pooled 91.2 %; MLP 74.1, 87.1, 89.9, 91.9 %.

    Of the convolutional network, whose rate nobody tuned: alone 71.3, federated with 1 epoch a round 81.5, pooled 94.0 %. Here, with
    seeds 0 and 1, the federation has 80.1 and 85.3, pooled data 94.5, a client alone 62.5 after an epoch a round, and 74.8 after five.
    """
    local = {"epochs": row.epochs, "batch_size": 16, "optimizer": {"name": "sgd", "learning_rate": row.learning_rate}}
    parts = blocks()
    alone = [await accuracy_of(row.named, {name: part}, tmp_path / name, local=local) for name, part in parts.items()]
    federated = await accuracy_of(row.named, parts, tmp_path / "federated", local=local)
    pooled = await accuracy_of(row.named, {"all": block(*CLIENTS)}, tmp_path / "pooled", local=local)
    assert row.alone < np.mean(alone) < federated - 0.08
    assert federated > row.federated
    assert pooled > row.pooled
