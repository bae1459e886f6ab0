"""Law L1: the sum, and so the mean, does not depend on the order of the terms or on how they were grouped."""

import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.grid import Grid
from wire.tensors import Vector

SIZE = 500


def steps(grid: Grid, vector: Vector, weight: int) -> npt.NDArray[np.int64]:
    return grid.quantise(vector, weight, np.empty(len(vector))).astype(np.int64)


def mean(grid: Grid, total: npt.NDArray[np.int64], weight_total: int) -> Vector:
    out = np.empty(len(total), dtype=np.float32)
    grid.mean(total, weight_total, out)
    return out


def cohort(count: int) -> tuple[list[Vector], list[int]]:
    generator = np.random.default_rng(3)
    vectors = [generator.normal(size=SIZE).astype(np.float32) for _ in range(count)]
    return vectors, [int(weight) for weight in generator.integers(1, 1000, size=count)]


@pytest.mark.parametrize(
    ("grid", "exponent"),
    [
        (Grid(1.0, 1, 1), 62),
        (Grid(1.0, 1, 2), 61),
        (Grid(1.0, 1, 3), 60),
        (Grid(0.5, 1, 1), 63),
        (Grid(128.0, 1 << 20, 10), 31),
        (Grid(8.0, 1, 1, ring_bits=24), 19),
        (Grid(2.0**40, 1 << 20, 8), -1),
    ],
)
def test_exponent_leaves_room_for_the_worst_case(grid: Grid, exponent: int) -> None:
    assert grid.exponent == exponent


def test_quantise_rounds_to_the_grid_half_to_even() -> None:
    # 16 bits, 2 clients, weights to 4, coordinates to 1: 16 - 2 - 3 = 11, so a step is 2**-11.
    grid = Grid(1.0, 4, 2, ring_bits=16)
    assert grid.exponent == 11
    values = np.array([1.0, -0.25, 0.5 / 2048, 1.5 / 2048, 2.5 / 2048, 0.4 / 2048], dtype=np.float32)
    assert steps(grid, values, 1).tolist() == [2048, -512, 0, 2, 2, 0]
    assert steps(grid, values, 3).tolist() == [6144, -1536, 2, 4, 8, 1]


def test_mean_of_two_weighted_clients_is_the_hand_worked_one() -> None:
    # (1 * 1.0 + 3 * -0.5) / 4 = -0.125 and (1 * 0.25 + 3 * 0.75) / 4 = 0.625
    grid = Grid(1.0, 4, 2)
    total = steps(grid, np.array([1.0, 0.25], dtype=np.float32), 1)
    total += steps(grid, np.array([-0.5, 0.75], dtype=np.float32), 3)
    assert mean(grid, total, 4).tolist() == [-0.125, 0.625]


def test_sum_has_the_same_bytes_in_any_order_where_floats_have_not() -> None:
    vectors, weights = cohort(50)
    grid = Grid(16.0, 1 << 20, 50)
    generator = np.random.default_rng(5)
    means, floats = set(), set()
    for _ in range(100):
        order = generator.permutation(50)
        total = np.zeros(SIZE, dtype=np.int64)
        naive = np.zeros(SIZE, dtype=np.float32)
        for client in order:
            total += steps(grid, vectors[client], weights[client])
            naive += np.float32(weights[client]) * vectors[client]
        means.add(mean(grid, total, sum(weights)).tobytes())
        floats.add((naive / np.float32(sum(weights))).tobytes())
    assert len(means) == 1
    assert len(floats) > 1


def test_sum_through_two_partial_sums_has_the_same_bytes() -> None:
    vectors, weights = cohort(20)
    grid = Grid(16.0, 1 << 20, 20)
    terms = [steps(grid, vector, weight) for vector, weight in zip(vectors, weights, strict=True)]
    whole = np.sum(terms, axis=0)
    for split in range(1, 20):
        parts = np.sum(terms[:split], axis=0) + np.sum(terms[split:], axis=0)
        assert mean(grid, parts, sum(weights)).tobytes() == mean(grid, whole, sum(weights)).tobytes()


@given(st.floats(2.0**-40, 2.0**40, width=32), st.integers(1, 1 << 29), st.integers(1, 100_001))
def test_worst_case_does_not_overflow(bound: float, weight_cap: int, client_count: int) -> None:
    grid = Grid(bound, weight_cap, client_count)
    largest = np.array([bound, -bound], dtype=np.float32)
    term = steps(grid, largest, weight_cap)
    # With Python's integers, which do not overflow.
    assert client_count * int(term[0]) < 2**63
    assert client_count * int(term[1]) >= -(2**63)
    # As fine as it can be: two more bits would not fit.
    assert client_count * int(term[0]) * 4 >= 2**62 or grid.exponent < 0


@given(
    st.lists(
        st.tuples(
            st.lists(st.floats(-8, 8, width=32), min_size=3, max_size=3),
            st.integers(1, 1000),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_mean_is_within_half_a_step_of_the_exact_rational_mean(clients: list[tuple[list[float], int]]) -> None:
    grid = Grid(8.0, 1000, len(clients))
    total = np.zeros(3, dtype=np.int64)
    for values, weight in clients:
        total += steps(grid, np.array(values, dtype=np.float32), weight)
    weight_total = sum(weight for _, weight in clients)
    found = mean(grid, total, weight_total)
    half_step = Fraction(len(clients), 2 * weight_total * 2**grid.exponent)
    for coordinate in range(3):
        terms = [Fraction(values[coordinate]) * weight for values, weight in clients]
        exact = sum(terms, Fraction(0)) / weight_total
        rounded = abs(exact) * Fraction(1, 2**23) + Fraction(1, 2**149)
        assert abs(Fraction(float(found[coordinate])) - exact) <= half_step + rounded


@given(st.floats(-128, 128, width=32), st.integers(1, 1 << 20))
def test_one_client_gets_its_own_vector_back_to_a_grid_step(value: float, weight: int) -> None:
    grid = Grid(128.0, 1 << 20, 10)
    found = mean(grid, steps(grid, np.array([value], dtype=np.float32), weight), weight)[0]
    assert abs(float(found) - value) <= math.ldexp(0.5, -grid.exponent) / weight + abs(value) * 2.0**-24


def test_grid_that_clips_takes_larger_coordinates_for_the_bound() -> None:
    grid = Grid(2.0, 100, 4, ring_bits=32, is_clipping=True)
    values = np.array([2.5, -1e30, 2.0, -2.0, 0.5], dtype=np.float32)
    steps = grid.quantise(values, 100, out=np.empty(5))
    bound = math.ldexp(200.0, grid.exponent)
    assert steps.tolist() == [bound, -bound, bound, -bound, bound / 4]
    # Four clients at the bound stay within the ring.
    assert 4 * bound < 2**31
