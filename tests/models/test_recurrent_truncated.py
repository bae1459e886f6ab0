"""Truncated backpropagation through time: steps by hand, hidden states that go on, and gradients that do not."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from models import Examples
from tests.models.recurrences import CELLS, SGD, changes, fit, ragged, tiny
from wire.spec import LocalSpec, Named
from wire.tensors import State


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize(("task", "features"), [("next_character", 0), ("classify", 0), ("forecast", 2)])
@pytest.mark.parametrize("truncate", [5, 6])
def test_truncation_behind_the_end_is_plain_training_to_the_bit(
    name: str, task: str, features: int, truncate: int
) -> None:
    data, local = ragged(task, features), {"epochs": 3, "batch_size": 2, "proximal_mu": 0.1, "clip_norm": 1.0}
    plain = tiny(name, task, features, layers=2, dropout=0.2)
    chunked = tiny(name, task, features, layers=2, dropout=0.2, truncate=truncate)
    state = plain.init(5)
    assert fit(chunked, state, data, **local).tobytes() == fit(plain, state, data, **local).tobytes()


def two_chunks(name: str, state: State, data: Examples, is_carried: bool) -> State:
    """Train on three steps and then on the next two, with torch's layers in a plain loop, and return the changes."""
    learner = tiny(name, "next_character")
    module = learner._module
    module.load_state_dict(dict(state))
    hidden: Any = None
    for start, stop in ((0, 3), (3, 5)):
        steps = module.get_submodule("embedding")(data.inputs[:, start:stop])
        read, after = module.get_submodule(name)(steps, hidden)
        logits = module.get_submodule("dense")(read).transpose(1, 2)
        loss = functional.cross_entropy(logits, data.targets[:, start:stop])
        gradients = torch.autograd.grad(loss, list(module.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(module.parameters(), gradients, strict=True):
                parameter.add_(gradient, alpha=-0.5)
        if is_carried:
            hidden = (after[0].detach(), after[1].detach()) if name == "lstm" else after.detach()
    return {key: value.detach() - state[key] for key, value in module.state_dict().items()}


@pytest.mark.parametrize("name", CELLS)
def test_chunks_take_a_step_each_and_carry_the_hidden_state_without_its_gradient(name: str) -> None:
    learner = tiny(name, "next_character", truncate=3)
    data = Examples(torch.tensor([[0, 3, 1, 1, 2], [2, 2, 0, 1, 3]]), torch.tensor([[3, 1, 1, 2, 0], [2, 0, 1, 3, 3]]))
    state = learner.init(5)
    found = changes(learner, state, data)
    carried, fresh = (two_chunks(name, state, data, is_carried) for is_carried in (True, False))
    for key, change in found.items():
        torch.testing.assert_close(change, carried[key], rtol=1e-5, atol=1e-7)
    assert any(not torch.allclose(change, fresh[key], rtol=1e-3, atol=1e-5) for key, change in found.items())


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("task", ["classify", "forecast"])
def test_gradient_does_not_reach_the_chunk_before(name: str, task: str) -> None:
    # Codes 0 and 1 are in the first chunk alone, in which nothing ends.
    inputs = torch.tensor([[0, 1, 2, 3], [1, 0, 3, 3]])
    targets = torch.tensor([0, 1]) if task == "classify" else torch.ones(2, 2)
    reached = {}
    for truncate in (0, 2):
        learner = tiny(name, task, truncate=truncate)
        moved = changes(learner, learner.init(5), Examples(inputs, targets))["embedding.weight"]
        reached[truncate] = moved.abs().sum(dim=1) > 0
    assert reached[0].tolist() == [True, True, True, True]
    assert reached[2].tolist() == [False, False, True, True]


def test_hidden_state_of_chunks_without_targets_goes_on() -> None:
    learner = tiny("lstm", "classify", truncate=2)
    state = learner.init(5)
    texts = [torch.tensor([[first, 1, 2, 3, 2, 3]]) for first in (0, 3)]
    moved = [fit(learner, state, Examples(text, torch.tensor([0]))).tobytes() for text in texts]
    assert moved[0] != moved[1]


def test_loss_of_chunks_is_their_mean_over_targets() -> None:
    # A learning rate of zero keeps the model, so chunks of 2, 2 and 1 of 5 steps give what an evaluation gives.
    learner, data = tiny("gru", "next_character", truncate=2), ragged("next_character", 0)
    state, generator = learner.init(5), torch.Generator().manual_seed(1)
    local = LocalSpec(optimizer=Named(name="sgd", learning_rate=0.0))
    metrics = learner.fit(state, data, local, generator, lambda _: None).metrics
    assert metrics["train_loss"] == pytest.approx(learner.evaluate(state, data).metrics["loss"], rel=1e-5)


def test_sequences_are_learned_in_the_chunk_in_which_they_end() -> None:
    """Chunks of 2 of sequences of 5, 1 and 3 steps: one ends in each, so three steps are taken, on one sequence each."""
    learner, data = tiny("gru", "classify", truncate=2), ragged("classify", 0)
    state = learner.init(5)
    found = changes(learner, state, data, batch_size=3)
    module = tiny("gru", "classify")._module
    module.load_state_dict(dict(state))
    hidden, losses = None, []
    for start, row, last in ((0, 1, 0), (2, 2, 0), (4, 0, 0)):
        steps = module.get_submodule("embedding")(data.inputs[:, start : start + 2].clamp(min=0))
        read, after = module.get_submodule("gru")(steps, hidden)
        loss = functional.cross_entropy(module.get_submodule("dense")(read[row, last])[None], data.targets[row, None])
        losses.append(float(loss.detach()))
        gradients = torch.autograd.grad(loss, list(module.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(module.parameters(), gradients, strict=True):
                parameter.add_(gradient, alpha=-0.5)
        hidden = after.detach()
    for key, value in module.state_dict().items():
        torch.testing.assert_close(found[key], value - state[key], rtol=1e-5, atol=1e-7)
    generator = torch.Generator().manual_seed(1)
    metrics = learner.fit(state, data, LocalSpec(batch_size=3, optimizer=SGD), generator, lambda _: None).metrics
    assert metrics["train_loss"] == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("name", CELLS)
def test_chunks_in_bfloat16_compute_with_the_weights_of_the_step_before(name: str) -> None:
    data = Examples(torch.tensor([[0, 3, 1, 1, 2, 0]]), torch.tensor([[3, 1, 1, 2, 0, 1]]))
    found = {}
    for precision in ("float32", "bfloat16"):
        learner = tiny(name, "next_character", truncate=2, precision=precision)
        found[precision] = fit(learner, learner.init(5), data, epochs=5)
    distance = np.linalg.norm(found["float32"] - found["bfloat16"])
    assert 0 < distance < 0.02 * np.linalg.norm(found["float32"])
