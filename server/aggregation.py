"""Streaming weighted mean of contributions, exact whatever their order: the sum of FedAvg on a fixed-point grid (law L1).

Each contribution is rounded to the round's grid, added as integers and dropped, so memory holds one sum however many clients take part, and
sums of parts can be merged into the sum of the whole.

Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017, Algorithm 1.
https://arxiv.org/abs/1602.05629
"""

import math

import numpy as np
import numpy.typing as npt

from server.errors import ContributionRefused
from wire.federation_pb2 import RefusalReason, VectorEncoding
from wire.grid import Grid
from wire.tensors import Vector, vector_from_bytes

BLOCK = 1 << 16
"""Coordinates handled at a time: a block of float64 stays in a core's cache."""

FLOAT_REACH = 2.0**53
"""Below this, sums of integers are exact in float64."""


class WeightedMean:
    """Mean of vectors weighted by integers: sum_k(w_k * v_k) / sum_k(w_k).

    Not safe for concurrent use: one round owns it and is its only writer.
    """

    encoding = VectorEncoding.VECTOR_ENCODING_FLOAT32
    is_exact = True

    def __init__(self, grid: Grid, size: int) -> None:
        """Start from an empty sum of vectors with `size` coordinates."""
        self.grid = grid
        self.count = 0
        self.weight_total = 0
        # Whatever lies in this memory: the first vector is written over it.
        self._total = np.empty(size, dtype=np.int64)
        self._reach = 0.0

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return len(self._total)

    @property
    def byte_count(self) -> int:
        """Length of a contribution's vector on the wire."""
        return 4 * self.size

    def vector_in(self, buffer: memoryview) -> Vector:
        """Return the contribution that lies in a buffer of `byte_count`, without a copy."""
        return vector_from_bytes(buffer)

    def add(self, vector: Vector, weight: int) -> None:
        """Add one vector, all or nothing, in O(size) time and with no memory that grows with it.

        Args:
            vector: float32 (size,), finite, no coordinate beyond the grid's bound unless the grid clips them.
            weight: 1 to the grid's weight cap.

        Raises:
            ContributionRefused: `vector` or `weight` breaks that contract, or the sum has taken all the vectors it has room for. The sum
                is unchanged.
        """
        largest = self._check(vector, weight)
        self._accumulate(vector, weight, largest)
        self.count += 1
        self.weight_total += weight

    def clear(self) -> None:
        """Start anew in the same memory: fresh pages take longer to get than a sum to make."""
        self.count = self.weight_total = 0
        self._reach = 0.0

    def merge(self, other: "WeightedMean") -> None:
        """Add the sum of other clients on the same grid, as an aggregator between clients and coordinator would hand it up."""
        if other.grid != self.grid or other._total.shape != self._total.shape:
            raise ValueError("Sums must have the same grid and size to be merged.")
        if self.count + other.count > self.grid.client_count:
            raise ValueError(f"A sum on this grid must have at most {self.grid.client_count} contributions.")
        if self.count == 0:
            self._total[:] = other._total
            self._reach = other._reach
        elif other.count:
            self._make_room(other._reach)
            held = self._held
            for start in range(0, self.size, BLOCK):
                rows = slice(start, start + BLOCK)
                held[rows] += other._held[rows].astype(held.dtype)
        self.count += other.count
        self.weight_total += other.weight_total

    def mean(self) -> Vector:
        """Return the mean, float32 (size,), in the memory of the sum, which must be cleared before it is used again."""
        if self.count == 0:
            raise ValueError("A mean must have at least one contribution, got none.")
        size = len(self._total)
        mean = self._total.view(np.float32)[:size]
        scratch = np.empty(min(BLOCK, size), dtype=np.float32)
        for start in range(0, size, BLOCK):
            # A block of the mean never reaches beyond the sums that have been divided already.
            rows = slice(start, min(start + BLOCK, size))
            block = scratch[: rows.stop - start]
            self.grid.mean(self._held[rows], self.weight_total, out=block)
            mean[rows] = block
        return mean

    @property
    def _held(self) -> npt.NDArray[np.int64] | npt.NDArray[np.float64]:
        """The sum as it is held: integers below 2**53 as float64, which is twice as fast, others as int64 in the same memory."""
        return self._total.view(np.float64) if self._reach < FLOAT_REACH else self._total

    def _make_room(self, reach: float) -> None:
        """Hold the sum so that coordinates of at most so many grid steps can be added."""
        if self.count and self._reach < FLOAT_REACH <= self._reach + reach:
            for start in range(0, self.size, BLOCK):
                rows = slice(start, start + BLOCK)
                self._total[rows] = self._held[rows].astype(np.int64)
        self._reach += reach

    def _check(self, vector: Vector, weight: int) -> float:
        """Return the largest magnitude of a coordinate, or raise."""
        if self.count >= self.grid.client_count:
            raise ContributionRefused(
                RefusalReason.REFUSAL_REASON_TOO_LATE,
                f"the round must have at most {self.grid.client_count} contributions, this would be one more",
            )
        if not 1 <= weight <= self.grid.weight_cap:
            raise ContributionRefused(
                RefusalReason.REFUSAL_REASON_WRONG_WEIGHT,
                f"weight must be 1 to {self.grid.weight_cap}, got {weight}",
            )
        if not self._is_suited(vector):
            raise ContributionRefused(
                RefusalReason.REFUSAL_REASON_WRONG_LAYOUT,
                f"vector must have shape {(self.size,)} float32, got {vector.shape} {vector.dtype}",
            )
        largest = self._largest(vector)
        if not math.isfinite(largest):
            raise ContributionRefused(
                RefusalReason.REFUSAL_REASON_NOT_FINITE, f"every coordinate must be finite, got {largest}"
            )
        if largest > self.grid.coordinate_bound and not self.grid.is_clipping:
            raise ContributionRefused(
                RefusalReason.REFUSAL_REASON_OUT_OF_RANGE,
                f"every coordinate must be at most {self.grid.coordinate_bound:g} in magnitude, got {largest:g}",
            )
        return min(largest, self.grid.coordinate_bound)

    def _accumulate(self, vector: Vector, weight: int, largest: float) -> None:
        self._make_room(self.grid.steps(largest, weight))
        held = self._held
        scratch = np.empty(min(BLOCK, len(vector)), dtype=np.float64)
        for start in range(0, len(vector), BLOCK):
            block, total = vector[start : start + BLOCK], held[start : start + BLOCK]
            steps = self.grid.quantise(block, weight, out=scratch[: len(block)])
            if self.count == 0:
                # Whose zeros are positive, as those of integers are.
                np.add(steps, 0.0, out=total, casting="unsafe")
            else:
                np.add(total, steps.astype(held.dtype, copy=False), out=total)

    def _is_suited(self, vector: Vector) -> bool:
        return vector.shape == (self.size,) and vector.dtype == np.float32

    def _largest(self, vector: Vector) -> float:
        """Return the largest magnitude of a coordinate; NaN if there is one."""
        largest = 0.0
        for start in range(0, len(vector), BLOCK):
            block = vector[start : start + BLOCK]
            # A NaN survives min and max, so two passes without a scratch array find it too.
            low, high = float(block.min()), float(block.max())
            if math.isnan(low):
                return low
            largest = max(largest, -low, high)
        return largest
