"""The coordinator and the clients that conspire with it learn the sum of the honest survivors' vectors, and nothing else."""

import itertools

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from privacy.secagg.masks import add_masks
from privacy.secagg.session import SUITES
from tests.privacy.secagg.coalition import (
    Played,
    Residue,
    Schedule,
    carry_out,
    check,
    check_only_the_sum_is_known,
    schedules,
)
from tests.privacy.secagg.transcript import Known, known

# --- Sessions ---------------------------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(schedules(), st.integers(0, 2**32))
def test_coalition_learns_the_sum_and_nothing_else(schedule: Schedule, seed: int) -> None:
    residue = check(carry_out(schedule), seed)
    event(f"vectors: {len(residue.uploads) > 0}, opened: {len(residue.opened) > 0}")


@pytest.mark.parametrize("key_agreement", SUITES)
@pytest.mark.parametrize(
    ("schedule", "opened"),
    [
        pytest.param(Schedule(5), {0, 1, 2, 3, 4}, id="all-honest"),
        pytest.param(Schedule(6, frozenset({1}), 1, 1), {0, 2, 3, 4, 5}, id="one-conspires"),
        pytest.param(Schedule(9, frozenset({0, 4}), 2, 2, frozenset({8})), {1, 2, 3, 5, 6, 7}, id="one-mute"),
        pytest.param(
            Schedule(9, frozenset({0, 4}), 2, 2, sets=(frozenset({8, 7}),)), {1, 2, 3, 5, 6}, id="two-too-late"
        ),
        pytest.param(Schedule(8, frozenset({0}), 1, 2, unheard=frozenset({1, 2})), {1, 2, 3, 4, 5, 6, 7}, id="unheard"),
    ],
)
def test_coalition_learns_the_sum_of_all_honest_survivors(
    schedule: Schedule, opened: set[int], key_agreement: str
) -> None:
    residue = check(carry_out(schedule, key_agreement))
    assert residue.opened == [opened]


def test_delivery_that_differs_for_one_client_opens_nothing_of_it() -> None:
    """Four members, one conspires, and the bounds are tight: all choices of whom each honest one is told of, who have shared.

    A delivery is not signed. But whoever acknowledges has masked with all survivors, and for the seed of one who does not acknowledge a
    threshold of others must, of whom at least one is honest and shares a mask with it.
    """
    subsets = [frozenset[int](), frozenset({0}), frozenset({1}), frozenset({2}), frozenset({3})]
    seen = set()
    for first in subsets[2:]:
        for second in (subsets[0], subsets[1], subsets[3], subsets[4]):
            for gone in subsets:
                schedule = Schedule(4, frozenset({3}), 1, 1, left_out={0: first, 1: second}, sets=(gone,))
                seen.update(check(carry_out(schedule)).opened)
    assert frozenset({0, 1, 2}) in seen
    assert all(len(group) >= 2 for group in seen)


@pytest.mark.parametrize(
    "halves", list(itertools.product([0, 1], repeat=4)), ids=lambda halves: "".join(map(str, halves))
)
def test_two_tales_in_a_tight_session_open_at_most_one_sum(halves: tuple[int, ...]) -> None:
    """Seven members, three conspire, and the bounds are tight: each honest one is told that member 3 is there, or that it is gone.

    One threshold for acknowledgements and shares keeps both secrets of member 3 from being had. One less would not, where two of the
    honest are told one tale and two the other; and without acknowledgements it would do to tell member 3 alone that it is there.
    """
    told = dict(enumerate(halves))
    schedule = Schedule(7, frozenset({4, 5, 6}), 3, 1, sets=(frozenset(), frozenset({3})), told=told)
    residue = check(carry_out(schedule))
    # A sum takes six acknowledgements, three of them of those who conspire.
    assert len(residue.opened) == (sum(halves) <= 1 or halves[:3] == (1, 1, 1))


# --- Broken sessions --------------------------------------------------------------------------------------------------------------------


def without_own_masks(done: Played) -> None:
    """Bring vectors as clients would that forget the mask of their own seed."""
    for place, (stage, client_id, message) in enumerate(done.record.received):
        if stage == "upload":
            assert isinstance(message, bytes)
            index = done.record.clients.index(client_id)
            bare = np.frombuffer(message, done.inputs[0].dtype) - done.own_masks[index]
            done.record.received[place] = (stage, client_id, bare.tobytes())  # type: ignore[index]


def test_check_fails_where_the_mask_of_the_own_seed_is_dropped() -> None:
    done = carry_out(Schedule(6, frozenset({5}), 1, 1, sets=(frozenset({2}),)))
    found = known(done.record, done.conspirators)
    check(done)
    without_own_masks(done)
    with pytest.raises(AssertionError):
        check(done)
    late = dict(done.record.uploads())[2].copy()
    add_masks(late, found.masks(done.record, 2))
    assert (late == done.inputs[2]).all()


@pytest.mark.parametrize("is_late", [True, False])
def test_check_fails_where_both_secrets_of_a_client_are_given(is_late: bool) -> None:
    done = carry_out(Schedule(6, frozenset({5}), 1, 1, sets=(frozenset({2}) if is_late else frozenset(),)))
    found = known(done.record, done.conspirators)
    check(done)
    if is_late:
        assert 2 in found.keys
        other = Known({**found.seeds, 2: bytes(32)}, found.keys)
    else:
        assert 2 in found.seeds
        other = Known(found.seeds, {**found.keys, 2: bytes(32)})
    residue = Residue.of(done.record, other, done.honest)
    assert frozenset({2}) in residue.opened
    with pytest.raises(AssertionError, match="both secrets of member 2"):
        check_only_the_sum_is_known(done.record, other, residue, done.honest)


def test_check_fails_where_survivors_are_cut_in_two() -> None:
    """Masks between the two halves that are known would give the sum of each half."""
    done = carry_out(Schedule(6))
    found = known(done.record)
    residue = Residue.of(done.record, found, done.honest)
    residue.joined = [pair for pair in residue.joined if (pair[0] < 3) == (pair[1] < 3)]
    assert sorted(map(sorted, residue.opened)) == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(AssertionError, match="more than one sum"):
        check_only_the_sum_is_known(done.record, found, residue, done.honest)
