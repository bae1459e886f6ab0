"""Partitions: one data set dealt to clients, every example to exactly one, the same for the same seed in any process (law L8)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from client.data import LocalData, split
from client.data.fields import shown
from client.data.keys import Keys
from models.errors import DataError
from models.learner import Examples
from simulation import dealing
from simulation.dealing import Owners
from simulation.dirichlet import Counts
from simulation.errors import PartitionError
from simulation.schemes import ByKey, Dirichlet, PowerLaw, Scheme, Shards, parse_scheme
from wire.seeds import derive_seed

Rows = npt.NDArray[np.int64]
"""Positions of examples in their data set, (examples,)."""

DRAW_LIMIT = 100
"""Times that a partition is drawn, at most, until every client has the minimum."""


@dataclass(frozen=True, slots=True)
class Partition:
    """Which examples each client holds.

    Attributes:
        scheme: How they were dealt.
        seed: Of every draw.
        rows: Each client's examples, int64, ascending; every example of the data set once.
    """

    scheme: Scheme
    seed: int
    rows: tuple[Rows, ...]

    @property
    def client_ids(self) -> list[str]:
        """Identities such as "client-0007", in the order of `rows`, which is that of the alphabet too."""
        width = max(4, len(str(len(self.rows) - 1)))
        return [f"client-{number:0{width}}" for number in range(len(self.rows))]

    @property
    def sizes(self) -> Counts:
        """Examples of each client, int64 (clients,)."""
        return np.array([len(rows) for rows in self.rows], dtype=np.int64)


def partition(
    examples: Examples, scheme: Scheme | str, client_count: int | None, seed: int, keys: Keys | None = None
) -> Partition:
    """Deal examples to clients.

    Args:
        examples: The data set, left unchanged. For schemes that deal by class, targets are int64 classes, (examples,).
        scheme: How, or its text, such as "dirichlet,alpha=0.3". Windows that overlap in time are dealt by key alone.
        client_count: Clients; None for as many as there are keys.
        seed: Seed of every draw, 0 to 2**63 - 1.
        keys: Whose each example is, (examples,), for `by-key`; other schemes pass over it.

    Raises:
        PartitionError: The scheme's text is wrong, or the data cannot be dealt so. Nothing was changed.
    """
    if isinstance(scheme, str):
        scheme = parse_scheme(scheme)
    if not 0 <= seed < 2**63:
        raise _refusal(scheme, f"seed must be from 0 to {2**63 - 1}, got {seed}. Choose another.")
    if examples.timeline is not None and not isinstance(scheme, ByKey):
        raise _refusal(
            scheme,
            f"windows that overlap in time must be dealt by-key, got {scheme.kind}, which would give one client the values that "
            "another forecasts. Choose by-key.",
        )
    generator = np.random.Generator(np.random.Philox(derive_seed(seed, "partition")))
    if isinstance(scheme, ByKey):
        owners, client_count = _deal_by_key(scheme, examples, client_count, keys, generator)
    else:
        if client_count is None:
            raise _refusal(scheme, "clients must be given, got none. Only by-key can take as many as there are keys.")
        _require_enough(scheme, len(examples), client_count)
        owners = _until_minimum(scheme, client_count, _dealer(scheme, examples, client_count, generator))
    ends = np.bincount(owners, minlength=client_count).cumsum()
    return Partition(scheme, seed, tuple(np.split(np.argsort(owners, kind="stable"), ends[:-1])))


def local_data(
    examples: Examples, parts: Partition, held_out_fraction: float = 0.2, kind: str = "memory"
) -> dict[str, LocalData]:
    """Return the data of each client by its identity, as `simulation.serial.run_serially` takes it.

    Args:
        examples: What `parts` was made of; each client's are copied.
        parts: Which examples each client holds.
        held_out_fraction: Part that each client holds out, 0 to below 1, as `client.data.split` does by the partition's seed and the
            identity.
        kind: What the examples were read from.

    Raises:
        PartitionError: The fraction is out of range, or leaves some client, which is named, nothing to train on.
    """
    sites: dict[str, LocalData] = {}
    for client_id, rows in zip(parts.client_ids, parts.rows, strict=True):
        own = examples.select(torch.from_numpy(rows))
        try:
            sites[client_id] = split(own, held_out_fraction, derive_seed(parts.seed, "hold-out", 0, client_id), kind)
        except DataError as error:
            raise PartitionError(f"Partition {str(parts.scheme)!r}, {client_id}: {error}") from error
    return sites


def has_classes(examples: Examples) -> bool:
    """Tell whether the targets are one class an example."""
    return examples.targets.ndim == 1 and examples.targets.dtype == torch.int64


def _dealer(
    scheme: Scheme, examples: Examples, client_count: int, generator: np.random.Generator
) -> Callable[[], Owners]:
    """Return what draws the client of each example, anew with every call."""
    count = len(examples)
    match scheme:
        case Dirichlet():
            classes = _classes(scheme, examples)
            return lambda: dealing.deal_by_shares(scheme, classes, client_count, generator)
        case Shards():
            classes = _classes(scheme, examples)
            if client_count * scheme.per_client > count:
                raise _refusal(
                    scheme,
                    f"shards must be at most {count}, the number of examples, got {client_count * scheme.per_client} for "
                    f"{client_count} clients. Lower per_client, or take fewer clients.",
                )
            return lambda: dealing.deal_shards(scheme, classes, client_count, generator)
        case PowerLaw():
            sizes = dealing.power_law_sizes(count, client_count, scheme.exponent, scheme.minimum)
        case _:
            sizes = dealing.equal_sizes(count, client_count)
    return lambda: dealing.deal_at_random(sizes, generator)


def _deal_by_key(
    scheme: ByKey, examples: Examples, client_count: int | None, keys: Keys | None, generator: np.random.Generator
) -> tuple[Owners, int]:
    """Return the client of each example, and the number of clients."""
    if keys is None or keys.shape != (len(examples),):
        found = "none" if keys is None else f"shape {keys.shape}"
        raise _refusal(
            scheme, f"keys must be one for each of {len(examples)} examples, got {found}. Name them in the data source."
        )
    names, groups, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    if client_count is None:
        client_count = len(names)
    _require_enough(scheme, len(examples), client_count)
    if client_count > len(names):
        raise _refusal(
            scheme, f"clients must be at most {len(names)}, the number of keys, got {client_count}. Take fewer clients."
        )
    if client_count == len(names) and sizes.min() < scheme.minimum:
        raise _refusal(
            scheme,
            f"each client must have at least {scheme.minimum} examples, got {sizes.min()} with the key "
            f"{shown(names[sizes.argmin()].item())}. Lower minimum, or take fewer clients, which then hold several keys each.",
        )
    deal = _until_minimum(scheme, client_count, lambda: dealing.deal_groups(groups, client_count, generator))
    return deal, client_count


def _require_enough(scheme: Scheme, count: int, client_count: int) -> None:
    """Check that there are clients, and examples for each of them."""
    if client_count < 1:
        raise _refusal(scheme, f"clients must be at least 1, got {client_count}. Take more.")
    if client_count > count:
        raise _refusal(
            scheme, f"clients must be at most {count}, the number of examples, got {client_count}. Take fewer clients."
        )
    if client_count * scheme.minimum > count:
        raise _refusal(
            scheme,
            f"minimum must be at most {count // client_count} for {client_count} clients of {count} examples, "
            f"got {scheme.minimum}. Lower it, or take fewer clients.",
        )


def _until_minimum(scheme: Scheme, client_count: int, deal: Callable[[], Owners]) -> Owners:
    """Draw until every client has the minimum."""
    best = 0
    for _ in range(DRAW_LIMIT):
        owners = deal()
        fewest = int(np.bincount(owners, minlength=client_count).min())
        if fewest >= scheme.minimum:
            return owners
        best = max(best, fewest)
    raise _refusal(
        scheme,
        f"each client must have at least {scheme.minimum} examples within {DRAW_LIMIT} draws, got {best} for the smallest "
        f"of {client_count} clients at best. {_ADVICE.get(scheme.kind, 'Lower minimum, or take fewer clients.')}",
    )


_ADVICE = {
    "dirichlet": "Lower minimum, raise alpha, take fewer clients, or deal over=classes, which makes them equal in size."
}


def _classes(scheme: Scheme, examples: Examples) -> npt.NDArray[np.int64]:
    """Return the class of each example, numbered from 0 without gaps."""
    if not has_classes(examples):
        targets = examples.targets
        found = f"{str(targets.dtype).removeprefix('torch.')} of shape {tuple(targets.shape)}"
        raise _refusal(
            scheme,
            f"targets must be one class an example, got {found}. Choose iid, by-key or power-law, which need none.",
        )
    numbers: npt.NDArray[np.int64] = np.unique(examples.targets.numpy(), return_inverse=True)[1]
    return numbers


def _refusal(scheme: Scheme, problem: str) -> PartitionError:
    return PartitionError(f"Partition {str(scheme)!r}: {problem}")
