"""Small recurrent networks and ragged data for them, which several files of tests share."""

from typing import Any

import torch
from torch import Tensor

from models import Examples, build_learner
from models.gradient import GradientLearner
from models.learner import PADDING
from models.recurrent import Recurrent
from wire.spec import LocalSpec, Named
from wire.tensors import Layout, State, Vector

CELLS = ["rnn", "lstm", "gru"]
TASKS = ["next_character", "classify", "forecast"]
SGD = Named(name="sgd", learning_rate=0.5)


def recurrent(name: str, **parameters: Any) -> Recurrent:
    learner = build_learner(Named(name=name, **parameters))
    assert isinstance(learner, Recurrent)
    return learner


def fit(learner: GradientLearner, state: State, data: Examples, **local: Any) -> Vector:
    generator = torch.Generator().manual_seed(1)
    return learner.fit(state, data, LocalSpec(optimizer=SGD, **local), generator, lambda fraction: None).vector.copy()


def changes(learner: GradientLearner, state: State, data: Examples, **local: Any) -> State:
    return Layout.of(state).views(fit(learner, state, data, **local))


def codes(rows: list[list[int]]) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [PADDING] * (longest - len(row)) for row in rows])


def series(lengths: list[int], features: int) -> Tensor:
    values = torch.randn(len(lengths), max(lengths), features, generator=torch.Generator().manual_seed(3))
    for row, length in enumerate(lengths):
        values[row, length:] = torch.nan
    return values


def ragged(task: str, features: int) -> Examples:
    """Three sequences of 5, 1 and 3 steps, of codes 0 to 3 or of numbers."""
    inputs = series([5, 1, 3], features) if features else codes([[0, 3, 1, 1, 2], [2], [3, 0, 3]])
    if task == "next_character":
        return Examples(inputs, codes([[3, 1, 1, 2, 0], [1], [0, 3, 3]]))
    if task == "classify":
        return Examples(inputs, torch.tensor([2, 0, 1]))
    return Examples(inputs, torch.tensor([[0.5, -1.0], [0.25, 2.0], [-0.75, 0.0]]))


def tiny(name: str, task: str, features: int = 0, **parameters: Any) -> Recurrent:
    sizes = {"vocabulary": 4, "embedding": 2, "classes": 3, "outputs": 2, "hidden": 3}
    return recurrent(name, task=task, features=features, **(sizes | parameters))
