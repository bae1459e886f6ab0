"""The base of learners of classes: hand-worked loss and accuracy, and who stands on it."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models import MODELS, Examples
from models.classifier import Classifier
from models.gradient import GradientLearner, GradientParameters


class Scores(Classifier):
    """Takes its inputs for logits, scaled by one parameter."""

    def build(self) -> nn.Module:
        scale = nn.Linear(1, 1, bias=False)
        nn.init.ones_(scale.weight)
        return nn.Sequential(nn.Unflatten(1, (3, 1)), scale, nn.Flatten())  # (batch, 3)

    def check(self, data: Examples) -> None:
        pass


def test_evaluate_gives_cross_entropy_and_accuracy_of_the_logits() -> None:
    learner = Scores(GradientParameters(), torch.device("cpu"))
    odds = torch.tensor([[1.0, 2.0, 1.0], [3.0, 1.0, 0.5], [1.0, 1.0, 6.0]])
    found = learner.evaluate(learner.init(1), Examples(odds.log(), torch.tensor([1, 0, 1])))
    # Of the odds, the right classes have 2 of 4, 3 of 4.5 and 1 of 8; the last one is not the largest.
    assert found.metrics["loss"] == pytest.approx(math.log(2 * 1.5 * 8) / 3)
    assert found.metrics["accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("losses", [Classifier.losses, GradientLearner.losses])
def test_losses_are_those_of_each_example(losses: Callable[[Classifier, Tensor, Tensor], Tensor]) -> None:
    odds = torch.tensor([[1.0, 2.0, 1.0], [3.0, 1.0, 0.5], [1.0, 1.0, 6.0]])
    found = losses(Scores(GradientParameters(), torch.device("cpu")), odds.log(), torch.tensor([1, 0, 1]))
    assert found.tolist() == pytest.approx([math.log(2), math.log(1.5), math.log(8)])


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_learners_of_classes_have_no_loss_or_measures_of_their_own(name: str) -> None:
    learner = MODELS[name].learner
    assert issubclass(learner, Classifier)
    assert (learner.loss, learner.measure) == (Classifier.loss, Classifier.measure)


class Smoothed(Scores):
    """A classifier with a loss of its own."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets, label_smoothing=0.2)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets, label_smoothing=0.2, reduction="none")


@pytest.mark.parametrize("learner", [Scores, Smoothed])
def test_losses_and_gradient_are_autograds_own(learner: type[Classifier]) -> None:
    torch.manual_seed(1)
    outputs, targets, weights = torch.randn(4, 3), torch.tensor([2, 0, 0, 1]), torch.tensor([0.5, 0.25, 0.25, 0.0])
    made = learner(GradientParameters(), torch.device("cpu"))
    losses, gradient = made.losses_and_gradient(outputs, targets, weights)
    leaf = outputs.clone().requires_grad_()
    expected = made.losses(leaf, targets)
    torch.testing.assert_close(losses, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(torch.dot(expected, weights), leaf)[0])
