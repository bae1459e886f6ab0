"""English pronunciations for the tests of translators, and how to train on them."""

from typing import Any

import torch

from client.data import load, parse_source
from models import Contribution, Examples, Learner
from wire.spec import LocalSpec, Named
from wire.tensors import Layout, State

ADAM = Named(name="adam", learning_rate=0.003)


def part(letters: str = "", held_out: float = 0.2) -> tuple[Examples, Examples]:
    """Return the pairs of some letters, or all, in a random order that is always the same: to train on, and held out."""
    options = f",letters={'|'.join(letters)}" if letters else ""
    data = load(parse_source(f"pronunciations{options}"))
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    middle = round(len(data) * (1 - held_out))
    return data.select(order[:middle]), data.select(order[middle:])


def fit(learner: Learner, state: State, data: Examples, seed: int = 1, **local: Any) -> Contribution:
    generator = torch.Generator().manual_seed(seed)
    return learner.fit(state, data, LocalSpec(**local), generator, lambda fraction: None)


def moved(state: State, contribution: Contribution) -> State:
    layout = Layout.of(state)
    return layout.views(layout.flatten(state) + contribution.vector)
