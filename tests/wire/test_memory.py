"""What a process that goes on for long does with its memory."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from wire.memory import VectorPool
from wire.tensors import Vector, vector_bytes, vector_from_bytes

PROGRAM = """
import gc
from wire.memory import settle
before = len(gc.get_objects())
settle()
print(before > 0, gc.get_freeze_count() >= before, bytes(3 << 20) == bytes(3 << 20))
"""


def address_of(vector: Vector) -> int:
    return int(vector.ctypes.data)


def test_take_returns_memory_that_nobody_holds_any_more() -> None:
    pool = VectorPool()
    first, second = pool.take(3), pool.take(3)
    assert first.shape == (3,)
    assert first.dtype == np.float32
    assert address_of(first) != address_of(second)
    place = address_of(first)
    del first
    again = pool.take(3)
    assert address_of(again) == place
    again[:] = [1, 2, 3]
    assert second.flags.writeable
    assert address_of(pool.take(4)) not in (place, address_of(second))


@pytest.mark.parametrize(
    "derive",
    [
        lambda vector: vector[1:],
        lambda vector: vector[1:][:1],
        lambda vector: vector.reshape(3, 1).T,
        lambda vector: vector_bytes(vector)[4:],
        lambda vector: vector_from_bytes(vector_bytes(vector)),
        lambda vector: torch.from_numpy(vector)[1:].view(1, 2),
        lambda vector: torch.from_numpy(vector).numpy(),
    ],
    ids=["slice", "slice of a slice", "transpose", "bytes", "vector of bytes", "tensor", "array of a tensor"],
)
def test_take_leaves_memory_alone_while_something_made_of_it_is_held(derive: Callable[[Vector], Any]) -> None:
    pool = VectorPool()
    vector = pool.take(3)
    place = address_of(vector)
    held = derive(vector)
    del vector
    assert address_of(pool.take(3)) != place
    del held
    assert place in {address_of(taken) for taken in [pool.take(3), pool.take(3)]}


def test_settle_leaves_nothing_for_the_collector_to_go_through() -> None:
    # In a process of its own, because it is for good.
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["True"] * 3
