"""Small federations of digits for the tests of engines, and how to play them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from client.data import LocalData, load_local
from server.records import RoundRecord
from simulation.cohort import SimulatedCohort
from tests.server.cohorts import Scene, opened
from wire.spec import RunSpec, validate_spec
from wire.tensors import Vector

MLP = {"name": "mlp", "inputs": [1, 8, 8], "hidden": [16], "classes": 10}
SOFTMAX = {"name": "mlp", "inputs": [1, 8, 8], "hidden": [], "classes": 10}
CNN = {"name": "cnn", "channels": [4, 6], "classes": 10}
SGD = {"name": "sgd", "learning_rate": 0.1}
SIZES = (1, 7, 8, 23, 23, 30)
"""Examples of the clients, for batches of 8: one, one short, one full, and three with a short last batch."""


def sites(sizes: tuple[int, ...] = SIZES, held_out: int = 5) -> dict[str, LocalData]:
    """Return digits of two blocks, dealt to clients of these sizes one after another."""
    digits, start, parts = load_local("digits,blocks=0|1", 0.0, 0).training, 0, {}
    for number, size in enumerate(sizes):
        middle, end = start + size, start + size + held_out
        training = digits.select(torch.arange(start, middle))
        parts[f"site-{number}"] = LocalData("memory", training, digits.select(torch.arange(middle, end)))
        start = end
    return parts


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def federation(learner: Mapping[str, Any] = MLP, rounds: int = 5, size: int = len(SIZES), **local: Any) -> RunSpec:
    given = {"epochs": 1, "batch_size": 8, "optimizer": SGD} | local
    cohort = {"size": size, "deadline_seconds": 60, "retries": 0}
    return validate_spec(
        {"name": "tiny", "seed": 5, "learner": learner, "rounds": rounds, "cohort": cohort, "local": given}
    )


async def play(cohort: SimulatedCohort, configured: RunSpec, folder: Path) -> tuple[Vector, Sequence[RoundRecord]]:
    async with opened(made(folder)) as store:
        scene = Scene(store, cohort, folder / "run")
        try:
            await scene.play(configured)
        finally:
            cohort.close()
        return scene.model(configured, configured.rounds).vector, await store.rounds("run")
