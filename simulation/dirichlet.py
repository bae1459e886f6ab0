"""How many examples of each class each client gets, by a Dirichlet distribution over classes or over clients."""

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
"""Examples, (clients, classes) or (classes,)."""

_BLOCK_CELLS = 1 << 20


def draw_over_classes(stock: Counts, sizes: Counts, alpha: float, generator: np.random.Generator) -> Counts:
    """Draw each client's classes from shares of its own, Dir(alpha * prior), without replacement.

    Clients take turns, in a new order each turn, and draw one example at a time. When a class has run out, all shares are
    renormalised over the classes that are left. So the last examples do not all fall to the last clients, who would have to
    take what there is.

    Source: Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification",
    2019. https://arxiv.org/abs/1909.06335

    Args:
        stock: Examples of each class, (classes,), at least 1.
        sizes: Examples of each client, (clients,), with that sum at most.
        alpha: Concentration, above 0.
        generator: Source of every draw.

    Returns:
        (clients, classes), with `sizes` as its sum over classes, and at most `stock` over clients.
    """
    prior = stock / stock.sum()
    left = stock.copy()
    shares = generator.dirichlet(alpha * prior, size=len(sizes))  # (clients, classes)
    counts = np.zeros(shares.shape, dtype=np.int64)
    turns = _turns(sizes, generator)
    block_length = max(1, _BLOCK_CELLS // len(stock))
    cumulative = shares.cumsum(axis=1)
    start = 0
    while start < len(turns):
        clients = turns[start : start + block_length]
        drawn = _draw(cumulative[clients], generator)
        # Draws are good up to the first of a class that has run out. That one and those behind it are drawn anew.
        is_in_stock = _ranks(drawn) < left[drawn]
        good_count = len(drawn) if is_in_stock.all() else int(is_in_stock.argmin())
        np.add.at(counts, (clients[:good_count], drawn[:good_count]), 1)
        taken = np.bincount(drawn[:good_count], minlength=len(stock))
        left -= taken
        start += good_count
        if (left[taken > 0] == 0).any() and start < len(turns):
            _renormalise(shares, alpha * prior, left > 0, generator)
            cumulative = shares.cumsum(axis=1)
    return counts


def draw_over_clients(stock: Counts, client_count: int, alpha: float, generator: np.random.Generator) -> Counts:
    """Draw each class's shares of the clients from Dir(alpha, ..., alpha), and cut its examples in these shares.

    Source: Yurochkin et al., "Bayesian Nonparametric Federated Learning of Neural Networks", ICML 2019.
    https://arxiv.org/abs/1905.12022

    Args:
        stock: Examples of each class, (classes,).
        client_count: 1 or more.
        alpha: Concentration, above 0.
        generator: Source of every draw.

    Returns:
        (clients, classes), with `stock` as its sum over clients.
    """
    shares = generator.dirichlet(np.full(client_count, alpha), size=len(stock))  # (classes, clients)
    cuts = np.floor(shares.cumsum(axis=1) * stock[:, None]).astype(np.int64)
    cuts[:, -1] = stock  # whatever the rounding of the sums
    return np.diff(np.minimum(cuts, stock[:, None]), axis=1, prepend=0).T


def _turns(sizes: Counts, generator: np.random.Generator) -> Counts:
    """Return the client of each draw, (draws,): everyone once, in random order, then again everyone who wants more."""
    clients = np.repeat(np.arange(len(sizes)), sizes)
    firsts = np.repeat(sizes.cumsum() - sizes, sizes)
    turns = np.arange(len(clients)) - firsts
    return clients[np.lexsort((generator.random(len(clients)), turns))]


def _draw(cumulative: npt.NDArray[np.float64], generator: np.random.Generator) -> Counts:
    """Draw one class for each row of cumulated shares, (draws, classes), that need not end with 1."""
    totals = cumulative[:, -1]
    thresholds = np.minimum(generator.random(len(cumulative)) * totals, np.nextafter(totals, 0))
    classes: Counts = (cumulative <= thresholds[:, None]).sum(axis=1)
    return classes


def _ranks(drawn: Counts) -> Counts:
    """Return how often each class was drawn before, (draws,)."""
    order = np.argsort(drawn, kind="stable")
    grouped = drawn[order]
    ranks = np.empty_like(drawn)
    ranks[order] = np.arange(len(drawn)) - np.searchsorted(grouped, grouped)
    return ranks


def _renormalise(
    shares: npt.NDArray[np.float64],
    concentration: npt.NDArray[np.float64],
    is_left: npt.NDArray[np.bool_],
    generator: np.random.Generator,
) -> None:
    """Spread the shares over the classes that are left, in place."""
    shares[:, ~is_left] = 0
    totals = shares.sum(axis=1)
    # Below that, a share is too coarse a number to be scaled. The shares of the classes that are left, renormalised, are
    # independent of the others and again from a Dirichlet distribution, so they may as well be drawn anew.
    is_lost = totals < 1e-200
    shares[~is_lost] /= totals[~is_lost, None]
    shares[np.ix_(is_lost, is_left)] = generator.dirichlet(concentration[is_left], size=int(is_lost.sum()))
