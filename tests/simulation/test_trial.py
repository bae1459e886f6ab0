"""Learners of a user's own: the vectorized engine takes those that it trains as the serial one does, `auto` another engine for the rest."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import choral
from models import MODELS, Examples, mlp
from models.gradient import GradientLearner
from models.zoo import Model
from simulation.serial import SerialCohort
from simulation.trial import reason_by_trial
from simulation.vectorized import VectorizedCohort
from tests.simulation.federations import MLP, federation, play, sites
from wire.errors import SpecError

OWN = MLP | {"name": "own"}
RANDOM = "learner own fails for many clients at once: RuntimeError: vmap: called random operation"
BRANCH = "learner own fails for many clients at once: RuntimeError: vmap: It looks like you're attempting"
OTHER = "learner own comes to other numbers where a batch is filled up"

Between = Callable[[nn.Module, Tensor], Tensor]


class Net(nn.Module):
    """Two dense layers, and what a user does between them."""

    def __init__(self, between: Between) -> None:
        super().__init__()
        self.first, self.last, self._between = nn.Linear(64, 12), nn.Linear(12, 10), between

    def forward(self, images: Tensor) -> Tensor:
        """Images (batch, 1, 8, 8) to logits (batch, 10)."""
        found: Tensor = self.last(self._between(self, self.first(images.flatten(1))))
        return found


class Own(mlp.MLP):
    """A learner of a user's own."""

    between: Between

    def build(self) -> nn.Module:
        return Net(self.between)


class Contrast(mlp.MLP):
    """A learner whose loss is no mean over the examples."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().loss(outputs, targets) + outputs.std(0, correction=0).sum()

    losses = GradientLearner.losses
    losses_and_gradient = GradientLearner.losses_and_gradient


class Root(mlp.MLP):
    """A learner that measures what is no mean over the examples."""

    def measure(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        return {"root": self.loss(outputs, targets).sqrt()}


def twice_if_positive(net: nn.Module, hidden: Tensor) -> Tensor:
    return hidden * 2 if hidden.sum() > 0 else hidden


REFUSED = [
    pytest.param(lambda net, hidden: functional.dropout(hidden, 0.3, net.training), RANDOM, id="draws"),
    pytest.param(lambda net, hidden: hidden + torch.randn(12), RANDOM, id="noise"),
    pytest.param(twice_if_positive, BRANCH, id="branches"),
    pytest.param(lambda net, hidden: hidden - hidden.mean(0), OTHER, id="mixes-the-batch"),
]


def register(monkeypatch: pytest.MonkeyPatch, learner: type[mlp.MLP]) -> None:
    monkeypatch.setitem(MODELS, "own", Model(learner, mlp.MLPParameters))


@pytest.mark.parametrize(("between", "reason"), REFUSED)
def test_module_that_would_not_agree_is_refused_and_auto_takes_another_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, between: Between, reason: str
) -> None:
    monkeypatch.setattr(Own, "between", staticmethod(between), raising=False)
    register(monkeypatch, Own)
    configured = federation(OWN, rounds=2)
    with pytest.raises(SpecError, match=rf"^Run spec: the vectorized engine cannot train it: {reason}.*\. Take proc"):
        VectorizedCohort(configured, sites())
    setting: dict[str, Any] = {"clients": 8, "partition": "power-law", "device": "cpu", "workers": 1}
    found = choral.simulate(configured, tmp_path / "auto", engine="auto", **setting)
    assert found.engine == "serial"
    assert found.engine_reason.startswith(reason)
    expected = choral.simulate(configured, tmp_path / "serial", engine="serial", **setting)
    assert found.run.model_sha256 == expected.run.model_sha256


@pytest.mark.parametrize("learner", [Contrast, Root])
def test_loss_or_measure_that_is_no_mean_is_refused(monkeypatch: pytest.MonkeyPatch, learner: type[mlp.MLP]) -> None:
    register(monkeypatch, learner)
    with pytest.raises(SpecError, match=OTHER):
        VectorizedCohort(federation(OWN), sites())


async def test_module_with_a_forward_of_its_own_agrees_with_serial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Own, "between", staticmethod(lambda net, hidden: hidden.relu().clamp(max=2.0)), raising=False)
    register(monkeypatch, Own)
    configured = federation(OWN, rounds=2)
    expected, _ = await play(SerialCohort(configured, sites()), configured, tmp_path / "serial")
    found, _ = await play(VectorizedCohort(configured, sites()), configured, tmp_path / "vectorized")
    torch.testing.assert_close(torch.from_numpy(found), torch.from_numpy(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [1, 4])
def test_trial_of_fewer_examples_takes_some_twice(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    register(monkeypatch, Root)
    few = sites()["site-5"].training.select(torch.arange(count))
    assert (reason_by_trial(federation(OWN), few) == "") == (count == 1)


def test_learner_that_fails_by_itself_is_left_to_say_so_where_it_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, Root)
    wrong = Examples(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))
    assert reason_by_trial(federation(OWN), wrong) == ""
