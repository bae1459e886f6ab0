"""Degree and threshold: the tables, exact arithmetic as an independent reference, and the attacks that they must withstand."""

import itertools
import math
from fractions import Fraction

import pytest

from privacy.errors import SecureAggregationError
from privacy.secagg.parameters import Parameters, Ring, Rules, complete_threshold, parameters_for, ring_for

PUBLISHED = Rules(grinding_bits=0, own_share_count=0, has_chosen_dropouts=False, most_degree_percent=100)
PUBLISHED_CURIOUS = Rules(False, 0, 0, False, 100)

COMPLETE = {
    2: (2, 0, 1),
    3: (3, 0, 2),
    4: (3, 1, 1),
    5: (4, 1, 2),
    6: (5, 1, 3),
    8: (6, 2, 3),
    10: (7, 3, 3),
    16: (11, 5, 5),
    20: (14, 6, 7),
    32: (22, 10, 11),
    50: (34, 16, 17),
    64: (43, 21, 21),
    100: (67, 33, 33),
    128: (86, 42, 43),
}
"""Clients: threshold, most missing, most corrupt."""

RINGS = [
    (200, 50_000, 100_000, 42, 27),
    (200, 100_000, 100_000, 56, 39),
    (200, 100_000, 200_000, 88, 55),
    (200, 100_000, 300_000, 134, 78),
    (200, 330_000, 100_000, 108, 88),
    (256, 100_000, 100_000, 66, 47),
    (512, 50_000, 100_000, 88, 58),
    (512, 100_000, 100_000, 104, 75),
    (512, 100_000, 300_000, 282, 168),
    (512, 200_000, 100_000, 142, 109),
    (512, 200_000, 300_000, 382, 243),
    (1000, 50_000, 50_000, 76, 58),
    (1000, 50_000, 100_000, 106, 75),
    (1000, 100_000, 100_000, 134, 99),
    (1000, 100_000, 200_000, 266, 178),
    (1000, 100_000, 300_000, 456, 276),
    (1000, 200_000, 100_000, 202, 157),
    (1000, 200_000, 300_000, 684, 440),
    (1000, 333_333, 100_000, 282, 226),
    (1000, 330_000, 100_000, 280, 225),
]


@pytest.mark.parametrize(("client_count", "expected"), COMPLETE.items())
def test_parameters_of_a_small_roster_are_the_table_of_complete_graphs(
    client_count: int, expected: tuple[int, int, int]
) -> None:
    threshold, most_missing, most_corrupt = expected
    found = parameters_for(client_count, 0, 0)
    assert found == Parameters(client_count, 0, 0, client_count - 1, threshold)
    assert found.is_complete
    assert client_count - threshold == most_missing
    assert 2 * threshold - client_count - 1 == most_corrupt


def test_parameters_of_three_clients_that_trust_each_other_bear_one_dropout() -> None:
    found = parameters_for(3, 0, 333_334)
    assert (found.missing_count, found.threshold) == (1, 2)
    assert parameters_for(3, 0, 333_333).missing_count == 0


@pytest.mark.parametrize(("client_count", "corrupt_ppm", "dropout_ppm", "degree", "threshold"), RINGS)
def test_parameters_of_a_large_roster_are_the_table_of_rings(
    client_count: int, corrupt_ppm: int, dropout_ppm: int, degree: int, threshold: int
) -> None:
    found = parameters_for(client_count, corrupt_ppm, dropout_ppm)
    assert (found.degree, found.threshold) == (degree, threshold)
    assert not found.is_complete


@pytest.mark.parametrize(
    ("client_count", "corrupt_ppm", "threshold"),
    [
        (129, 200_000, 87),
        (200, 200_000, 134),
        (256, 200_000, 171),
        (256, 330_000, 171),
        (512, 330_000, 342),
        (512, 333_333, 342),
        (1000, 330_000, 667),
        (1000, 333_333, 667),
        (10_000, 330_000, 6667),
    ],
)
def test_parameters_that_leave_no_sparse_ring_are_a_complete_graph(
    client_count: int, corrupt_ppm: int, threshold: int
) -> None:
    found = parameters_for(client_count, corrupt_ppm, 300_000)
    assert found.is_complete
    assert (found.degree, found.threshold) == (client_count - 1, threshold)


