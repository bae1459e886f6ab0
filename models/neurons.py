"""Rosenblatt's perceptron: neurons with a threshold that learn from their mistakes alone, without any gradient.

Two classes need one neuron, which fires (class 1) when its weighted sum reaches its threshold -b. Each example (x, t) in turn:

    o = step(w . x + b),    w <- w + (t - o) x,    b <- b + (t - o)

where t - o is 0 unless the neuron was wrong. Of more classes each has a neuron, and the largest sum wins (no step: all compete). A mistake
moves two neurons: that of the true class y towards the example, that of the class o, which won instead, away from it:

    w_y <- w_y + x,    w_o <- w_o - x,    and so with b_y and b_o

If some weights separate two classes, the rule finds such weights after at most (R / margin)^2 mistakes. From weights of zero the length of
a step would change the length of w and b alone and no answer, so it is 1.

Federated, a client contributes the change of its weights, and their mean goes on: "iterative parameter mixing", which also ends where all
examples are right if the pooled ones can be separated.

Sums are no probabilities, and their size means nothing. What they say beyond the answer is an order, of which the AUROC is: by the sum of a
class's neuron examples are ranked from the least to the most of that class; by a single neuron's from class 0 to class 1.

Source: Rosenblatt, "The perceptron: a probabilistic model for information storage and organization in the brain", Psychological Review
65(6), 1958, https://doi.org/10.1037/h0042519; Novikoff, "On convergence proofs on perceptrons", 1962 (the number of mistakes); Crammer and
Singer, "Ultraconservative online algorithms for multiclass problems", JMLR 3, 2003 (more classes),
https://www.jmlr.org/papers/v3/crammer03a.html; McDonald, Hall and Mann, "Distributed training strategies for the structured perceptron",
NAACL 2010, figure 3 and theorem 3 (mixing), https://aclanthology.org/N10-1069/.
"""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from models import tasks
from models.activations import Step
from models.classifier import ClassMeasuresParameters, class_measures
from models.learner import Contribution, Examples, Report
from models.optimizers import ServerOptimizer
from models.settings import DESCENT_SETTINGS
from wire.evaluation import Evaluation
from wire.spec import LocalSpec
from wire.tensors import Layout, State


class PerceptronParameters(ClassMeasuresParameters):
    """Parameters of the learner `perceptron`."""

    inputs: list[Annotated[int, Field(ge=1)]] = Field(default=[64], min_length=1, max_length=4)
    """Shape of one example; more than one axis is flattened."""
    classes: int = Field(default=10, ge=2)
    """Number of classes; 2 are told apart by one neuron with a threshold."""


