"""How fast masks are made and added, beside what bounds them: a copy of the same bytes, and the bare keystream of the same bytes.

The masks of a session are many times as many bytes as its vector, and far more than any cache holds. What they are compared with is
therefore a copy from memory to memory. A copy of one small vector within the cache is several times as fast, and faster than AES can be; it
is measured beside.
"""

import statistics
from dataclasses import dataclass
from time import process_time
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.secagg_result import Case, Stopwatch
from benchmarks.secagg_session import parameters_of, quantise
from privacy.secagg.masks import CHUNK_BYTES, Mask, RingVector, add_masks, keystream

MASK_COUNT = 20
MEMORY_BYTES = 128 << 20
"""Size of what is copied from memory to memory: no cache holds it."""

LEAST_BYTES = 400_000_000
"""What one repetition of each measurement moves at least."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Rates in bytes a second of CPU time, each the median over repetitions made in turn.

    Attributes:
        memcpy: A copy from memory to memory.
        vector_memcpy: A copy of the vector, in the cache if it fits there.
        keystream: AES-256-CTR, chunk by chunk into one buffer.
        masks: Masks made and added to the vector; the bytes are those of the masks.
        masks_over_memcpy: The median of `masks` over `memcpy`, repetition by repetition.
        quantise_seconds: CPU seconds to write one update on the grid of 100 clients.
    """

    memcpy: float
    vector_memcpy: float
    keystream: float
    masks: float
    masks_over_memcpy: float
    quantise_seconds: float


class Bench:
    """Buffers of one size, and what is measured with them."""

    def __init__(self, parameter_count: int) -> None:
        self._vector: RingVector = np.arange(parameter_count, dtype="<u4")
        self._copy = np.zeros_like(self._vector)
        # Not zeros, which would be one page of memory over and over.
        self._memory, self._memory_copy = (np.ones(MEMORY_BYTES, dtype=np.uint8) for _ in range(2))
        self._update = np.zeros(parameter_count, dtype=np.float32)
        self._masks = [Mask(bytes([number] * 32), is_negative=number % 2 == 1) for number in range(MASK_COUNT)]
        self._parameters = parameters_of(Case(100, parameter_count, 0))

    def measure(self, repeats: int) -> Rates:
        """Measure everything once, then everything once more, and so on."""
        found = []
        size = self._vector.nbytes
        for _ in range(repeats):
            memcpy = _rate(MEMORY_BYTES, np.copyto, self._memory_copy, self._memory)
            vector_memcpy = _rate(size, np.copyto, self._copy, self._vector)
            stream = _rate(size, _make_keystream, size)
            masks = _rate(size * MASK_COUNT, add_masks, self._vector, self._masks)
            watch = Stopwatch()
            watch.time("quantise", quantise, self._update, self._parameters, self._copy)
            found.append((memcpy, vector_memcpy, stream, masks, masks / memcpy, watch.totals["quantise"]))
        return Rates(*(statistics.median(column) for column in zip(*found, strict=True)))


def _rate(byte_count: int, call: Any, *arguments: npt.NDArray[Any] | list[Mask] | int) -> float:
    """Return the bytes a second that calls handle, `byte_count` each, over as many calls as a steady figure takes."""
    calls = -(-LEAST_BYTES // byte_count)
    started = process_time()
    for _ in range(calls):
        call(*arguments)
    return calls * byte_count / (process_time() - started)


def _make_keystream(byte_count: int) -> None:
    stream, zeros, buffer = keystream(bytes(32)), bytes(CHUNK_BYTES), bytearray(CHUNK_BYTES)
    for start in range(0, byte_count, CHUNK_BYTES):
        part = min(CHUNK_BYTES, byte_count - start)
        stream.update_into(memoryview(zeros)[:part], buffer)