@pytest.mark.parametrize(
    ("counts", "rules", "expected"),
    [
        ((1000, 50, 50), PUBLISHED, (52, 37)),
        ((1000, 50, 330), PUBLISHED, (398, 223)),
        ((1000, 330, 50), PUBLISHED, (132, 109)),
        ((100, 30, 30), PUBLISHED, (92, 62)),
        ((10_000, 3300, 3300), PUBLISHED_CURIOUS, (422, 221)),
    ],
)
def test_ring_without_our_additions_is_the_published_one(
    counts: tuple[int, int, int], rules: Rules, expected: tuple[int, int]
) -> None:
    """Pairs of google-parfait/federated-compute, graph_parameter_finder_test.cc."""
    assert ring_for(*counts, rules) == expected


def exact_chances(total: int, marked: int, drawn: int) -> list[Fraction]:
    ways = math.comb(total, drawn)
    return [Fraction(math.comb(marked, x) * math.comb(total - marked, drawn - x), ways) for x in range(drawn + 1)]


def exact_threshold(n: int, a: int, d: int, degree: int) -> int | None:
    """Return the least threshold that holds the four conditions, by exact fractions and by trying all of them."""
    secrecy, removed, run = Fraction(1, 2**81), a + d, degree // 2
    pairs = Fraction(n * (n - degree - 1), 2)
    if pairs * Fraction(math.perm(removed, degree), math.perm(n, degree)) > secrecy:
        return None
    corrupt, missing = exact_chances(n, a, degree), exact_chances(n, d, degree)
    in_run = exact_chances(n, a, run)
    for threshold in range(2, degree + 2):
        both_out = sum(chance for x, chance in enumerate(corrupt) if degree + 1 + x >= 2 * threshold)
        too_few = sum(chance for x, chance in enumerate(missing) if degree - x < threshold)
        least = max(threshold - run - 1, 0)
        cut = sum(
            in_run[one] * in_run[two]
            for one, two in itertools.product(range(least, run + 1), repeat=2)
            if one + two >= degree - d
        )
        if n * both_out <= secrecy and n * too_few <= Fraction(1, 2**20) and Fraction(n * n, 2) * cut <= secrecy:
            return threshold
    return None


