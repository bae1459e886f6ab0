"""Handwritten digits by form block, and the training of one client on them, for the tests of learners without targets."""

import torch
from torch import Tensor
from torch.nn import functional

from client.data import load, parse_source
from models import Examples, Learner
from models.optimizers import ServerOptimizer
from wire.spec import LocalSpec, Named
from wire.tensors import State

FED_AVG = Named(name="sgd", learning_rate=1.0)


def digits(*blocks: int) -> Examples:
    return load(parse_source(f"digits,blocks={'|'.join(map(str, blocks))}"))


def unlabelled(inputs: Tensor) -> Examples:
    return Examples(inputs, torch.empty(len(inputs), 0, dtype=torch.int64))


def independent_pixels(training: Tensor, unseen: Tensor) -> float:
    """Return the Bernoulli log-likelihood of pixels that know nothing of each other, each with its mean over `training`."""
    means = training.mean(0).clamp(1e-3, 1 - 1e-3).expand_as(unseen)
    return -float(functional.binary_cross_entropy(means, unseen, reduction="none").flatten(1).sum(1).mean())


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def after_round(learner: Learner, state: State, data: Examples, seed: int, /, **local: object) -> State:
    """Return the state after a round of one client."""
    found = learner.fit(state, data, LocalSpec.model_validate(local), generator(seed), lambda fraction: None)
    mean = learner.contribution_layout.views(found.vector)
    return learner.apply(state, mean, ServerOptimizer(FED_AVG), found.example_count)


def trained(learner: Learner, data: Examples, seed: int = 1, /, **local: object) -> State:
    """Return a new state after one round."""
    return after_round(learner, learner.init(seed), data, seed, **local)


def trained_slower(learner: Learner, data: Examples, phases: list[tuple[int, float]], batch_size: int = 64) -> State:
    """Return a new state after so many epochs of Adam at a learning rate, and so many at the next."""
    state: State = learner.init(5)
    for seed, (epochs, rate) in enumerate(phases):
        adam = Named(name="adam", learning_rate=rate)
        state = after_round(learner, state, data, seed, epochs=epochs, batch_size=batch_size, optimizer=adam)
    return state
