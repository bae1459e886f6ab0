"""What many clients do in one round, laid out before it begins: which examples each takes in which step.

Every draw is the one that `models.gradient.GradientLearner.fit` makes from the same generator, so that a client sees the batches that it
would see on its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from wire.seeds import derive_generator
from wire.spec import LocalSpec

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps of a block of clients, who are in the order of their step counts, most first.

    Attributes:
        client_ids: Their identities.
        sizes: Examples of each, (clients,).
        rows: Example of each place in each batch, (steps, clients, batch). Places beyond a batch's end repeat its first example.
        counts: Examples in each batch, (steps, clients); 0 after a client's last step.
        last_counts: The same in the last epoch, and 0 before it.
        dropout_seeds: Seed of what a client draws in its steps, (clients,).
    """

    client_ids: tuple[str, ...]
    sizes: Counts
    rows: npt.NDArray[np.int64]
    counts: Counts
    last_counts: Counts
    dropout_seeds: tuple[int, ...]

    def active(self, step: int) -> int:
        """Return how many clients take this step: they are the first ones."""
        return int(np.count_nonzero(self.counts[step]))


@dataclass(frozen=True, slots=True)
class Round:
    """Whose draws these are: the run's seed and the round's number."""

    seed: int
    number: int


def blocks_of(client_ids: Sequence[str], most: int) -> list[list[str]]:
    """Cut clients, in their order, into blocks of at most `most`, 1 or more, and about equal in number."""
    count = -(-len(client_ids) // most)
    bounds = [len(client_ids) * block // count for block in range(count + 1)] if count else []
    return [list(client_ids[start:end]) for start, end in pairwise(bounds)]


def draw_plan(client_ids: Sequence[str], ranges: Mapping[str, range], local: LocalSpec, of: Round) -> Plan:
    """Draw the batches of a block.

    Args:
        client_ids: The clients; the plan has them in another order.
        ranges: Where each client's examples lie among those of all.
        local: Epochs and batch size.
        of: Whose draws.
    """
    client_ids = sorted(client_ids, key=lambda client_id: (-len(ranges[client_id]), client_id))
    sizes = np.array([len(ranges[client_id]) for client_id in client_ids], dtype=np.int64)
    epoch_steps = -(-sizes // local.batch_size)
    steps, width = int(local.epochs * epoch_steps.max()), int(min(local.batch_size, sizes.max()))
    rows = np.zeros((steps, len(client_ids), width), dtype=np.int64)
    counts = np.zeros((steps, len(client_ids)), dtype=np.int64)
    last_counts = np.zeros_like(counts)
    seeds = []
    for place, client_id in enumerate(client_ids):
        generator = derive_generator(of.seed, "fit", of.number, client_id)
        seeds.append(int(torch.randint(1 << 62, (), generator=generator)))
        own, each = ranges[client_id], int(epoch_steps[place])
        lengths = np.full(each, width, dtype=np.int64)
        lengths[-1] = len(own) - width * (each - 1)
        for epoch in range(local.epochs):
            order = torch.randperm(len(own), generator=generator).numpy() + own.start
            batches = np.repeat(order[::width][:, None], width, axis=1)  # (batches, batch)
            batches.reshape(-1)[: len(own)] = order
            rows[epoch * each : (epoch + 1) * each, place] = batches
            counts[epoch * each : (epoch + 1) * each, place] = lengths
        last_counts[(local.epochs - 1) * each : local.epochs * each, place] = lengths if local.epochs else 0
    return Plan(tuple(client_ids), sizes, rows, counts, last_counts, tuple(seeds))
