"""Memory that a process keeps for the next time, instead of giving it back and asking for it again.

gRPC, protobuf and Python each take a block of a slice's size, or twice that, for every message and free it a moment later.
Left alone, glibc hands such blocks back to the kernel, which then clears every page anew for the next message: that takes
as long as the transfer itself.

Source: "mallopt(3)", Linux man-pages. https://man7.org/linux/man-pages/man3/mallopt.3.html
"""

import contextlib
import ctypes
import gc
import weakref
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from wire.protocol import SLICE_BYTES
from wire.tensors import Vector

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8


class VectorPool:
    """Vectors in memory that is used again. Safe for concurrent use.

    A vector's memory comes back when the vector, and every array, memory view and tensor that was made of it, is gone. Fresh
    memory has to be cleared by the kernel first, and backed by the host of a virtual machine, which can take longer than what
    is then computed in it.
    """

    def __init__(self) -> None:
        self._free: defaultdict[int, list[Vector]] = defaultdict(list)

    def take(self, size: int) -> Vector:
        """Return a vector, float32 (size,), with whatever lies in its memory."""
        free = self._free[size]
        try:
            memory = free.pop()
        except IndexError:
            memory = np.empty(size, dtype=np.float32)
        # What is made of this array holds this array, because its own base is none.
        vector = np.frombuffer(memory.data, dtype=np.float32)
        weakref.finalize(vector, free.append, memory).atexit = False
        return vector


def keep_freed_memory() -> None:
    """Let this process keep almost all that is freed: training takes and frees the same blocks in every step.

    For a process that does nothing else. Without effect where the C library is not glibc.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        library.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Do as `keep_freed_memory` while the context is open; at its end the system gets back what is free, and later all large blocks.

    Contexts must not be open at the same time: the first to end ends it for all.
    """
    keep_freed_memory()
    try:
        yield
    finally:
        library = ctypes.CDLL(None)
        if hasattr(library, "mallopt"):
            # Where glibc's own thresholds are in a process that has freed large blocks.
            library.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
            library.mallopt(_M_TRIM_THRESHOLD, 64 << 20)
            library.malloc_trim(0)


def keep_freed_slices() -> None:
    """Let this process keep a few freed slices for the next ones, whatever threads freed them; large arrays still go back to the system.

    Without effect where the C library is not glibc.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        # Left alone, glibc has an arena for each of gRPC's threads, and every one would keep as much.
        library.mallopt(_M_ARENA_MAX, 1)
        library.mallopt(_M_MMAP_THRESHOLD, 3 * SLICE_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, 8 * SLICE_BYTES)


def keep_start_from_collector() -> None:
    """Let the garbage collector pass over what this process has made by now, which stays to the end.

    Left alone it looks at everything there is once in a while, and meanwhile nothing else is done: for 130 ms where torch is imported.
    """
    gc.collect()
    gc.freeze()


@contextlib.contextmanager
def start_kept_from_collector() -> Iterator[None]:
    """Do as `keep_start_from_collector` while the context is open; at its end the collector looks at everything again."""
    keep_start_from_collector()
    try:
        yield
    finally:
        gc.unfreeze()
