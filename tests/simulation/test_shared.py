"""Memory that processes share: one process's writes are another's reads, and nothing is left of it."""

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from simulation.shared import SharedTensor


def add_one(shared: SharedTensor, pipe: "Connection[Any, Any]") -> None:
    shared.tensor.add_(1)
    pipe.send((tuple(shared.tensor.shape), shared.tensor.dtype, shared.tensor.sum().item()))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        pytest.param((3, 4), torch.float32, id="matrix"),
        pytest.param((5,), torch.int64, id="integers"),
        pytest.param((0, 8), torch.float32, id="nothing"),
    ],
)
def test_shared_tensor_is_the_same_memory_in_another_process(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    context = multiprocessing.get_context("forkserver")
    shared = SharedTensor.zeros(shape, dtype)
    shared.tensor.fill_(2)
    ours, theirs = context.Pipe()
    process = context.Process(target=add_one, args=(shared, theirs))
    process.start()
    found = ours.recv()
    process.join()
    assert found == (shape, dtype, 3 * shared.tensor.numel())
    assert torch.equal(shared.tensor, torch.full(shape, 3, dtype=dtype))
    shared.close()


def test_shared_tensor_has_no_name_and_outlives_its_descriptor() -> None:
    before = sorted(Path("/dev/shm").iterdir())
    shared = SharedTensor.zeros((1000,), torch.float32)
    assert sorted(Path("/dev/shm").iterdir()) == before
    shared.close()
    shared.tensor.fill_(1)
    assert shared.tensor.sum() == 1000
