"""The sum of a round: exact whatever the order (law L1), and unchanged by whatever it refuses (law L5)."""

import copy
import itertools
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.aggregation import BLOCK, WeightedMean
from server.errors import ContributionRefused, reason_name
from wire.grid import Grid
from wire.tensors import Vector

GRID = Grid(coordinate_bound=4.0, weight_cap=100, client_count=3)
FINE = Grid(coordinate_bound=4.0, weight_cap=1, client_count=4)
LONG = 2 * BLOCK + 5


def vector_of(*values: float) -> Vector:
    return np.array(values, dtype=np.float32)


def state_of(total: WeightedMean) -> tuple[bytes, int, int]:
    return copy.deepcopy(total).mean().tobytes(), total.count, total.weight_total


def test_mean_of_two_is_the_hand_worked_one() -> None:
    total = WeightedMean(GRID, 2)
    total.add(vector_of(1.0, -4.0), 1)
    total.add(vector_of(-0.5, 2.0), 3)
    # Weights 1 and 3: 1 - 1.5 over 4, and -4 + 6 over 4.
    assert total.mean().tolist() == [-0.125, 0.5]
    assert (total.count, total.weight_total) == (2, 4)


@pytest.mark.parametrize("size", [1, 2, BLOCK - 1, BLOCK, LONG])
def test_clear_after_a_mean_gives_what_a_new_sum_gives(size: int) -> None:
    generator = np.random.default_rng(size)
    total = WeightedMean(GRID, size)
    for _ in range(2):
        vectors = generator.uniform(-4, 4, (3, size)).astype(np.float32)
        fresh = WeightedMean(GRID, size)
        for weight, vector in enumerate(vectors, start=1):
            fresh.add(vector, weight)
            total.add(vector, weight)
        assert total.mean().tobytes() == fresh.mean().tobytes()
        total.clear()
        assert (total.count, total.weight_total) == (0, 0)


def test_merge_into_an_empty_sum_takes_the_other() -> None:
    other, total, empty = (WeightedMean(GRID, 2) for _ in range(3))
    other.add(vector_of(1.0, -4.0), 2)
    total.merge(other)
    total.merge(empty)
    assert state_of(total) == state_of(other)


def test_mean_of_none_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one contribution, got none"):
        WeightedMean(GRID, 2).mean()


@pytest.mark.parametrize(
    ("vector", "weight", "reason", "detail"),
    [
        pytest.param(vector_of(np.nan, 1), 1, "not_finite", "finite, got nan", id="nan"),
        pytest.param(vector_of(1, np.inf), 1, "not_finite", "finite, got inf", id="infinity"),
        pytest.param(vector_of(-np.inf, 1), 1, "not_finite", "finite, got inf", id="minus-infinity"),
        pytest.param(vector_of(np.nan, np.inf), 1, "not_finite", "finite", id="nan-and-infinity"),
        pytest.param(vector_of(4.5, 0), 1, "out_of_range", "at most 4 in magnitude, got 4.5", id="above"),
        pytest.param(vector_of(0, -4.5), 1, "out_of_range", "at most 4 in magnitude, got 4.5", id="below"),
        pytest.param(
            vector_of(0, float(np.nextafter(np.float32(4), np.float32(5)))), 1, "out_of_range", "got 4", id="just-above"
        ),
        pytest.param(vector_of(3.4e38, 0), 1, "out_of_range", r"got 3.4e\+38", id="largest-float"),
        pytest.param(vector_of(1), 1, "wrong_layout", r"shape \(2,\) float32, got \(1,\) float32", id="short"),
        pytest.param(vector_of(1, 2, 3), 1, "wrong_layout", r"shape \(2,\) float32, got \(3,\) float32", id="long"),
        pytest.param(vector_of(1, 2).reshape(1, 2), 1, "wrong_layout", r"got \(1, 2\) float32", id="two-axes"),
        pytest.param(vector_of(1, 2).astype(np.float64), 1, "wrong_layout", r"got \(2,\) float64", id="float64"),
        pytest.param(vector_of(1, 2), 0, "wrong_weight", "weight must be 1 to 100, got 0", id="no-weight"),
        pytest.param(vector_of(1, 2), -1, "wrong_weight", "weight must be 1 to 100, got -1", id="negative-weight"),
        pytest.param(vector_of(1, 2), 101, "wrong_weight", "weight must be 1 to 100, got 101", id="weight-over-cap"),
        pytest.param(vector_of(1, 2), 2**64 - 1, "wrong_weight", f"got {2**64 - 1}", id="huge-weight"),
    ],
)
def test_add_refused_vector_leaves_the_sum_unchanged(vector: Vector, weight: int, reason: str, detail: str) -> None:
    total = WeightedMean(GRID, 2)
    total.add(vector_of(1.5, -2.5), 7)
    before = state_of(total)
    with pytest.raises(ContributionRefused, match=detail) as caught:
        total.add(vector, weight)
    assert reason_name(caught.value.reason) == reason
    assert state_of(total) == before


