"""The exact sum of a round on a GPU, for contributions that lie there: bit for bit the sum that the coordinator makes on a CPU (law L1).

The products are exact in float64, and rounding them to integers and adding those is the same on every machine that keeps IEEE 754.
"""

import math
from typing import Any

import torch
from torch import Tensor

from server.aggregation import WeightedMean
from wire.grid import Grid
from wire.tensors import Vector

BLOCK = 1 << 24
"""Coordinates handled at a time, which bounds what is needed beside the sum."""


class DeviceMean(WeightedMean):
    """`WeightedMean` of tensors on a device, which `add` takes instead of vectors."""

    def __init__(self, grid: Grid, size: int, device: torch.device) -> None:
        """Start from an empty sum of tensors with `size` coordinates."""
        super().__init__(grid, 0)
        self._sum = torch.zeros(size, dtype=torch.int64, device=device)

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return len(self._sum)

    def merge(self, other: WeightedMean) -> None:
        """Refuse: nothing that lies on a device is handed up by an aggregator."""
        raise TypeError("A sum on a device must be made of contributions, got another sum.")

    def mean(self) -> Vector:
        """Return the mean, float32 (size,), in this machine's memory."""
        # Divided here: torch on a GPU multiplies by the reciprocal of a number, which is not the same in the last bit.
        self._total, self._reach = self._sum.cpu().numpy(), math.inf
        return super().mean()

    def clear(self) -> None:
        """Start anew in the same memory."""
        super().clear()
        self._sum.zero_()

    def _accumulate(self, vector: Any, weight: int, largest: float) -> None:
        scale = math.ldexp(weight, self.grid.exponent)
        # Nothing that is not to be clipped is beyond the bound.
        reach = math.ldexp(weight * self.grid.coordinate_bound, self.grid.exponent)
        for rows in self._blocks():
            self._sum[rows] += (vector[rows].double() * scale).clamp_(-reach, reach).round_().long()

    def _is_suited(self, vector: Any) -> bool:
        return (
            isinstance(vector, Tensor)
            and vector.shape == (self.size,)
            and vector.dtype == torch.float32
            and vector.device == self._sum.device
        )

    def _largest(self, vector: Any) -> float:
        # A NaN is the largest to torch.
        return float(vector.abs().max())

    def _blocks(self) -> list[slice]:
        return [slice(start, start + BLOCK) for start in range(0, self.size, BLOCK)]
