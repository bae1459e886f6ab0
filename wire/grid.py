"""The fixed-point grid of a round: where weighted updates are rounded to, so that their sum is exact (law L1).

A contribution x with weight w enters the sum as the integers rint(w * x * 2**exponent). Sums of integers do not depend on the order of the
terms, so neither does the mean. The grid is as fine as it can be without an overflow in the worst case:

    client_count * weight_cap * coordinate_bound * 2**exponent < 2**(ring_bits - 1)

Source: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017, section 1 (sums modulo R).
https://eprint.iacr.org/2017/281
"""

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from wire.tensors import Vector


@dataclass(frozen=True, slots=True)
class Grid:
    """The grid of one round.

    Attributes:
        coordinate_bound: Largest magnitude of a coordinate that is accepted, above 0.
        weight_cap: Largest weight that is accepted, 1 or more.
        client_count: Most contributions that one sum can take, 1 or more.
        ring_bits: Width of the integers, 64 unless masked.
        is_clipping: Larger coordinates are clipped to the bound; else they are refused, by whoever can see them.
        exponent: Binary logarithm of the number of grid steps in 1.0; negative when the bounds leave room for whole steps only.
    """

    coordinate_bound: float
    weight_cap: int
    client_count: int
    ring_bits: int = 64
    is_clipping: bool = False
    exponent: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Compute the exponent, which each contribution asks for several times."""
        worst = self.client_count * self.weight_cap * self.coordinate_bound
        object.__setattr__(self, "exponent", self.ring_bits - 2 - math.ceil(math.log2(worst)))

    def steps(self, magnitude: float, weight: int) -> float:
        """Return a bound on the grid steps of a coordinate of at most `magnitude` with this weight, of either sign."""
        return math.ldexp(magnitude * weight, self.exponent) + 1.0

    def quantise(self, values: Vector, weight: int, out: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Write rint(weight * values * 2**exponent) into `out`, float64 that holds integers, and return it.

        The product is exact: 24 bits of a float32 times at most 29 of a weight fit the 53 of a float64, and a power of two only moves
        the exponent. So the only rounding is `rint` (half to even), and it is the same on every machine.
        """
        np.multiply(values, math.ldexp(weight, self.exponent), out=out, dtype=np.float64)
        if self.is_clipping:
            largest = math.ldexp(weight * self.coordinate_bound, self.exponent)
            np.clip(out, -largest, largest, out=out)
        return np.rint(out, out=out)

    def mean(self, total: npt.NDArray[np.int64] | npt.NDArray[np.float64], weight_total: int, out: Vector) -> None:
        """Write total / (weight_total * 2**exponent) into `out`, float32.

        A total beyond 2**53 is rounded to float64, the quotient to float64 and to float32; none of it depends on the order of the terms.
        """
        np.divide(total, math.ldexp(weight_total, self.exponent), out=out, casting="unsafe")
