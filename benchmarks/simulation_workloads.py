"""What `choral simulate` and its peers train: models, clients and local steps, the same for all of them.

Only numpy and torch are needed here, so that an environment in which Choral is not installed can import this module too.

Sources: the digits are those of `client/data/digits.py`. The network and the settings of `pfl-cifar` are those of
pfl-research's own benchmark on CIFAR-10: Granqvist et al., "pfl-research: simulation framework for accelerating research in
Private Federated Learning", NeurIPS 2024. https://arxiv.org/abs/2404.06430
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

_DIGITS_FILE = Path(__file__).resolve().parents[1] / "client" / "data" / "digits_by_writer.npz"
_SEED = 0

ClientData = tuple[torch.Tensor, torch.Tensor]
"""Inputs, float32 (examples, channels, height, width), and classes, int64 (examples,), of one client."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One federation, its model, and the FedAvg rounds it runs; the server puts the mean in the model's place.

    Attributes:
        learner: The model as a run's spec names it.
        build: Returns the model with new weights, as plain torch.
        load: Returns all examples, in random order.
        example_count: Examples of all clients together, dealt to them iid, in sizes that differ by 1 at most.
        cohort_size: Clients that train in a round.
        learning_rate: Of the clients' SGD, which has no momentum.
    """

    name: str
    learner: Mapping[str, Any]
    build: Callable[[], nn.Module]
    load: Callable[[], ClientData]
    example_count: int
    client_count: int
    cohort_size: int
    batch_size: int = 10
    epochs: int = 1
    learning_rate: float = 0.1

    @property
    def steps_per_client(self) -> int:
        """Local steps of a client in a round; the sizes are such that all clients take equally many."""
        return self.epochs * math.ceil(self.example_count / self.client_count / self.batch_size)

    @property
    def steps_per_round(self) -> int:
        """Local steps of the whole cohort in a round."""
        return self.cohort_size * self.steps_per_client

    def clients(self) -> Sequence[ClientData]:
        """Load the examples and deal them: element k is what client k trains on, a view. The same in every process."""
        inputs, targets = self.load()
        return list(zip(inputs.tensor_split(self.client_count), targets.tensor_split(self.client_count), strict=True))


def build_digits_cnn() -> nn.Module:
    """Return the network of 13,706 parameters that the learner `cnn` builds for the digits."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),  # (batch, 16, 4, 4)
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),  # (batch, 32, 2, 2)
        nn.Flatten(),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def build_digits_mlp() -> nn.Module:
    """Return the network of 4,810 parameters that the learner `mlp` builds for the digits."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def build_pfl_cnn() -> nn.Module:
    """Return the network of pfl-research's benchmark on CIFAR-10, 1,626,442 parameters.

    Convolutions without padding, one pooling after both of them, dropout before and after the hidden layer. Weights start
    as torch has them, not Glorot-uniform as there.
    """
    return nn.Sequential(
        nn.Conv2d(3, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),  # (batch, 64, 14, 14)
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(12_544, 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, 10),
    )


@functools.cache
def load_digits() -> ClientData:
    """Read the 1,797 digits, in random order, pixels from 0 to 1."""
    with np.load(_DIGITS_FILE, allow_pickle=False) as arrays:
        order = np.random.default_rng(_SEED).permutation(len(arrays["y"]))
        pixels = arrays["x"][order].reshape(-1, 1, 8, 8).astype(np.float32) / 16.0
        classes = arrays["y"][order].astype(np.int64)
    return torch.from_numpy(pixels), torch.from_numpy(classes)


@functools.cache
def draw_images() -> ClientData:
    """Draw 50,000 images of CIFAR-10's shape, standard normal as its normalised channels, with classes at random."""
    generator = np.random.default_rng(_SEED)
    images = generator.standard_normal((50_000, 3, 32, 32), dtype=np.float32)
    return torch.from_numpy(images), torch.from_numpy(generator.integers(10, size=50_000))


_CNN: Mapping[str, Any] = {"name": "cnn", "channels": [16, 32], "hidden": 64, "classes": 10}
_MLP: Mapping[str, Any] = {"name": "mlp", "inputs": [1, 8, 8], "hidden": [64], "classes": 10}
_PFL_CNN: Mapping[str, Any] = {
    "name": "cnn",
    "image": [3, 32, 32],
    "channels": [[32, 64]],
    "padding": "valid",
    "feature_dropout": 0.25,
    "hidden": 128,
    "dropout": 0.5,
    "classes": 10,
}

WORKLOADS: Mapping[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload("digits-cnn", _CNN, build_digits_cnn, load_digits, 1_797, client_count=100, cohort_size=20),
        Workload("digits-cnn-100", _CNN, build_digits_cnn, load_digits, 1_797, client_count=100, cohort_size=100),
        Workload("digits-mlp", _MLP, build_digits_mlp, load_digits, 1_797, client_count=100, cohort_size=20),
        Workload("pfl-cifar", _PFL_CNN, build_pfl_cnn, draw_images, 50_000, client_count=1_000, cohort_size=50),
    )
}
"""By name."""
