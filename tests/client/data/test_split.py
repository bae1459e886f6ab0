import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.data import split
from models.errors import DataError
from models.learner import Examples


def make_examples(count: int) -> Examples:
    return Examples(torch.arange(count, dtype=torch.float32).reshape(count, 1), torch.arange(count))


@given(count=st.integers(2, 200), fraction=st.floats(0, 0.5), seed=st.integers(0, 2**63 - 1))
def test_split_puts_each_example_in_one_part_and_repeats_itself(count: int, fraction: float, seed: int) -> None:
    data, again = (split(make_examples(count), fraction, seed, "csv") for _ in range(2))
    assert sorted([*data.training.targets.tolist(), *data.held_out.targets.tolist()]) == list(range(count))
    for part, same in ((data.training, again.training), (data.held_out, again.held_out)):
        assert torch.equal(part.inputs, same.inputs)
        assert torch.equal(part.inputs[:, 0].long(), part.targets)


@pytest.mark.parametrize(
    ("count", "fraction", "held_out_count"),
    [
        pytest.param(10, 0, 0, id="none"),
        pytest.param(10, 0.2, 2, id="whole"),
        pytest.param(100, 0.29, 29, id="no-cut-by-floating-point"),
        pytest.param(10, 0.01, 1, id="at-least-one"),
        pytest.param(2, 0.5, 1, id="half"),
        pytest.param(1, 0, 0, id="single-example"),
    ],
)
def test_split_holds_out_the_rounded_part(count: int, fraction: float, held_out_count: int) -> None:
    data = split(make_examples(count), fraction, seed=3)
    assert (data.kind, len(data.training), len(data.held_out)) == ("memory", count - held_out_count, held_out_count)
    assert data.held_out.example_shape == (1,)


def test_split_other_seed_gives_other_parts() -> None:
    first, second = (split(make_examples(100), 0.5, seed).held_out.targets.tolist() for seed in (1, 2))
    assert sorted(first) != sorted(second)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 1.5, math.nan, math.inf])
def test_split_fraction_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(DataError, match=f"held_out_fraction must be at least 0 and below 1, got {fraction}"):
        split(make_examples(10), fraction, seed=0)


@pytest.mark.parametrize(("count", "fraction"), [(0, 0.0), (0, 0.2), (1, 0.2), (3, 0.99)])
def test_split_with_nothing_left_to_train_on_is_refused(count: int, fraction: float) -> None:
    with pytest.raises(DataError, match=f"must leave at least 1 example to train on, got {fraction} of {count}"):
        split(make_examples(count), fraction, seed=0)
