from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.data import split
from client.data.windows import cut_windows
from models.errors import DataError
from models.learner import Examples


def counted(sizes: list[int], window: int, horizon: int) -> Examples | None:
    """Return the windows of series of these sizes whose values are 0, 1, 2, ...: a value tells its series and step."""
    values = np.arange(sum(sizes), dtype=np.float32)[:, None]
    return cut_windows(values, np.repeat(np.arange(len(sizes)), sizes), window, horizon)


def test_cut_windows_gives_what_follows_each_window_nearest_step_first() -> None:
    values = np.array([[0, 10], [1, 11], [2, 12], [3, 13], [4, 14]], dtype=np.float32)
    examples = cut_windows(values, np.zeros(5, dtype=np.int64), window=2, horizon=2)
    assert examples is not None
    assert examples.timeline is not None
    assert examples.inputs.dtype == examples.targets.dtype == torch.float32
    assert examples.inputs.tolist() == [[[0, 10], [1, 11]], [[1, 11], [2, 12]]]
    assert examples.targets.tolist() == [[2, 12, 3, 13], [3, 13, 4, 14]]
    assert examples.timeline.series.tolist() == [0, 0]
    assert examples.timeline.steps.tolist() == [2, 3]
    assert examples.timeline.horizon == 2


def test_cut_windows_series_too_short_gives_none() -> None:
    examples = counted([3, 2, 4], window=2, horizon=1)
    assert examples is not None
    assert examples.timeline is not None
    assert examples.targets.flatten().tolist() == [2, 7, 8]
    assert examples.timeline.series.tolist() == [0, 2, 2]
    assert examples.timeline.steps.tolist() == [2, 2, 3]
    assert counted([2, 2], window=2, horizon=1) is None
    assert counted([], window=1, horizon=1) is None


SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=6)
SHAPES = {"sizes": SIZES, "window": st.integers(1, 6), "horizon": st.integers(1, 5)}


@given(**SHAPES)
def test_cut_windows_every_window_is_one_stretch_of_one_series(sizes: list[int], window: int, horizon: int) -> None:
    examples = counted(sizes, window, horizon)
    width = window + horizon
    starts = [
        first for size, end in zip(sizes, np.cumsum(sizes), strict=True) for first in range(end - size, end - width + 1)
    ]
    if examples is None:
        assert starts == []
        return
    found = torch.cat([examples.inputs.flatten(1), examples.targets], dim=1)
    assert found.tolist() == [list(range(first, first + width)) for first in starts]


@given(**SHAPES, fraction=st.floats(0.01, 0.6), seed=st.integers(0, 9))
def test_split_of_windows_holds_out_the_last_of_each_series_and_no_target_is_in_both_parts(
    sizes: list[int], window: int, horizon: int, fraction: float, seed: int
) -> None:
    examples = counted(sizes, window, horizon)
    if examples is None:
        return
    shuffled = examples.select(torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed)))
    try:
        data = split(shuffled, fraction, seed)
    except DataError:
        return
    seen = {*data.training.inputs.flatten().tolist(), *data.training.targets.flatten().tolist()}
    held_out = {*data.held_out.targets.flatten().tolist()}
    assert held_out
    assert not seen & held_out
    ends = [0, *np.cumsum(sizes).tolist()]
    for first, end in pairwise(ends):
        own = [value for value in seen if first <= value < end]
        later = [value for value in held_out if first <= value < end]
        if later:
            assert max(own) < min(later)
            assert max(later) == end - 1
    assert data.training.timeline is data.held_out.timeline is None


def test_split_of_windows_by_hand() -> None:
    examples = counted([14, 5], window=2, horizon=3)
    assert examples is not None
    # Ten windows with targets from step 2 to 11, and one that is too few to share.
    data = split(examples, 0.2, seed=0)
    assert data.held_out.targets[:, 0].tolist() == [10, 11]
    assert data.training.targets[:, 0].tolist() == [2, 3, 4, 5, 6, 7, 16]


def test_split_of_windows_that_all_overlap_is_refused() -> None:
    examples = counted([6], window=2, horizon=3)  # two windows that share two targets
    assert examples is not None
    with pytest.raises(DataError, match=r"must leave at least 1 example to train on, got 0\.5 of 2\. Lower it"):
        split(examples, 0.5, seed=0)


def test_split_of_windows_without_a_fraction_trains_on_all() -> None:
    examples = counted([5, 4], window=2, horizon=2)
    assert examples is not None
    data = split(examples, 0.0, seed=0)
    assert (len(data.training), len(data.held_out)) == (3, 0)
