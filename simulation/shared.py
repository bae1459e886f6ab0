"""Memory that processes share, for the model, the contributions and the examples.

It has no name in any file system: it goes with the last process that holds it, however that ends, and no limit of a container's /dev/shm
applies to it.

Source: "memfd_create(2)", Linux man-pages. https://man7.org/linux/man-pages/man2/memfd_create.2.html
"""

import math
import mmap
import os
import tempfile
from dataclasses import dataclass
from multiprocessing.reduction import DupFd
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class SharedTensor:
    """A tensor in shared memory. Sent to another process, by a `multiprocessing` that starts it, it is the same memory there."""

    tensor: Tensor
    descriptor: int

    @classmethod
    def zeros(cls, shape: tuple[int, ...], dtype: torch.dtype) -> "SharedTensor":
        """Return a tensor of zeros."""
        byte_count = max(1, math.prod(shape) * dtype.itemsize)
        descriptor = _new_file()
        os.ftruncate(descriptor, byte_count)
        return cls(_mapped(descriptor, shape, dtype), descriptor)

    def close(self) -> None:
        """Give the descriptor back; the memory stays as long as a tensor uses it."""
        os.close(self.descriptor)

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (DupFd(self.descriptor), tuple(self.tensor.shape), self.tensor.dtype)


def _received(duplicate: Any, shape: tuple[int, ...], dtype: torch.dtype) -> SharedTensor:
    descriptor = duplicate.detach()
    return SharedTensor(_mapped(descriptor, shape, dtype), descriptor)


def _new_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("choral")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _mapped(descriptor: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    count = math.prod(shape)
    memory = mmap.mmap(descriptor, max(1, count * dtype.itemsize))
    return torch.frombuffer(memory, dtype=dtype, count=count).view(shape) if count else torch.empty(shape, dtype=dtype)