class Perceptron:
    """Perceptron: a classifier that learns from its mistakes alone.

    The rule is exactly the online one, in the order that the generator gives. A batch is what is scored at once: all its examples before
    the first mistake were right, so they change nothing; those after it are scored again with the new weights. `batch_size` therefore
    decides how fast it is, not what comes out.
    """

    task = "classify without a gradient"
    data = "vectors, small images"
    unused_settings = DESCENT_SETTINGS

    def __init__(self, parameters: PerceptronParameters, device: torch.device) -> None:
        self.parameters = parameters
        self._device = device
        neurons = 1 if parameters.classes == 2 else parameters.classes
        self._shapes = {"weight": (neurons, math.prod(parameters.inputs)), "bias": (neurons,)}
        self._layout = Layout.of({name: torch.empty(shape, device="meta") for name, shape in self._shapes.items()})

    @property
    def contribution_layout(self) -> Layout:
        """The layout of the state."""
        return self._layout

    def init(self, seed: int) -> State:
        """Return weights of zero, whatever the seed: the rule needs no chance to begin."""
        return {name: torch.zeros(shape) for name, shape in self._shapes.items()}

    def check(self, data: Examples) -> None:
        """Check that examples have the shape `inputs` and targets are classes."""
        tasks.check_features("perceptron", data, tuple(self.parameters.inputs))
        tasks.check_classes("perceptron", data, self.parameters.classes)

    @torch.no_grad()
    def fit(
        self, state: State, data: Examples, local: LocalSpec, generator: torch.Generator, report: Report
    ) -> Contribution:
        """Show every example `local.epochs` times, each time in a new order, and return the change of the weights.

        Raises:
            DataError: There are no examples. Nothing was changed.
        """
        tasks.check_examples(data)
        weight, bias = (state[name].to(self._device, copy=True) for name in self._shapes)
        inputs, mistakes = data.inputs.flatten(1), 0
        starts = range(0, len(data), local.batch_size)
        for epoch in range(local.epochs):
            order, mistakes = torch.randperm(len(data), generator=generator).to(self._device), 0
            for number, start in enumerate(starts, 1):
                rows = order[start : start + local.batch_size]
                mistakes += self._learn(weight, bias, inputs[rows], data.targets[rows])
                report((epoch + number / len(starts)) / local.epochs)
        change = {"weight": weight.cpu() - state["weight"], "bias": bias.cpu() - state["bias"]}
        metrics = {"train_loss": mistakes / len(data)} if local.epochs else {}
        return Contribution(self._layout.flatten(change), len(data), metrics)

    def step_bytes(self, data: Examples, local: LocalSpec) -> int:
        """Tell the bytes of the weights and their change, a batch with its sums, and the order of the examples."""
        count, (neurons, features) = min(local.batch_size, len(data)), self._shapes["weight"]
        return 4 * (2 * self._layout.size + count * (features + neurons)) + 8 * (len(data) + 2 * count)

    def apply(self, state: State, mean: State, server: ServerOptimizer, weight_total: int) -> State:
        """Take the server step on the mean change of the weights."""
        return server.step(state, mean)

    @torch.no_grad()
    def evaluate(self, state: State, data: Examples, training: Examples | None = None) -> Evaluation:
        """Return the accuracy, for a loss what the rule counts, the part of the examples that are mistaken, and what `metrics` asks for."""
        if not len(data):
            return Evaluation(0, {})
        weight, bias = (state[name].to(self._device) for name in self._shapes)
        sums = functional.linear(data.inputs.flatten(1), weight, bias).cpu()  # (examples, neurons)
        answers, targets = _answers(sums), data.targets.cpu()
        wrong = int((answers != targets).sum())
        scores = torch.cat([-sums, sums], 1) if len(bias) == 1 else sums  # (examples, classes)
        measures = class_measures(self.parameters.metrics, answers, scores, targets)
        return Evaluation(len(data), {"loss": wrong / len(data), "accuracy": 1 - wrong / len(data), **measures})

    def _learn(self, weight: Tensor, bias: Tensor, inputs: Tensor, targets: Tensor) -> int:
        """Go through a batch in its order, change `weight` and `bias` at each mistake, and return how many there were.

        Args:
            weight: (neurons, features).
            bias: (neurons,).
            inputs: (batch, features).
            targets: (batch,).
        """
        start, mistakes = 0, 0
        while start < len(inputs):
            answers = _answers(functional.linear(inputs[start:], weight, bias))
            wrong = (answers != targets[start:]).nonzero()
            if not len(wrong):
                break
            first = int(wrong[0])
            push = self._firing(targets[start + first]) - self._firing(answers[first])  # (neurons,)
            weight.addr_(push, inputs[start + first])
            bias.add_(push)
            start, mistakes = start + first + 1, mistakes + 1
        return mistakes

    def _firing(self, target: Tensor) -> Tensor:
        """Return which neurons fire for a class, 0 or 1, float32 (neurons,)."""
        is_alone = self.parameters.classes == 2
        return target.float()[None] if is_alone else functional.one_hot(target, self.parameters.classes).float()


def _answers(sums: Tensor) -> Tensor:
    """Return the class that the neurons answer by their sums, (batch, neurons), for each example: int64 (batch,)."""
    return Step()(sums).squeeze(1).long() if sums.shape[1] == 1 else sums.argmax(1)
