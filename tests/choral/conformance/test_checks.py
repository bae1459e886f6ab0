"""Each check catches a learner that breaks its rule, and only the rules that it breaks."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from choral.conformance import CHECKS, Case, Nonconforming
from client.data import load, parse_source
from models import Contribution, DataError, Evaluation, Examples, ServerOptimizer, tasks
from models.classifier import Classifier, ClassifierParameters
from models.zoo import MODELS, Model
from wire.spec import LocalSpec, parse_spec
from wire.tensors import State

DIGITS = load(parse_source("digits,blocks=0"))
SPEC = parse_spec(
    "{name: a, learner: {name: subject}, rounds: 2, cohort: {size: 2}, "
    "local: {batch_size: 16, optimizer: {name: sgd, learning_rate: 0.2}}}"
)


class Sound(Classifier):
    """Softmax regression on digits, which breaks no rule."""

    def build(self) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def check(self, data: Examples) -> None:
        tasks.check_features("subject", data, (1, 8, 8))
        tasks.check_classes("subject", data, 10)


class DrawsInInit(Sound):
    """Draws its initial state from whatever torch's generator gives."""

    def init(self, seed: int) -> State:
        return {name: tensor.detach() for name, tensor in self.build().state_dict().items()}


class KeepsMomentum(Sound):
    """Adds a part of the change that it brought last, whoever's that was."""

    last: Any = 0.0

    def fit(self, *arguments: Any) -> Contribution:
        found = super().fit(*arguments)
        self.last = found.vector + 0.5 * self.last
        return Contribution(self.last, found.example_count, found.metrics)


class ChangesTheState(Sound):
    """Trains the state that it was handed."""

    def fit(
        self,
        state: State,
        data: Examples,
        local: LocalSpec,
        generator: torch.Generator,
        report: Callable[[float], None],
    ) -> Contribution:
        found = super().fit(state, data, local, generator, report)
        next(iter(state.values())).add_(1)
        return found


class ReportsNothing(Sound):
    """Cannot be stopped."""

    def fit(
        self,
        state: State,
        data: Examples,
        local: LocalSpec,
        generator: torch.Generator,
        report: Callable[[float], None],
    ) -> Contribution:
        return super().fit(state, data, local, generator, lambda fraction: None)


class Hoards(Sound):
    """Keeps something of every batch, until it is gone itself."""

    def batch_loss(self, batch: Examples) -> Tensor:
        self.hoard = [*getattr(self, "hoard", []), torch.zeros(5000)]
        return super().batch_loss(batch)


class DeclaresAnything(Sound):
    """Declares more memory than any machine has."""

    def step_bytes(self, data: Examples, local: LocalSpec) -> int:
        return 1 << 60


class LearnsNothing(Sound):
    """Goes up the slope."""

    def apply(self, state: State, mean: State, server: ServerOptimizer, weight_total: int) -> State:
        return super().apply(state, {name: -change for name, change in mean.items()}, server, weight_total)


class TakesAnything(Sound):
    """Looks at no data."""

    def check(self, data: Examples) -> None:
        """Take it."""


class EvaluatesAtRandom(Sound):
    """Measures with noise from a generator that goes on."""

    generator = torch.Generator().manual_seed(1)

    def evaluate(self, state: State, data: Examples, training: Examples | None = None) -> Evaluation:
        found = super().evaluate(state, data, training)
        noise = float(torch.rand((), generator=self.generator))
        return Evaluation(found.example_count, {name: value + noise for name, value in found.metrics.items()})


class MeasuresNaN(Sound):
    """Reports what is no number."""

    def measure(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        return {"accuracy": torch.tensor(float("nan"))}


class KnowsItsClient(Sound):
    """Takes another step than `fit` does whenever it is not asked first: what a simulation and a loop do differently."""

    count = 0

    def fit(self, *arguments: Any) -> Contribution:
        found = super().fit(*arguments)
        type(self).count += 1
        return Contribution(found.vector * np.float32(type(self).count), found.example_count, found.metrics)


class NeedsMemory(Sound):
    """Has another initial state where it has no memory."""

    def init(self, seed: int) -> State:
        return super().init(seed + (self._device.type == "meta"))


class HalfPrecision(Sound):
    """Has parameters that a float32 vector does not bring back as they are."""

    def init(self, seed: int) -> State:
        return {name: tensor.double() / 3 for name, tensor in super().init(seed).items()}


@pytest.fixture
def case_for(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[Any]], Case]:
    def make(learner: type[Any]) -> Case:
        monkeypatch.setitem(MODELS, "subject", Model(learner, ClassifierParameters))
        return Case(SPEC, DIGITS)

    return make


def broken_rules(case: Case) -> set[str]:
    found = set()
    for rule, check in CHECKS.items():
        try:
            check(case)
        except (Nonconforming, DataError):
            found.add(rule)
    return found


def test_sound_learner_passes_all(case_for: Callable[[type[Any]], Case]) -> None:
    assert broken_rules(case_for(Sound)) == set()


BROKEN = [
    (DrawsInInit, "init follows from the seed", "`init` must leave torch's generator alone"),
    (KeepsMomentum, "fit is a function", "must not depend on what the learner did before"),
    (KeepsMomentum, "order of clients does not matter", "must not depend on the order"),
    (ChangesTheState, "fit is a function", "must leave the state unchanged"),
    (ReportsNothing, "fit can be stopped", "must report 1 at its end"),
    (Hoards, "memory is as declared", "`fit` must hold at most 2 times the .* bytes of `step_bytes`, got"),
    (DeclaresAnything, "memory is as declared", "`fit` must hold at least 0.1 times"),
    (LearnsNothing, "loss falls", "must lower the loss, got"),
    (TakesAnything, "bad data is refused", "inputs with one axis more must be refused"),
    (EvaluatesAtRandom, "evaluate is a function", "must give the same again"),
    (MeasuresNaN, "evaluate is a function", "metric accuracy must be finite, got nan"),
    (KnowsItsClient, "one client is central training", "must end with the model of central training"),
    (KnowsItsClient, "deployment is simulation", "must end with the model of the serial simulation"),
    (NeedsMemory, "is built without memory", "same state on the meta device"),
    (HalfPrecision, "state survives the vector", "tensors must be float32"),
]


@pytest.mark.parametrize(("learner", "rule", "message"), BROKEN)
def test_check_catches_who_breaks_its_rule(
    learner: type[Any], rule: str, message: str, case_for: Callable[[type[Any]], Case]
) -> None:
    with pytest.raises(Nonconforming, match=message):
        CHECKS[rule](case_for(learner))


def test_each_check_can_fail() -> None:
    assert {rule for _, rule, _ in BROKEN} == set(CHECKS)
