"""The exact sum of a round on a GPU, for contributions that lie there: bit for bit the sum that the coordinator makes on a CPU (law L1).

Products with a power of two, rounding to the nearest integer and adding integers are the same on every machine that keeps IEEE 754.
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

    def mean(self) -> Vector:
        """Return the mean, float32 (size,), in this machine's memory."""
        if self.count == 0:
            raise ValueError("A mean must have at least one contribution, got none.")
        scale = math.ldexp(self.weight_total, self.grid.exponent)
        mean = torch.empty(self.size, dtype=torch.float32, device=self._sum.device)
        for rows in self._blocks():
            mean[rows] = self._sum[rows].double() / scale
        return mean.cpu().numpy()

    def clear(self) -> None:
        """Start anew in the same memory."""
        super().clear()
        self._sum.zero_()

    def _accumulate(self, vector: Any, weight: int) -> None:
        scale = math.ldexp(weight, self.grid.exponent)
        for rows in self._blocks():
            self._sum[rows] += (vector[rows].double() * scale).round_().long()

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