@pytest.mark.parametrize(
    ("client_count", "corrupt_count", "missing_count"),
    [(129, 6, 6), (150, 15, 15), (200, 20, 20), (200, 0, 20), (200, 20, 0), (300, 15, 30)],
)
def test_ring_is_the_first_that_exact_fractions_allow(
    client_count: int, corrupt_count: int, missing_count: int
) -> None:
    counts = (client_count, corrupt_count, missing_count)
    degrees = range(2, client_count * 3 // 4 + 1, 2)
    expected = next((degree, found) for degree in degrees if (found := exact_threshold(*counts, degree)))
    assert ring_for(*counts) == expected


@pytest.mark.parametrize(
    ("corrupt", "missing"), list(itertools.product((0, 50_000, 100_000, 250_000, 333_333, 600_000), repeat=2))
)
def test_parameters_of_a_complete_graph_hold_or_are_refused_where_no_threshold_does(corrupt: int, missing: int) -> None:
    for n in range(2, 129):
        a, d = n * corrupt // 1_000_000, n * missing // 1_000_000
        sound = [t for t in range(1, n + 1) if is_exclusive(n, a, t) and n - d >= t]
        try:
            found = parameters_for(n, corrupt, missing)
        except SecureAggregationError:
            assert sound == []
            continue
        assert found.threshold in sound
        assert (found.corrupt_count, found.missing_count, found.degree) == (a, d, n - 1)


def is_exclusive(client_count: int, corrupt_count: int, threshold: int) -> bool:
    """Return whether no way to ask the honest for one share each, and the corrupt for both, gives both secrets."""
    honest = client_count - corrupt_count
    return all(min(asked + corrupt_count, honest - asked + corrupt_count) < threshold for asked in range(honest + 1))


def test_thresholds_of_two_thirds_bear_a_third_corrupt_and_three_tenths_missing() -> None:
    for n in range(2, 2001):
        assert complete_threshold(n, n // 3, n * 3 // 10) == 2 * n // 3 + 1


@pytest.mark.parametrize("rules", [Rules(), PUBLISHED])
def test_connectivity_bits_bound_the_rings_that_removals_cut(rules: Rules) -> None:
    n, degree, removed = 14, 4, 5
    sets = list(itertools.combinations(range(n), removed))
    cut = sum(is_cut(n, degree, frozenset(gone)) for gone in sets)
    assert 0 < cut / len(sets) <= 2.0 ** -Ring(n, 2, 3, rules).connectivity_bits(degree)


def is_cut(n: int, degree: int, gone: frozenset[int]) -> bool:
    """Return whether a ring without some of its clients falls apart."""
    left = set(range(n)) - gone
    reached, edge = set(), {min(left)}
    while edge:
        reached |= edge
        near = {(client + step) % n for client in edge for step in range(-(degree // 2), degree // 2 + 1)}
        edge = (near & left) - reached
    return reached != left


def test_ring_of_many_corrupt_clients_is_the_first_that_stays_connected() -> None:
    """With nobody missing, condition 3 alone decides without our additions."""

    def chance_of_cut(degree: int) -> Fraction:
        pairs = Fraction(1000 * (1000 - degree - 1), 2)
        return pairs * Fraction(math.perm(800, degree), math.perm(1000, degree))

    expected = next(degree for degree in range(2, 999, 2) if chance_of_cut(degree) <= Fraction(1, 2**41))
    found = ring_for(1000, 800, 0, PUBLISHED_CURIOUS)
    assert found is not None
    assert found[0] == expected == 168


def test_chosen_dropouts_that_cut_a_ring_need_the_corrupt_clients_of_condition_4() -> None:
    n, degree, corrupt_count, missing_count, threshold = 11, 4, 3, 3, 4
    run, found = degree // 2, 0
    least = threshold - run - 1
    for corrupt in itertools.combinations(range(n), corrupt_count):
        honest = sorted(set(range(n)) - set(corrupt))
        for missing in itertools.combinations(honest, missing_count):
            removed = frozenset(corrupt + missing)
            alive = all(
                sum((client + step) % n not in missing for step in range(-run, run + 1)) >= threshold
                for client in honest
                if client not in missing
            )
            if not (alive and is_cut(n, degree, removed)):
                continue
            found += 1
            runs = [{(first + step) % n for step in range(run)} for first in range(n)]
            assert any(
                one <= removed
                and two <= removed
                and not one & two
                and min(len(one & set(corrupt)), len(two & set(corrupt))) >= least
                and len((one | two) & set(corrupt)) >= degree - missing_count
                for one, two in itertools.combinations(runs, 2)
            )
    assert found > 0


def test_cut_bits_bound_what_two_runs_that_share_the_corrupt_clients_hold() -> None:
    n, corrupt, missing, degree, threshold = 200, 20, 20, 32, 22
    run, least = degree // 2, threshold - degree // 2 - 1
    first = exact_chances(n, corrupt, run)
    both = sum(
        first[one] * second
        for one in range(least, run + 1)
        for two, second in enumerate(exact_chances(n - run, corrupt - one, run))
        if two >= least and one + two >= degree - missing
    )
    places = Fraction(n * (n - 1), 2)
    assert 0 < places * both <= 2.0 ** -Ring(n, corrupt, missing).cut_bits(degree, threshold)


def test_cut_bits_of_more_corrupt_clients_than_there_are_is_endless() -> None:
    assert Ring(200, 5, 10).cut_bits(40, 30) == math.inf


@pytest.mark.parametrize(
    ("parameters", "minimum_honest", "expected"),
    [
        pytest.param(Parameters(10, 1, 1, 9, 7), 3, 9, id="dropouts"),
        pytest.param(Parameters(10, 1, 5, 9, 7), 3, 7, id="threshold"),
        pytest.param(Parameters(10, 3, 4, 9, 7), 5, 8, id="honest"),
    ],
)
def test_fewest_survivors_is_the_largest_of_three_floors(
    parameters: Parameters, minimum_honest: int, expected: int
) -> None:
    assert parameters.fewest_survivors(minimum_honest) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 0, 0), "Secure aggregation: client_count must be 2 to 100000, got 1."),
        ((100_001, 0, 0), "client_count must be 2 to 100000, got 100001."),
        ((10, -1, 0), "corrupt_ppm must be 0 to 1000000, got -1."),
        ((10, 1_000_001, 0), "corrupt_ppm must be 0 to 1000000, got 1000001."),
        ((10, 0, -1), "dropout_ppm must be 0 to 999999, got -1."),
        ((10, 0, 1_000_000), "dropout_ppm must be 0 to 999999, got 1000000."),
        (
            (10, 300_000, 400_000),
            r"Secure aggregation of 10 clients: threshold must be at least 7, so that 2t > n \+ a with 3 corrupt, "
            "and at most 6, so that t <= n - D with 4 missing, got none. Lower",
        ),
        ((1000, 400_000, 300_000), "threshold must be at least 701, .* and at most 700"),
        ((2, 1_000_000, 0), "threshold must be at least 3, .* and at most 2"),
    ],
)
def test_parameters_that_cannot_be_are_refused(arguments: tuple[int, int, int], message: str) -> None:
    with pytest.raises(SecureAggregationError, match=message):
        parameters_for(*arguments)
