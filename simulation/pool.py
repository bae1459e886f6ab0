"""The examples of all clients in one piece of memory, and where each one's lie."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from client.data import LocalData
from models import DataError, Examples

Allocate = Callable[[tuple[int, ...], torch.dtype], Tensor]
"""Makes a tensor of a shape and type, with whatever lies in its memory."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Examples of many clients, one client's after another's.

    Attributes:
        data: All examples.
        ranges: Which of them are a client's, by identity.
    """

    data: Examples
    ranges: Mapping[str, range]

    @classmethod
    def copied(cls, parts: Mapping[str, Examples], allocate: Allocate) -> "Pool":
        """Copy clients' examples, of which some may have none, to memory that `allocate` makes.

        Raises:
            DataError: The clients' examples are not of one shape.
        """
        ranges: dict[str, range] = {}
        start, shape = 0, None
        for client_id, part in parts.items():
            ranges[client_id] = range(start, start + len(part))
            start += len(part)
            if len(part):
                shape = shape or part.example_shape
                if part.example_shape != shape:
                    raise DataError(
                        f"Data: examples of all clients must have one shape, {shape}, got {part.example_shape} at "
                        f"{client_id}. Take the serial engine."
                    )
        some = [part for part in parts.values() if len(part)] or list(parts.values())[:1]
        inputs = _joined([part.inputs for part in some], allocate)
        return cls(Examples(inputs, _joined([part.targets for part in some], allocate)), ranges)

    def of(self, client_id: str) -> Examples:
        """Return one client's examples, without a copy."""
        own = slice(self.ranges[client_id].start, self.ranges[client_id].stop)
        return Examples(self.data.inputs[own], self.data.targets[own])


@dataclass(frozen=True, slots=True)
class PooledSites(Mapping[str, LocalData]):
    """Each client's data by its identity, out of two pools: nothing is copied.

    Attributes:
        kind: What the data was read from.
    """

    kind: str
    training: Pool
    held_out: Pool

    @classmethod
    def copied(cls, sites: Mapping[str, LocalData], allocate: Allocate) -> "PooledSites":
        """Copy all clients' data, of at least one client. Raises `DataError` as `Pool.copied`."""
        return cls(
            next(iter(sites.values())).kind,
            Pool.copied({name: data.training for name, data in sites.items()}, allocate),
            Pool.copied({name: data.held_out for name, data in sites.items()}, allocate),
        )

    def __getitem__(self, client_id: str) -> LocalData:
        return LocalData(self.kind, self.training.of(client_id), self.held_out.of(client_id))

    def __iter__(self) -> Iterator[str]:
        return iter(self.training.ranges)

    def __len__(self) -> int:
        return len(self.training.ranges)


def _joined(tensors: Sequence[Tensor], allocate: Allocate) -> Tensor:
    if not tensors:
        return torch.zeros(0)
    whole, start = allocate((sum(map(len, tensors)), *tensors[0].shape[1:]), tensors[0].dtype), 0
    for tensor in tensors:
        whole[start : start + len(tensor)].copy_(tensor)
        start += len(tensor)
    return whole
