"""The base of learners of classes: hand-worked loss and accuracy, measures of classes as scikit-learn has them, and who stands on it."""

import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support, roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

from models import MODELS, PADDING, Examples, Learner, LearnerError, ServerOptimizer, build_learner
from models.classifier import Classifier, ClassifierParameters, ClassMeasure, class_measures
from models.gradient import GradientLearner
from wire.spec import LocalSpec, Named
from wire.tensors import State


class Scores(Classifier):
    """Takes its inputs for logits, scaled by one parameter."""

    def build(self) -> nn.Module:
        scale = nn.Linear(1, 1, bias=False)
        nn.init.ones_(scale.weight)
        return nn.Sequential(nn.Unflatten(1, (3, 1)), scale, nn.Flatten())  # (batch, 3)

    def check(self, data: Examples) -> None:
        pass


def test_evaluate_gives_cross_entropy_and_accuracy_of_the_logits() -> None:
    learner = Scores(ClassifierParameters(), torch.device("cpu"))
    odds = torch.tensor([[1.0, 2.0, 1.0], [3.0, 1.0, 0.5], [1.0, 1.0, 6.0]])
    found = learner.evaluate(learner.init(1), Examples(odds.log(), torch.tensor([1, 0, 1])))
    # Of the odds, the right classes have 2 of 4, 3 of 4.5 and 1 of 8; the last one is not the largest.
    assert found.metrics["loss"] == pytest.approx(math.log(2 * 1.5 * 8) / 3)
    assert found.metrics["accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("losses", [Classifier.losses, GradientLearner.losses])
def test_losses_are_those_of_each_example(losses: Callable[[Classifier, Tensor, Tensor], Tensor]) -> None:
    odds = torch.tensor([[1.0, 2.0, 1.0], [3.0, 1.0, 0.5], [1.0, 1.0, 6.0]])
    found = losses(Scores(ClassifierParameters(), torch.device("cpu")), odds.log(), torch.tensor([1, 0, 1]))
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
    made = learner(ClassifierParameters(), torch.device("cpu"))
    losses, gradient = made.losses_and_gradient(outputs, targets, weights)
    leaf = outputs.clone().requires_grad_()
    expected = made.losses(leaf, targets)
    torch.testing.assert_close(losses, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(torch.dot(expected, weights), leaf)[0])


class Reporting(Scores):
    """A classifier that is asked for every measure, in batches of any size."""

    def __init__(self, *metrics: ClassMeasure) -> None:
        super().__init__(ClassifierParameters(metrics=list(metrics)), torch.device("cpu"))


ALL: tuple[ClassMeasure, ...] = ("f1", "auroc", "precision", "recall")


def drawn(count: int, classes: Sequence[int]) -> Examples:
    """Return logits of three classes that know something of the classes given, which are some of them."""
    generator = torch.Generator().manual_seed(3)
    targets = torch.tensor(classes)[torch.randint(len(classes), (count,), generator=generator)]
    return Examples(torch.randn(count, 3, generator=generator) + 0.8 * functional.one_hot(targets, 3), targets)


@pytest.mark.parametrize("count", [40, 700])
def test_measures_of_classes_are_scikit_learns_over_all_examples_at_once(count: int) -> None:
    data = drawn(count, [0, 1, 2])
    learner = Reporting(*ALL)
    found = learner.evaluate(learner.init(1), data).metrics
    true, guessed = data.targets.numpy(), data.inputs.argmax(1).numpy()
    precision, recall, f1, _ = precision_recall_fscore_support(true, guessed, average="macro")
    auroc = roc_auc_score(true, data.inputs.double().softmax(1).numpy(), average="macro", multi_class="ovr")
    expected = {"precision": precision, "recall": recall, "f1": f1, "auroc": auroc}
    assert {name: found[name] for name in ALL} == pytest.approx(expected, abs=1e-6)
    assert set(found) == {"loss", "accuracy", *ALL}


def test_measures_of_a_client_that_lacks_a_class_are_those_of_the_classes_it_has() -> None:
    data = drawn(60, [0, 2])
    never = Examples(data.inputs.clone(), data.targets)
    never.inputs[:, 1] = -9.0
    learner = Reporting(*ALL)
    found = learner.evaluate(learner.init(1), never).metrics
    logits, true = never.inputs[:, [0, 2]].double(), never.targets // 2
    precision, recall, f1, _ = precision_recall_fscore_support(true, logits.argmax(1), average="macro")
    expected = {"precision": precision, "recall": recall, "f1": f1}
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    # Where a class that no example has is likely: its probability is not dealt to the others.
    guessed, scores = learner.evaluate(learner.init(1), data).metrics, data.inputs.double().softmax(1)
    one, other = roc_auc_score(true == 0, scores[:, 0]), roc_auc_score(true == 1, scores[:, 2])
    assert guessed["auroc"] == pytest.approx((one + other) / 2, abs=1e-6)
    # Once it is guessed, it counts, with a precision of 0.
    assert guessed["precision"] < 2 / 3


def test_measures_of_one_class_alone_leave_the_auroc_out() -> None:
    learner = Reporting(*ALL)
    found = learner.evaluate(learner.init(1), drawn(20, [1])).metrics
    assert set(found) == {"loss", "accuracy", "f1", "precision", "recall"}
    assert found["recall"] == pytest.approx(found["accuracy"] / len(set(drawn(20, [1]).inputs.argmax(1).tolist())))


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_metrics_are_an_option_of_each_learner_of_classes(name: str, images: Examples) -> None:
    some = images.select(torch.arange(100))
    shape = {"inputs": [1, 8, 8]} if name == "mlp" else {}
    learner = build_learner(Named(name=name, metrics=["auroc"], **shape))
    found = learner.evaluate(learner.init(1), some).metrics
    assert set(found) == {"loss", "accuracy", "auroc"}
    assert 0 < found["auroc"] < 1
    assert learner.evaluate(learner.init(1), some.select(torch.arange(0))).metrics == {}


@pytest.mark.usefixtures("bases")
@pytest.mark.parametrize(
    "named",
    [
        {"name": "gru", "task": "classify", "hidden": 8},
        {"name": "transformer", "task": "classify", "width": 8, "feed_forward": 8, "layers": 1},
        {"name": "bert", "width": 8, "layers": 1},
        {"name": "hf_sequence_classifier", "base": "all-minilm-l6-v2"},
        {"name": "hf_sequence_classifier", "base": "all-minilm-l6-v2", "features": True},
    ],
    ids=lambda named: "-".join(map(str, named.values())),
)
def test_metrics_are_an_option_of_each_learner_of_classes_of_sequences(named: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(97, 123, (300, 6), generator=generator)
    codes[:150, 4:] = PADDING
    data = Examples(codes, torch.randint(3, (300,), generator=generator))
    learner: Any = build_learner(Named(**named, classes=3, metrics=["f1", "auroc"]))
    learner.check(data)
    found = learner.evaluate(learner.init(1), data).metrics
    with torch.no_grad():
        logits = learner.outputs_of(data)
        one_by_one = torch.cat([learner.outputs(data.select(torch.tensor([row]))) for row in (0, 299)])
    torch.testing.assert_close(logits[[0, 299]], one_by_one)
    true, odds = data.targets.numpy(), logits.double().softmax(1).numpy()
    assert found["accuracy"] == pytest.approx(accuracy_score(true, odds.argmax(1)))
    assert found["f1"] == pytest.approx(f1_score(true, odds.argmax(1), average="macro"), abs=1e-6)
    assert found["auroc"] == pytest.approx(roc_auc_score(true, odds, average="macro", multi_class="ovr"), abs=1e-6)


def taught(learner: Learner, data: Examples, rounds: int) -> State:
    """Return the state after rounds of a single client."""
    state, server, local = learner.init(1), ServerOptimizer(Named(name="sgd", learning_rate=1.0)), LocalSpec()
    for seed in range(rounds):
        found = learner.fit(state, data, local, torch.Generator().manual_seed(seed), lambda fraction: None)
        state = learner.apply(state, learner.contribution_layout.views(found.vector), server, len(data))
    return state


def linear(state: State, inputs: Tensor) -> Tensor:
    """Return W x + b, float64, of a state with one dense layer."""
    (weight,), (bias,) = ([state[name].double() for name in state if name.endswith(end)] for end in ("weight", "bias"))
    return inputs.double() @ weight.T + bias


def near(state: State, inputs: Tensor) -> Tensor:
    """Return how near examples are to the centres of a state, float64."""
    squared = (inputs[:, None] - state["centres"]).double().square().sum(2)  # (examples, centres)
    return torch.exp(-squared / (2 * state["width"].double() ** 2))


def champion(state: State) -> State:
    """Return the layer that a population's fittest is."""
    return {"weight": state["champion"][:640].view(10, 64), "bias": state["champion"][640:]}


RBF: dict[str, Any] = {"name": "rbf_network", "centres": 12, "lloyd_rounds": 2}


@pytest.mark.parametrize(
    ("named", "rounds", "scores"),
    [
        pytest.param({"name": "perceptron"}, 2, linear, id="perceptron"),
        pytest.param(RBF, 7, lambda state, x: linear(state, near(state, x)), id="ridge"),
        pytest.param(
            RBF | {"readout": "gradient"}, 8, lambda state, x: linear(state, near(state, x)).softmax(1), id="gradient"
        ),
        pytest.param(
            {"name": "evolution", "inputs": [64]}, 3, lambda state, x: linear(state, x).softmax(1), id="evolution"
        ),
        pytest.param(
            {"name": "genetic", "inputs": [64]}, 3, lambda state, x: linear(champion(state), x).softmax(1), id="genetic"
        ),
    ],
)
def test_metrics_are_an_option_of_each_learner_of_classes_that_is_no_module(
    named: dict[str, Any], rounds: int, scores: Callable[[State, Tensor], Tensor], digits: Examples
) -> None:
    learner = build_learner(Named(**named, metrics=list(ALL)))
    state = taught(learner, digits.select(torch.arange(1200)), rounds)
    unseen = digits.select(torch.arange(1200, 1797))
    expected, true = scores(state, unseen.inputs).numpy(), unseen.targets
    accuracy = accuracy_score(true, expected.argmax(1))
    precision, recall, f1, _ = precision_recall_fscore_support(
        true, expected.argmax(1), average="macro", zero_division=0
    )
    # Each class by itself: of classes that exclude each other scikit-learn takes only scores that add up to 1.
    auroc = roc_auc_score(functional.one_hot(true), expected, average="macro")
    found = learner.evaluate(state, unseen).metrics
    assert {name: found[name] for name in (*ALL, "accuracy")} == pytest.approx(
        {"precision": precision, "recall": recall, "f1": f1, "auroc": auroc, "accuracy": accuracy}, abs=1e-6
    )
    plain = build_learner(Named(**named)).evaluate(state, unseen).metrics
    assert plain == {name: value for name, value in found.items() if name not in ALL}


def test_metrics_of_a_single_neuron_are_those_of_its_answers_and_its_sum(digits: Examples) -> None:
    rows = ((digits.targets == 3) | (digits.targets == 8)).nonzero().flatten()
    data = Examples(digits.inputs[rows], (digits.targets[rows] == 8).long())
    learner = build_learner(Named(name="perceptron", classes=2, metrics=list(ALL)))
    for state in (learner.init(1), taught(learner, data.select(torch.arange(20)), 1)):
        sums = linear(state, data.inputs).squeeze(1)
        # A sum of 0 fires, as all of them do at first.
        true, answers = data.targets, (sums >= 0).long()
        precision, recall, f1, _ = precision_recall_fscore_support(true, answers, average="macro", zero_division=0)
        expected = {"precision": precision, "recall": recall, "f1": f1, "auroc": roc_auc_score(true, sums)}
        found = learner.evaluate(state, data).metrics
        assert {name: found[name] for name in ALL} == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_auroc_is_of_the_order_of_scores_whatever_their_size(scale: float) -> None:
    data = drawn(60, [0, 1, 2])
    found = class_measures(["auroc"], data.inputs.argmax(1), data.inputs.double() * scale, data.targets)
    expected = roc_auc_score(functional.one_hot(data.targets), data.inputs.numpy(), average="macro")
    assert found["auroc"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("named", "where"),
    [
        ({"name": "lstm"}, "where task is next_character"),
        ({"name": "transformer"}, "where task is translate"),
        ({"name": "bert"}, "where classes are not given"),
    ],
)
def test_metrics_of_classes_where_there_are_none_are_refused(named: dict[str, Any], where: str) -> None:
    with pytest.raises(LearnerError, match=rf"metrics must be left out {where}, got \['f1'\]\.$"):
        build_learner(Named(**named, metrics=["f1"]))


def test_metrics_that_nobody_measures_are_refused() -> None:
    with pytest.raises(LearnerError, match=r"metrics\.0 must be 'f1', 'auroc', 'precision' or 'recall', got 'f2'\."):
        build_learner(Named(name="mlp", metrics=["f2"]))


def test_evaluation_without_metrics_imports_no_torchmetrics() -> None:
    script = """
import sys, torch
from models import Examples, build_learner
from wire.spec import Named
learner = build_learner(Named(name="mlp"))
learner.evaluate(learner.init(1), Examples(torch.zeros(2, 64), torch.zeros(2, dtype=torch.int64)))
assert "torchmetrics" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
