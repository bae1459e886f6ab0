"""A client's vector in the ring: its head, then its coordinates on the session's grid.

The grid is that of sums in the clear (`wire/grid.py`), so that the mean is the same to the bit whether it was masked or not (law L1).
"""

from collections.abc import Mapping

import numpy as np

from privacy.secagg.masks import RING_TYPES, RingVector
from privacy.secagg.session import SessionParameters
from wire.errors import ChoralError
from wire.tensors import Vector

BLOCK = 1 << 16


def ring_vector(
    parameters: SessionParameters,
    weight: int,
    example_count: int,
    metrics: Mapping[str, float],
    coordinates: Vector | None = None,
) -> RingVector:
    """Return what a client brings to a session, not masked yet.

    Args:
        parameters: The session's.
        weight: 0 to the cap.
        example_count: Examples that weight and metrics are of.
        metrics: Those that the session does not sum stay here.
        coordinates: float32 (body,), finite; larger ones than the bound are clipped to it. None for a session without a body.

    Raises:
        ChoralError: A coordinate is not finite.
    """
    vector = np.empty(parameters.size, dtype=RING_TYPES[parameters.spec.ring_bits])
    head = parameters.head
    head.write(vector, weight, example_count, metrics)
    if coordinates is not None:
        _write_steps(coordinates, weight, parameters, vector[head.size :])
    return vector


def _write_steps(coordinates: Vector, weight: int, parameters: SessionParameters, out: RingVector) -> None:
    signed, grid = out.view(f"<i{out.itemsize}"), parameters.grid
    scratch = np.empty(min(BLOCK, len(coordinates)), dtype=np.float64)
    for start in range(0, len(coordinates), BLOCK):
        rows = slice(start, start + BLOCK)
        block = coordinates[rows]
        if not np.isfinite(block).all():
            raise ChoralError("Contribution: every coordinate must be finite, got one that is not.")
        signed[rows] = grid.quantise(block, weight, out=scratch[: len(block)])
