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
from torch import Tensor

from wire.seeds import client_seeds
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
    step = np.arange(steps)[:, None]
    counts = np.where(
        step < local.epochs * epoch_steps, np.minimum(width, sizes - width * (step % epoch_steps)), 0
    )  # (steps, clients)
    last_counts = np.where(step < (local.epochs - 1) * epoch_steps, 0, counts)
    seeds, orders = _draws(client_ids, sizes, local.epochs, of)
    starts = np.array([ranges[client_id].start for client_id in client_ids], dtype=np.int64)
    rows = np.zeros((steps, len(client_ids), width), dtype=np.int64)
    places = np.repeat(np.arange(len(client_ids)), sizes)  # (examples,)
    batches, slots = np.divmod(np.arange(sizes.sum()) - np.repeat(sizes.cumsum() - sizes, sizes), width)
    for epoch, order in enumerate(orders):
        rows[epoch * epoch_steps[places] + batches, places, slots] = order + starts[places]
    rows = np.where(np.arange(width) < counts[:, :, None], rows, rows[:, :, :1])
    return Plan(tuple(client_ids), sizes, rows, counts, last_counts, seeds)


def _draws(client_ids: Sequence[str], sizes: Counts, epochs: int, of: Round) -> tuple[tuple[int, ...], list[Counts]]:
    """Return each client's seed of dropout, and for each epoch the orders of the clients' own examples, one after another."""
    seeds: list[int] = []
    seed_of, generator = client_seeds(of.seed, "fit", of.number), torch.Generator()
    seed = torch.empty((), dtype=torch.int64)
    orders: list[list[Tensor]] = [[] for _ in range(epochs)]
    for client_id, size in zip(client_ids, sizes.tolist(), strict=True):
        generator.manual_seed(seed_of(client_id))
        # As torch.randint would, in half the time.
        seeds.append(int(seed.random_(0, 1 << 62, generator=generator)))
        for order in orders:
            order.append(torch.randperm(size, generator=generator))
    return tuple(seeds), [torch.cat(order).numpy() for order in orders]
