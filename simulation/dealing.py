"""The client of each example, drawn by each scheme."""

import numpy as np
import numpy.typing as npt

from simulation.dirichlet import Counts, draw_over_classes, draw_over_clients
from simulation.schemes import Dirichlet, Shards

Owners = npt.NDArray[np.int64]
"""The client of each example, (examples,), from 0."""


def deal_at_random(sizes: Counts, generator: np.random.Generator) -> Owners:
    """Deal examples to clients of the given sizes, (clients,), whatever the examples are."""
    return generator.permutation(np.repeat(np.arange(len(sizes)), sizes))


def deal_groups(groups: npt.NDArray[np.int64], client_count: int, generator: np.random.Generator) -> Owners:
    """Deal whole groups, equally many to each client; with as many clients as groups, group k goes to client k.

    Args:
        groups: The group of each example, (examples,), from 0 and without gaps.
        client_count: At most the number of groups.
        generator: Source of the draw.
    """
    group_count = int(groups.max()) + 1
    clients = np.arange(group_count) % client_count
    return (generator.permutation(clients) if client_count < group_count else clients)[groups]


def deal_shards(
    scheme: Shards, classes: npt.NDArray[np.int64], client_count: int, generator: np.random.Generator
) -> Owners:
    """Sort examples by their `classes`, (examples,), cut them into shards, and deal these."""
    shard_count = client_count * scheme.per_client
    shards = np.repeat(np.arange(shard_count), equal_sizes(len(classes), shard_count))
    clients = generator.permutation(shard_count) // scheme.per_client
    owners = np.empty(len(classes), dtype=np.int64)
    owners[_shuffled_by_class(classes, generator)] = clients[shards]
    return owners


def deal_by_shares(
    scheme: Dirichlet, classes: npt.NDArray[np.int64], client_count: int, generator: np.random.Generator
) -> Owners:
    """Draw how many examples of each class a client gets, and deal them. `classes` is (examples,), from 0 without gaps."""
    stock = np.bincount(classes)
    if scheme.over == "classes":
        sizes = equal_sizes(len(classes), client_count)
        counts = draw_over_classes(stock, sizes, scheme.alpha, generator)
    else:
        counts = draw_over_clients(stock, client_count, scheme.alpha, generator)
    owners = np.empty(len(classes), dtype=np.int64)
    owners[_shuffled_by_class(classes, generator)] = np.repeat(
        np.tile(np.arange(client_count), len(stock)), counts.T.ravel()
    )
    return owners


def equal_sizes(total: int, part_count: int) -> Counts:
    """Return sizes that differ by 1 at most and have the sum `total`, int64 (parts,), the larger ones first."""
    sizes = np.full(part_count, total // part_count, dtype=np.int64)
    sizes[: total % part_count] += 1
    return sizes


def power_law_sizes(total: int, part_count: int, exponent: float, minimum: int) -> Counts:
    """Return sizes with the sum `total`, int64 (parts,): `minimum`, and of the rest a part that goes as 1 / (k + 1)^exponent.

    Whole numbers by largest remainders, so no size is further than 1 from its exact value, and sizes never rise.
    """
    weights = np.arange(1, part_count + 1, dtype=np.float64) ** -exponent
    exact = (total - minimum * part_count) * weights / weights.sum()
    sizes: Counts = np.floor(exact).astype(np.int64) + minimum
    missing = total - int(sizes.sum())
    sizes[np.argsort(np.floor(exact) - exact, kind="stable")[:missing]] += 1
    return sizes


def _shuffled_by_class(classes: npt.NDArray[np.int64], generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return all positions, ascending by class and in random order within each."""
    order = generator.permutation(len(classes))
    return order[np.argsort(classes[order], kind="stable")]
