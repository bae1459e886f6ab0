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
import resource, sys
from wire.memory import keep_freed_slices
if sys.argv[1] == "keep":
    keep_freed_slices()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def hold_slices():
    return [b"%d" % number * (2 << 20) for number in range(3)]
hold_slices()
before = faults()
for _ in range(100):
    hold_slices()
print(faults() - before)
"""
"""Makes and drops three blocks of two slices a hundred times, and prints how many pages the kernel had to provide."""


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


def test_keep_freed_slices_uses_the_same_memory_for_the_next_slice() -> None:
    # In processes of their own, because it is for good.
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, timeout=60, check=True).stdout)
        for how in ("keep", "give back")
    )
    assert kept < 5_000 < 50_000 < given_back


THREADS = """
import threading
from wire.memory import keep_freed_slices
def resident_mb():
    fields = open("/proc/self/statm").read().split()
    return int(fields[1]) * 4096 / 1e6
def hold_slices():
    blocks = [b"%d" % number * (2 << 20) for number in range(3)]
    del blocks
    done.release()
    end.wait()
import mmap
assert mmap.PAGESIZE == 4096
keep_freed_slices()
done, end = threading.Semaphore(0), threading.Event()
threads = [threading.Thread(target=hold_slices) for _ in range(8)]
before = resident_mb()
for thread in threads:
    thread.start()
    done.acquire()
print(resident_mb() - before)
end.set()
"""
"""Lets 8 threads, one after the other, make and drop three blocks of two slices, and prints the resident memory that this leaves."""


def test_keep_freed_slices_keeps_no_more_for_many_threads() -> None:
    done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, timeout=60, check=True)
    assert float(done.stdout) < 12


FREED = """
from wire.memory import freed_memory_kept
def resident_mb():
    fields = open("/proc/self/statm").read().split()
    return int(fields[1]) * 4096 / 1e6
def take_and_free():
    block = bytearray(b"x") * (200 << 20)
import mmap
assert mmap.PAGESIZE == 4096
take_and_free()
print(resident_mb())
with freed_memory_kept():
    take_and_free()
    print(resident_mb())
print(resident_mb())
"""
"""Prints the resident memory after 210 MB were freed: before, in and after the context."""


def test_freed_memory_is_kept_for_as_long_as_the_context_is_open() -> None:
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, timeout=60, check=True)
    before, inside, after = map(float, done.stdout.split())
    assert inside > 200 + before
    assert after < 100 + before
