"""The sum of masked vectors: elements of a ring, added as they arrive, that say nothing until the sum is opened.

Source: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017, figure 4.
https://eprint.iacr.org/2017/281
"""

import numpy as np

from privacy.secagg.coordinator import CoordinatorSession
from privacy.secagg.head import HeadSum
from privacy.secagg.masks import RING_TYPES, RingVector
from privacy.secagg.session import SessionParameters
from server.errors import ContributionRefused
from wire.federation_pb2 import RefusalReason, VectorEncoding
from wire.tensors import Vector

BLOCK = 1 << 16
"""Coordinates of the mean that are made at a time."""


class MaskedSum:
    """What `WeightedMean` is to vectors in the clear, for masked ones. Not safe for concurrent use.

    Attributes:
        count: Vectors in the sum.
        head: What the opened sum says beside its coordinates; before, nothing.
    """

    encoding = VectorEncoding.VECTOR_ENCODING_MASKED
    is_exact = True

    def __init__(self, parameters: SessionParameters) -> None:
        """Start from an empty sum of one session's vectors."""
        self.grid = parameters.grid
        self.count = 0
        self.head = HeadSum(0, 0, 0, {})
        self._parameters = parameters
        self._total = np.zeros(parameters.size, dtype=RING_TYPES[parameters.spec.ring_bits])

    @property
    def size(self) -> int:
        """Elements of a vector."""
        return len(self._total)

    @property
    def byte_count(self) -> int:
        """Length of a vector on the wire."""
        return self._total.nbytes

    @property
    def weight_total(self) -> int:
        """Sum of the weights, once the sum is open."""
        return self.head.weight_total

    def vector_in(self, buffer: memoryview) -> RingVector:
        """Return the vector that lies in a buffer of `byte_count`, without a copy."""
        return np.frombuffer(buffer, dtype=np.uint8).view(self._total.dtype)

    def add(self, vector: RingVector, weight: int) -> None:
        """Add one masked vector, whole.

        Args:
            vector: Ring elements, (size,).
            weight: 0: the true one is masked too.

        Raises:
            ContributionRefused: It has another shape, or a weight in the clear. The sum is unchanged.
        """
        if weight != 0:
            raise ContributionRefused(
                RefusalReason.REFUSAL_REASON_WRONG_WEIGHT,
                f"weight must travel inside the vector, got {weight} beside it",
            )
        if vector.shape != self._total.shape or vector.dtype != self._total.dtype:
            raise ContributionRefused(
                RefusalReason.REFUSAL_REASON_WRONG_LAYOUT,
                f"vector must have shape {self._total.shape} {self._total.dtype}, got {vector.shape} {vector.dtype}",
            )
        np.add(self._total, vector, out=self._total)
        self.count += 1

    def open(self, session: CoordinatorSession) -> None:
        """Take the masks off. Raises `SessionAbortedError` when the session cannot; the sum is then useless."""
        self.head = session.open(self._total)

    def mean(self) -> Vector:
        """Return the mean of the coordinates, float32 (body,), in the memory of the sum where the ring is as wide."""
        start = self._parameters.head.size
        body = self._total[start:].view(f"<i{self._total.itemsize}")
        mean = body.view(np.float32) if body.itemsize == 4 else np.empty(len(body), dtype=np.float32)
        scratch = np.empty(min(BLOCK, len(body)), dtype=np.float32)
        for begin in range(0, len(body), BLOCK):
            rows = slice(begin, begin + BLOCK)
            block = scratch[: len(body[rows])]
            self.grid.mean(body[rows], self.weight_total, out=block)
            mean[rows] = block
        return mean
