"""Who takes part in a round: a function of seed, round and identities alone (law L8), among the clients that can."""

import math
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.cohort import Member
from server.selection import choose
from tests.loopback import small_spec
from wire.seeds import derive_seed
from wire.spec import RunSpec

NOW = 1000.0


def present(count: int) -> list[Member]:
    return [Member(f"{index:032x}", f"site-{index}", is_present=True, absent_since=0.0) for index in range(count)]


def spec_of(**cohort: Any) -> RunSpec:
    return small_spec(cohort={"size": None, "quorum": None, "return_seconds": 10} | cohort)


def ranked(members: list[Member], spec: RunSpec, round_number: int) -> list[str]:
    """Return the clients in the order of their ranks, worked out one by one."""
    keys = [derive_seed(spec.seed, purpose, round_number) for purpose in ("select", "select again")]

    def rank(client_id: str) -> int:
        value = derive_seed(0, "rank", client_id=client_id)
        for key in keys:
            value ^= key
            for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
                value = ((value ^ value >> 33) * factor) % 2**64
            value ^= value >> 33
        return value

    return sorted((member.client_id for member in members), key=rank)


def test_choose_takes_the_best_ranks_of_the_round() -> None:
    spec, members = spec_of(size=3), present(10)
    for number in (1, 2, 3):
        choice = choose(members, spec, number, NOW)
        assert list(choice.client_ids) == ranked(members, spec, number)[:3]
        assert choice.is_ready
        assert (choice.want, choice.absent, choice.back_by) == (3, frozenset(), math.inf)
        assert choice.present == choice.client_ids


@given(order=st.randoms(use_true_random=False), gone=st.sets(st.integers(0, 19), max_size=10))
def test_choose_depends_on_no_order_and_moves_nobody_when_others_go(order: random.Random, gone: set[int]) -> None:
    spec, members = spec_of(size=5), present(20)
    left = [member for index, member in enumerate(members) if index not in gone]
    order.shuffle(left)
    choice = choose(left, spec, 1, NOW)
    ids = {member.client_id for member in left}
    assert list(choice.client_ids) == [client_id for client_id in ranked(members, spec, 1) if client_id in ids][:5]


def test_choose_gives_everyone_their_share_over_the_rounds() -> None:
    spec, members = spec_of(size=5), present(20)
    counts = Counter(
        client_id for number in range(1, 401) for client_id in choose(members, spec, number, NOW).client_ids
    )
    # Each is drawn 100 times on average, with a standard deviation of sqrt(400 * 0.25 * 0.75) = 8.7.
    assert len(counts) == 20
    assert all(60 < count < 140 for count in counts.values())


def test_choose_passes_over_clients_of_other_runs_and_those_without_the_learner() -> None:
    spec, members = spec_of(size=2), present(5)
    members[0] = replace(members[0], claimed_by="other")
    members[1] = replace(members[1], learners=frozenset({"cnn"}))
    members[2] = replace(members[2], learners=frozenset({"cnn", "mlp"}))
    members[3] = replace(members[3], learners=frozenset())
    choice = choose(members, spec, 1, NOW)
    assert set(choice.client_ids) == {members[2].client_id, members[4].client_id}


@pytest.mark.parametrize(
    ("cohort", "present_count", "chosen_count", "want", "is_ready"),
    [
        ({"size": 3}, 2, 2, 3, False),
        ({"size": 3}, 3, 3, 3, True),
        ({"size": 3, "over_selection": 1.5}, 10, 5, 3, True),
        ({"size": 3, "over_selection": 1.5}, 4, 4, 3, True),
        ({"size": 4, "quorum": 2}, 3, 3, 4, False),
        ({"fraction": 0.5}, 10, 5, 5, True),
        ({"fraction": 0.5}, 3, 2, 2, True),
        ({"fraction": 0.01}, 10, 1, 1, True),
        ({"fraction": 1.0}, 0, 0, 1, False),
        ({"fraction": 0.1, "quorum": 3}, 10, 3, 3, True),
        ({"fraction": 0.1, "quorum": 3}, 2, 2, 3, False),
        ({"fraction": 0.5, "over_selection": 1.4}, 10, 7, 5, True),
    ],
)
def test_choose_asks_as_many_as_the_cohort_says(
    cohort: dict[str, Any], present_count: int, chosen_count: int, want: int, is_ready: bool
) -> None:
    choice = choose(present(present_count), spec_of(**cohort), 1, NOW)
    assert (len(choice.client_ids), choice.want, choice.is_ready) == (chosen_count, want, is_ready)


def test_choose_keeps_the_place_of_one_that_is_expected_back_for_a_while() -> None:
    spec, members = spec_of(size=2), present(3)
    best = ranked(members, spec, 1)
    index = int(best[0], 16)
    members[index] = replace(members[index], is_present=False, absent_since=NOW - 4)
    choice = choose(members, spec, 1, NOW)
    assert choice.client_ids == (best[0], best[1])
    assert not choice.is_ready
    assert choice.absent == {best[0]}
    assert choice.present == (best[1],)
    assert choice.back_by == NOW + 6
    later = choose(members, spec, 1, NOW + 6)
    assert later.client_ids == (best[1], best[2])
    assert later.is_ready


def test_choose_gives_up_at_the_moment_that_it_named() -> None:
    # In floats, now - absent_since is still below 20 here, although absent_since + 20 is now.
    gone = Member("a" * 32, "site", is_present=False, absent_since=509.8760675960305)
    spec = spec_of(size=1, return_seconds=20.0)
    assert choose([gone], spec, 1, 529.8).back_by == 529.8760675960305
    assert choose([gone], spec, 1, 529.8760675960305).absent == frozenset()


def test_choose_asks_the_refused_again_only_when_no_others_are_left() -> None:
    spec, members = spec_of(size=2), present(3)
    best = ranked(members, spec, 1)
    assert choose(members, spec, 1, NOW, {best[0]}).client_ids == (best[1], best[2])
    assert choose(members, spec, 1, NOW, {best[0], best[1]}).client_ids == (best[2], best[0])


@given(size=st.integers(1, 60), refused=st.sets(st.integers(0, 49)), over=st.sampled_from([1.0, 1.3, 3.0]))
def test_choose_ranks_as_a_full_sort_does_with_the_refused_last(size: int, refused: set[int], over: float) -> None:
    spec, members = spec_of(size=size, over_selection=over), present(50)
    best = ranked(members, spec, 1)
    again = {members[index].client_id for index in refused}
    expected = [name for name in best if name not in again] + [name for name in best if name in again]
    choice = choose(members, spec, 1, NOW, again)
    assert list(choice.client_ids) == expected[: math.ceil(size * over)]