@pytest.mark.parametrize("bad", [np.nan, np.inf, 4.5])
@pytest.mark.parametrize("where", [0, BLOCK - 1, BLOCK, LONG - 1])
def test_add_bad_coordinate_anywhere_leaves_every_block_unchanged(bad: float, where: int) -> None:
    total = WeightedMean(GRID, LONG)
    total.add(np.ones(LONG, dtype=np.float32), 1)
    before = state_of(total)
    vector = np.ones(LONG, dtype=np.float32)
    vector[where] = bad
    with pytest.raises(ContributionRefused):
        total.add(vector, 1)
    assert state_of(total) == before


def test_add_more_clients_than_the_grid_has_room_for_is_refused() -> None:
    total = WeightedMean(GRID, 2)
    for _ in range(3):
        total.add(vector_of(1, 1), 1)
    before = state_of(total)
    with pytest.raises(ContributionRefused, match="at most 3 contributions, this would be one more"):
        total.add(vector_of(1, 1), 1)
    assert state_of(total) == before


@pytest.mark.parametrize("bound", [2.0**-40, 0.3, 1.0, 128.0, 2.0**40])
@pytest.mark.parametrize("cap", [1, 1000, 1 << 20])
def test_add_extreme_contributions_do_not_overflow(bound: float, cap: int) -> None:
    bound = float(np.float32(bound))
    total = WeightedMean(Grid(bound, cap, 3), 2)
    for _ in range(3):
        total.add(vector_of(bound, -bound), cap)
    assert total.mean().tolist() == [bound, -bound]


@pytest.mark.parametrize("order", list(itertools.permutations([2**58, 1, -(2**58)])))
def test_one_step_beside_large_ones_that_cancel_is_not_lost(order: tuple[int, ...]) -> None:
    step = 2.0**-FINE.exponent
    total = WeightedMean(FINE, 1)
    for steps in order:
        total.add(vector_of(steps * step), 1)
    assert total.mean().tolist() == [np.float32(step / 3)]


def test_one_step_is_not_lost_when_sums_are_merged_that_are_too_large_together_for_float64() -> None:
    step = 2.0**-FINE.exponent
    total, other = WeightedMean(FINE, 1), WeightedMean(FINE, 1)
    for steps in (2**52, 1):
        total.add(vector_of(steps * step), 1)
    other.add(vector_of(2**52 * step), 1)
    total.merge(other)
    total.add(vector_of(-(2**53) * step), 1)
    assert total.mean().tolist() == [step / 4]


parts_of_sum = st.lists(
    st.tuples(st.lists(st.floats(-4, 4, width=32), min_size=4, max_size=4), st.integers(1, 100)), min_size=1, max_size=3
)


@given(parts=parts_of_sum)
def test_mean_is_the_exact_one_in_any_order_and_any_tree(parts: list[tuple[list[float], int]]) -> None:
    vectors = [(vector_of(*values), weight) for values, weight in parts]
    found = set()
    for order in itertools.permutations(vectors):
        whole, *rest = [WeightedMean(GRID, 4) for _ in order]
        for total, (vector, weight) in zip([whole, *rest], order, strict=True):
            total.add(vector, weight)
        for other in rest:
            whole.merge(other)
        found.add(state_of(whole))
    streamed = WeightedMean(GRID, 4)
    for vector, weight in vectors:
        streamed.add(vector, weight)
    assert found == {state_of(streamed)}
    assert streamed.mean().tobytes() == exact_mean(vectors).tobytes()


def exact_mean(parts: list[tuple[Vector, int]]) -> npt.NDArray[np.float32]:
    scale = Fraction(2) ** GRID.exponent
    sums = [sum(round(Fraction(float(vector[i])) * weight * scale) for vector, weight in parts) for i in range(4)]
    weight_total = sum(weight for _, weight in parts)
    return np.array([float(Fraction(total) / (weight_total * scale)) for total in sums], dtype=np.float32)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (WeightedMean(GRID, 3), "same grid and size"),
        (WeightedMean(Grid(4.0, 100, 2), 2), "same grid and size"),
        (WeightedMean(Grid(8.0, 100, 3), 2), "same grid and size"),
    ],
    ids=["size", "clients", "bound"],
)
def test_merge_of_another_grid_is_an_error_and_changes_nothing(other: WeightedMean, message: str) -> None:
    total = WeightedMean(GRID, 2)
    total.add(vector_of(1, 2), 3)
    before = state_of(total)
    with pytest.raises(ValueError, match=message):
        total.merge(other)
    assert state_of(total) == before


def test_merge_of_too_many_is_an_error_and_changes_nothing() -> None:
    halves = [WeightedMean(GRID, 2) for _ in range(2)]
    for half in halves:
        half.add(vector_of(1, 2), 1)
        half.add(vector_of(3, 4), 1)
    before = state_of(halves[0])
    with pytest.raises(ValueError, match="at most 3 contributions"):
        halves[0].merge(halves[1])
    assert state_of(halves[0]) == before


def test_sum_on_a_grid_that_clips_takes_larger_coordinates_for_the_bound_and_still_no_nan() -> None:
    mean = WeightedMean(Grid(2.0, 8, 2, ring_bits=32, is_clipping=True), 3)
    mean.add(np.array([5.0, -5.0, 1.0], dtype=np.float32), 8)
    with pytest.raises(ContributionRefused, match="must be finite"):
        mean.add(np.array([np.nan, 0.0, 0.0], dtype=np.float32), 8)
    assert mean.mean().tolist() == [2.0, -2.0, 1.0]
