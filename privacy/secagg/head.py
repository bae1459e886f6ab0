"""The first elements of a masked vector: weight, a canary, and the numbers that travel beside the coordinates.

    [ weight, 1, examples, (examples with metric j, examples * metric j) for each metric j ]

The weight is one element. The second is 1 for every client: in the sum it must be the number of clients, or the sum was opened wrongly. The
others are integers of 60 bits, each in several elements of few enough bits that their sums do not wrap.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from privacy.secagg.masks import RING_TYPES, RingVector

NUMBER_BITS = 60
"""Width of the numbers beside the weight, sign included."""

FRACTION_BITS = 20
"""Metrics are rounded to multiples of 2**-20 per example."""

_OFFSET = 1 << NUMBER_BITS - 1


@dataclass(frozen=True, slots=True)
class HeadSum:
    """What the sum of many heads says.

    Attributes:
        weight_total: Sum of the weights.
        count: Vectors in the sum, by their canaries.
        example_count: Examples of all clients.
        metrics: Means over the examples of those who have the metric.
    """

    weight_total: int
    count: int
    example_count: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Head:
    """How the head of a vector is written and how the sum of heads is read."""

    ring_bits: int
    client_count: int
    weight_cap: int
    metrics: tuple[str, ...]

    @property
    def problem(self) -> str:
        """What the ring is too small for, or nothing."""
        if self.client_count * self.weight_cap >= 1 << self.ring_bits:
            return (
                f"clients * weight_cap must be below 2**ring_bits (2**{self.ring_bits}), "
                f"got {self.client_count} * {self.weight_cap}"
            )
        if self._limb_bits < 2:
            return f"clients must be at most {1 << self.ring_bits - 2} with ring_bits {self.ring_bits}, got {self.client_count}"
        return ""

    @property
    def size(self) -> int:
        """Elements of the head."""
        return 2 + self._limb_count * (1 + 2 * len(self.metrics))

    def write(self, vector: RingVector, weight: int, example_count: int, metrics: Mapping[str, float]) -> None:
        """Write a client's head into the first elements of its vector.

        Args:
            vector: Ring elements, of which the first `size` are written.
            weight: 1 to the cap; 0 where there is nothing to weigh.
            example_count: 0 or more.
            metrics: Those that are not named in `self.metrics` stay here; so do those that are not finite or too large.
        """
        vector[0], vector[1] = weight, 1
        numbers = [example_count]
        for name in self.metrics:
            number = _fixed_point(example_count, metrics.get(name, math.nan))
            numbers += [0, 0] if number is None else [example_count, number]
        limbs = [limb for number in numbers for limb in self._limbs_of(number)]
        vector[2 : self.size] = np.array(limbs, dtype=RING_TYPES[self.ring_bits])

    def read(self, total: RingVector) -> HeadSum:
        """Read the sum of heads from the first elements of the sum."""
        count = int(total[1])
        example_count, *pairs = self._numbers_in(total[2 : self.size].tolist(), count)
        metrics = {
            name: math.ldexp(pairs[2 * place + 1], -FRACTION_BITS) / pairs[2 * place]
            for place, name in enumerate(self.metrics)
            if pairs[2 * place] > 0
        }
        return HeadSum(int(total[0]), count, example_count, metrics)

    @property
    def _limb_bits(self) -> int:
        return self.ring_bits - (self.client_count - 1).bit_length()

    @property
    def _limb_count(self) -> int:
        return -(-NUMBER_BITS // self._limb_bits)

    def _limbs_of(self, number: int) -> list[int]:
        shifted, mask = number + _OFFSET, (1 << self._limb_bits) - 1
        return [shifted >> self._limb_bits * place & mask for place in range(self._limb_count)]

    def _numbers_in(self, limbs: list[int], count: int) -> list[int]:
        return [
            sum(limb << self._limb_bits * place for place, limb in enumerate(limbs[start : start + self._limb_count]))
            - count * _OFFSET
            for start in range(0, len(limbs), self._limb_count)
        ]


def _fixed_point(example_count: int, value: float) -> int | None:
    """Return a metric times its examples as an integer, or None where it does not fit one."""
    scaled = math.ldexp(value * example_count, FRACTION_BITS) if math.isfinite(value) else math.inf
    return round(scaled) if abs(scaled) < _OFFSET else None
