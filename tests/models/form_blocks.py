"""Digits by form block, about a writer each: 11 blocks are clients, three are nobody's and measure.

What is trained is played as a run by the serial engine, whose clients and coordinator are the real ones' code.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from client.data import LocalData, load_local
from models import Examples
from server.records import RoundRecord
from simulation.serial import run_serially
from tests.server.cohorts import opened
from tests.simulation.federations import made
from wire.spec import validate_spec

CLIENTS = range(11)
UNSEEN = (11, 12, 13)


def block(*numbers: int) -> Examples:
    """Return the digits of form blocks: float32 (digits, 1, 8, 8), and their classes."""
    return load_local(f"digits,blocks={'|'.join(map(str, numbers))}", 0.0, 0).training


def blocks() -> dict[str, Examples]:
    """Return the digits of every client."""
    return {f"block-{number}": block(number) for number in CLIENTS}


async def played(
    learner: Mapping[str, Any], parts: Mapping[str, Examples], folder: Path, seed: int = 0, **changes: Any
) -> Sequence[RoundRecord]:
    """Play a run of clients that hold `parts`, all of them in every round, and return its rounds; the last one is measured on `UNSEEN`."""
    document: dict[str, Any] = {"name": "blocks", "seed": seed, "learner": dict(learner), "rounds": 20, **changes}
    document |= {"cohort": {"size": len(parts)}, "evaluate": {"every": document["rounds"], "on": "coordinator"}}
    sites = {name: LocalData(name, part, part.select(torch.arange(0))) for name, part in parts.items()}
    async with opened(made(folder)) as store:
        run = await run_serially(validate_spec(document), sites, store, folder / "run", block(*UNSEEN))
        return await store.rounds(run.run_id)
