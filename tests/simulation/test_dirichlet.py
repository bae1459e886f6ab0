"""The draws against moments that are known, and against the construction written out one draw at a time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulation import dirichlet
from simulation.dirichlet import Counts, draw_over_classes, draw_over_clients


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def one_draw_at_a_time(stock: list[int], size: int, client_count: int, alpha: float, seed: int) -> Counts:
    """Deal by the paper's words: each client draws a class from its shares, which are renormalised when a class is gone."""
    rng = np.random.default_rng(seed)
    left = np.array(stock)
    shares = rng.dirichlet(alpha * left / left.sum(), size=client_count)
    counts = np.zeros(shares.shape, dtype=np.int64)
    for _ in range(size):
        for client in rng.permutation(client_count):
            row = np.where(left > 0, shares[client], 0)
            drawn = rng.choice(len(stock), p=row / row.sum())
            counts[client, drawn] += 1
            left[drawn] -= 1
    return counts


@given(
    stock=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    client_count=st.integers(1, 12),
    alpha=st.floats(1e-300, 1e300),
    block_cells=st.sampled_from([1, 16, 1 << 20]),
    seed=st.integers(0, 2**63 - 1),
)
def test_draws_deal_all_of_the_stock(
    stock: list[int], client_count: int, alpha: float, block_cells: int, seed: int
) -> None:
    total = sum(stock)
    sizes = np.array([len(part) for part in np.array_split(np.arange(total), client_count)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dirichlet, "_BLOCK_CELLS", block_cells)
        by_classes = draw_over_classes(np.array(stock), sizes, alpha, generator(seed))
    by_clients = draw_over_clients(np.array(stock), client_count, alpha, generator(seed))
    for counts in (by_classes, by_clients):
        assert counts.shape == (client_count, len(stock))
        assert counts.dtype == np.int64
        assert (counts >= 0).all()
        assert counts.sum(axis=0).tolist() == stock
    assert by_classes.sum(axis=1).tolist() == sizes.tolist()


def test_draw_over_classes_has_the_moments_of_a_dirichlet_multinomial() -> None:
    # With a stock that does not run out: mean m p, variance m p (1 - p) (m + alpha) / (1 + alpha).
    prior, size, client_count, alpha = np.array([0.5, 0.3, 0.2]), 20, 20_000, 0.7
    stock = (prior * 10 * size * client_count).astype(np.int64)
    counts = draw_over_classes(stock, np.full(client_count, size), alpha, generator(1))
    expected = size * prior * (1 - prior) * (size + alpha) / (1 + alpha)
    assert (np.abs(counts.mean(axis=0) - size * prior) < 4 * np.sqrt(expected / client_count)).all()
    np.testing.assert_allclose(counts.var(axis=0), expected, rtol=0.03)


def test_draw_over_classes_until_all_is_gone_equals_single_draws_in_distribution() -> None:
    stock, size, client_count, alpha, repeats = [7, 3, 2], 4, 3, 1.5, 3000
    ours = np.stack(
        [draw_over_classes(np.array(stock), np.full(3, size), alpha, generator(seed)) for seed in range(repeats)]
    )
    theirs = np.stack([one_draw_at_a_time(stock, size, client_count, alpha, seed) for seed in range(repeats)])
    # The shares of "class c makes up exactly k of a client's examples", each known to about sqrt(0.25 / 9000).
    for position, available in enumerate(stock):
        for count in range(min(size, available) + 1):
            mine, reference = ((counts[:, :, position] == count).mean() for counts in (ours, theirs))
            assert mine == pytest.approx(reference, abs=4 * np.sqrt(2 * 0.25 / (repeats * client_count)))
    second = [(counts[:, 0, :, None] * counts[:, 1, None, :]).mean(axis=0) for counts in (ours, theirs)]
    np.testing.assert_allclose(second[0], second[1], atol=0.2)


def test_draw_over_classes_tiny_alpha_gives_each_client_one_class_while_there_is_stock() -> None:
    counts = draw_over_classes(np.full(10, 10_000), np.full(50, 100), 1e-6, generator(2))
    assert ((counts > 0).sum(axis=1) == 1).all()
    assert (counts.argmax(axis=1) != counts[0].argmax()).any()


def test_draw_over_classes_tiny_alpha_takes_one_class_after_the_other_when_they_run_out() -> None:
    # Shares of the other classes are exactly 0, so they have to be drawn anew.
    counts = draw_over_classes(np.full(10, 10), np.array([100]), 1e-300, generator(3))
    assert counts.tolist() == [[10] * 10]


def test_draw_over_classes_huge_alpha_gives_each_client_the_prior() -> None:
    counts = draw_over_classes(np.array([6000, 3000, 1000]), np.full(10, 1000), 1e9, generator(4))
    np.testing.assert_allclose(counts / 1000, [[0.6, 0.3, 0.1]] * 10, atol=0.06)


def test_draw_over_clients_has_the_moments_of_a_dirichlet() -> None:
    # A share of a symmetric Dirichlet distribution has the mean 1 / N and the variance (N - 1) / (N^2 (N alpha + 1)).
    client_count, alpha = 5, 0.4
    counts = draw_over_clients(np.full(20_000, 10_000), client_count, alpha, generator(5))
    shares = counts / 10_000
    np.testing.assert_allclose(shares.mean(axis=1), [1 / 5] * 5, rtol=0.02)
    np.testing.assert_allclose(shares.var(axis=1), [4 / (25 * (5 * alpha + 1))] * 5, rtol=0.03)


def test_draw_over_clients_tiny_alpha_gives_each_class_to_one_client_and_huge_alpha_to_all() -> None:
    few = draw_over_clients(np.full(6, 100), 4, 1e-9, generator(6))
    assert ((few > 0).sum(axis=0) == 1).all()
    all_alike = draw_over_clients(np.full(6, 100), 4, 1e12, generator(6))
    assert all_alike.min() >= 24
    assert all_alike.max() <= 26


def test_ranks_count_earlier_draws_of_the_same_class() -> None:
    assert dirichlet._ranks(np.array([2, 0, 2, 2, 1, 0])).tolist() == [0, 0, 1, 2, 0, 1]


def test_turns_ask_everyone_once_before_anyone_twice() -> None:
    turns = dirichlet._turns(np.array([1, 3, 2]), generator(7)).tolist()
    assert sorted(turns[:3]) == [0, 1, 2]
    assert sorted(turns[3:5]) == [1, 2]
    assert turns[5:] == [1]
