"""The sum on a device against the coordinator's own, to the bit. Where there is no GPU, the CPU stands for it."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from server.aggregation import WeightedMean
from server.errors import ContributionRefused, reason_name
from simulation import device_mean
from simulation.device_mean import DeviceMean
from wire.grid import Grid

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@given(
    seed=st.integers(0, 2**32),
    size=st.integers(1, 9),
    weights=st.lists(st.integers(1, 1 << 20), min_size=1, max_size=5),
    bound=st.sampled_from([2.0**-10, 1.0, 128.0, 1e6]),
)
def test_mean_equals_the_coordinators_to_the_bit(seed: int, size: int, weights: list[int], bound: float) -> None:
    grid = Grid(bound, 1 << 20, 5)
    generator = np.random.default_rng(seed)
    ours, theirs = DeviceMean(grid, size, DEVICE), WeightedMean(grid, size)
    for round_number in range(2):
        ours.clear()
        theirs.clear()
        for weight in weights:
            scale = bound * generator.choice([1.0, 1e-3, 1e-9])
            vector = (generator.uniform(-1, 1, size) * scale).astype(np.float32)
            ours.add(on_device(vector), weight)
            theirs.add(vector, weight)
        assert np.array_equal(ours.mean(), theirs.mean().copy()), round_number


def on_device(vector: Any) -> Any:
    return torch.from_numpy(np.asarray(vector, dtype=np.float32)).to(DEVICE)


def test_large_sums_are_made_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_mean, "BLOCK", 3)
    total = DeviceMean(Grid(4.0, 10, 2), 8, DEVICE)
    total.add(on_device(range(-4, 4)), 1)
    total.add(on_device([1.0] * 8), 3)
    assert total.mean().tolist() == [(value + 3) / 4 for value in range(-4, 4)]


@pytest.mark.parametrize(
    ("vector", "weight", "reason"),
    [
        pytest.param([1.0, float("nan")], 1, "not_finite", id="nan"),
        pytest.param([-float("inf"), 0.0], 1, "not_finite", id="infinite"),
        pytest.param([0.0, -4.5], 1, "out_of_range", id="out-of-range"),
        pytest.param([0.0], 1, "wrong_layout", id="short"),
        pytest.param([0.0, 0.0], 11, "wrong_weight", id="heavy"),
    ],
)
def test_add_refused_tensor_leaves_the_sum_unchanged(vector: list[float], weight: int, reason: str) -> None:
    total = DeviceMean(Grid(4.0, 10, 2), 2, DEVICE)
    total.add(on_device([1.0, 2.0]), 2)
    with pytest.raises(ContributionRefused) as refusal:
        total.add(on_device(vector), weight)
    assert reason_name(refusal.value.reason) == reason
    assert (total.count, total.mean().tolist()) == (1, [1.0, 2.0])


def test_add_vector_of_another_place_is_refused() -> None:
    total: Any = DeviceMean(Grid(4.0, 10, 2), 2, DEVICE)
    with pytest.raises(ContributionRefused, match=r"vector must have shape \(2,\) float32"):
        total.add(np.zeros(2, dtype=np.float32), 1)


def test_merge_is_refused() -> None:
    total = DeviceMean(Grid(4.0, 10, 2), 2, DEVICE)
    with pytest.raises(TypeError, match="must be made of contributions"):
        total.merge(DeviceMean(Grid(4.0, 10, 2), 2, DEVICE))


def test_mean_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one contribution, got none"):
        DeviceMean(Grid(4.0, 10, 2), 2, DEVICE).mean()
