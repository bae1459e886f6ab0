"""Law L5 at the door: what is checked before a byte arrives, what is recorded, and what admission leaves behind when it is disturbed."""

import asyncio
import itertools
import math
import random
import threading
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import Evaluation
from server import inbox as inbox_module
from server.aggregation import WeightedMean
from server.errors import ContributionRefused, reason_name
from server.inbox import (
    AT_ONCE,
    CLIENT_REFUSAL_COUNT,
    REFUSAL_COUNT,
    Arrival,
    Ballot,
    Binding,
    Inbox,
    accepted_metrics,
    weighted_means,
)
from server.signal import Signal
from wire.federation_pb2 import RefusalReason
from wire.grid import Grid
from wire.memory import VectorPool
from wire.tensors import Vector

BINDING = Binding("run", 3, b"B" * 32, b"L" * 32)


class SlowSum(WeightedMean):
    """A sum whose additions wait for the test."""

    def __init__(self) -> None:
        super().__init__(Grid(4.0, 100, 3), 2)
        self.may_add = threading.Event()
        self.is_adding = threading.Event()

    def add(self, vector: Vector, weight: int) -> None:
        self.is_adding.set()
        assert self.may_add.wait(20)
        super().add(vector, weight)


@pytest.fixture(params=[0, AT_ONCE], ids=["in-a-thread", "at-once"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Admit as a large contribution is admitted, and as a small one."""
    monkeypatch.setattr(inbox_module, "AT_ONCE", request.param)


@pytest.fixture
def in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Admit as a large contribution is admitted."""
    monkeypatch.setattr(inbox_module, "AT_ONCE", 0)


def make_inbox(total: WeightedMean | None = None) -> Inbox:
    sum_of_two = total or WeightedMean(Grid(4.0, 100, 3), 2)
    return Inbox(BINDING, ["ana", "ben", "eva"], sum_of_two, Signal(), VectorPool())


def arrival(client_id: str, *values: float, weight: int = 1) -> Arrival:
    return Arrival(client_id, BINDING, weight, 10, {"train_loss": 0.5}, 1.5, np.array(values, dtype=np.float32))


@pytest.mark.usefixtures("either_way")
async def test_admit_counts_a_contribution_once_and_records_it() -> None:
    inbox = make_inbox()
    assert await inbox.admit(arrival("ana", 1, 2, weight=3)) is None
    assert await inbox.admit(arrival("ben", 3, 4)) is None
    assert inbox.unsettled == {"eva"}
    assert inbox.count == 2
    record = inbox.contributions["ana"]
    assert (record.weight, record.example_count, record.byte_count, record.train_seconds) == (3, 10, 8, 1.5)
    await inbox.close()
    assert inbox.take_total().mean().tolist() == [1.5, 2.5]


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize(
    ("client_id", "changes", "reason", "detail"),
    [
        ("ana", {"run_id": "other"}, "wrong_run", "run must be run, got other"),
        ("zoe", {}, "not_invited", "the client must have been asked, it was not"),
        ("", {}, "not_invited", "the client must have been asked, it was not"),
        ("ben", {}, "duplicate", "a client must contribute once per round, got a second one"),
        ("eva", {}, "duplicate", "a client that was refused must wait for the next round"),
        ("ana", {"round_number": 2}, "wrong_round", "round must be 3, got 2"),
        ("ana", {"base_sha256": b"b" * 32}, "wrong_base", "base model must be 4242424242424242, got 6262626262626262"),
        ("ana", {"base_sha256": b""}, "wrong_base", "base model must be 4242424242424242, got none"),
        ("ana", {"base_sha256": b"B" * 31}, "wrong_base", "base model must be 4242424242424242, got 4242424242424242"),
        ("ana", {"layout_sha256": b"l" * 32}, "wrong_layout", "layout must be 4c4c4c4c4c4c4c4c, got 6c6c6c6c6c6c6c6c"),
        ("ana", {"layout_sha256": b""}, "wrong_layout", "layout must be 4c4c4c4c4c4c4c4c, got none"),
    ],
)
async def test_check_names_reason_rule_and_value_and_admit_adds_nothing(
    client_id: str, changes: Mapping[str, str], reason: str, detail: str
) -> None:
    inbox = make_inbox()
    await inbox.admit(arrival("ben", 1, 1))
    inbox.refuse("eva", RefusalReason.REFUSAL_REASON_CORRUPTED, "a bit")
    found = replace(BINDING, **changes)  # type: ignore[arg-type]
    with pytest.raises(ContributionRefused, match=f"^{detail}$") as caught:
        inbox.check(client_id, found)
    assert reason_name(caught.value.reason) == reason
    assert len(inbox.refusals) == 1
    refusal = await inbox.admit(replace(arrival(client_id, 3, 3), binding=found))
    assert refusal is not None
    assert [record.reason for record in inbox.refusals] == ["corrupted", reason]
    assert inbox.refusals[1].detail == detail
    await inbox.close()
    assert inbox.take_total().mean().tolist() == [1, 1]


async def test_check_passes_what_is_bound_as_it_should_be() -> None:
    make_inbox().check("ana", Binding("run", 3, b"B" * 32, b"L" * 32))


async def test_holds_knows_what_is_in_the_sum_by_client_binding_and_sha256() -> None:
    inbox = make_inbox()
    brought = replace(arrival("ana", 1, 1), sha256=b"a" * 32)
    assert not inbox.holds("ana", BINDING, b"a" * 32)
    await inbox.admit(brought)
    await inbox.admit(replace(arrival("ben", math.nan, 1), sha256=b"b" * 32))
    assert inbox.holds("ana", BINDING, b"a" * 32)
    assert not inbox.holds("ana", BINDING, b"b" * 32)
    assert not inbox.holds("ana", replace(BINDING, round_number=2), b"a" * 32)
    assert not inbox.holds("eva", BINDING, b"a" * 32)
    # Refused, and so not in the sum.
    assert not inbox.holds("ben", BINDING, b"b" * 32)
    # A second one that is refused does not take the place of the first.
    assert await inbox.admit(replace(brought, sha256=b"c" * 32)) is not None
    assert inbox.holds("ana", BINDING, b"a" * 32)


@pytest.mark.usefixtures("in_a_thread")
async def test_admit_of_one_client_twice_at_a_time_counts_one() -> None:
    total = SlowSum()
    inbox = make_inbox(total)
    first, second = (asyncio.create_task(inbox.admit(arrival("ana", value, value))) for value in (1, 3))
    await asyncio.to_thread(total.is_adding.wait, 20)
    total.may_add.set()
    assert await first is None
    refusal = await second
    assert refusal is not None
    assert refusal.reason == RefusalReason.REFUSAL_REASON_DUPLICATE
    await inbox.close()
    assert inbox.take_total().mean().tolist() == [1, 1]


@pytest.mark.usefixtures("in_a_thread")
async def test_close_waits_for_the_addition_under_way_and_refuses_those_behind_it() -> None:
    total = SlowSum()
    inbox = make_inbox(total)
    first = asyncio.create_task(inbox.admit(arrival("ana", 1, 1)))
    await asyncio.to_thread(total.is_adding.wait, 20)
    second = asyncio.create_task(inbox.admit(arrival("ben", 3, 3)))
    closing = asyncio.create_task(inbox.close())
    await asyncio.wait([closing], timeout=0.05)
    assert not closing.done()
    total.may_add.set()
    await closing
    assert await first is None
    refusal = await second
    assert refusal is not None
    assert refusal.reason == RefusalReason.REFUSAL_REASON_TOO_LATE
    assert str(refusal) == "round 3 has closed"
    assert inbox.contributions.keys() == {"ana"}
    assert inbox.take_total().mean().tolist() == [1, 1]


@pytest.mark.usefixtures("in_a_thread")
async def test_admit_cancelled_goes_on_to_its_end_and_keeps_the_caller_until_then() -> None:
    total = SlowSum()
    inbox = make_inbox(total)
    admission = asyncio.create_task(inbox.admit(arrival("ana", 1, 1)))
    await asyncio.to_thread(total.is_adding.wait, 20)
    admission.cancel()
    await asyncio.wait([admission], timeout=0.05)
    # The vector's buffer is still read: its place must not be given to another yet.
    assert not admission.done()
    total.may_add.set()
    with pytest.raises(asyncio.CancelledError):
        await admission
    assert inbox.contributions.keys() == {"ana"}
    await inbox.close()
    assert inbox.take_total().mean().tolist() == [1, 1]


@pytest.mark.parametrize(
    ("reason", "settles"),
    [
        (RefusalReason.REFUSAL_REASON_CORRUPTED, True),
        (RefusalReason.REFUSAL_REASON_TOO_SLOW, True),
        (RefusalReason.REFUSAL_REASON_CLIENT_ERROR, True),
        (RefusalReason.REFUSAL_REASON_WRONG_ROUND, False),
        (RefusalReason.REFUSAL_REASON_WRONG_RUN, False),
    ],
)
async def test_refuse_settles_the_client_unless_it_was_for_another_round(reason: RefusalReason, settles: bool) -> None:
    inbox = make_inbox()
    inbox.refuse("ana", reason, "why")
    assert ("ana" in inbox.unsettled) is not settles
    refusal = await inbox.admit(arrival("ana", 1, 1))
    assert (refusal is None) is not settles


async def test_refuse_wakes_the_round() -> None:
    inbox = make_inbox()
    waiting = asyncio.create_task(inbox.changed.wait(20))
    await asyncio.sleep(0)
    inbox.refuse("ana", RefusalReason.REFUSAL_REASON_CORRUPTED, "a bit")
    async with asyncio.timeout(1):
        await waiting


async def test_refuse_of_a_contributor_or_a_stranger_is_recorded_and_changes_nothing_else() -> None:
    inbox = make_inbox()
    await inbox.admit(arrival("ana", 1, 1))
    inbox.refuse("ana", RefusalReason.REFUSAL_REASON_DUPLICATE, "again")
    inbox.refuse("zoe", RefusalReason.REFUSAL_REASON_NOT_INVITED, "who?")
    assert inbox.contributions.keys() == {"ana"}
    assert inbox.unsettled == {"ben", "eva"}
    assert [(record.client_id, record.reason) for record in inbox.refusals] == [
        ("ana", "duplicate"),
        ("zoe", "not_invited"),
    ]


async def test_refuse_cuts_long_details_and_keeps_a_bounded_number() -> None:
    inbox = make_inbox()
    for stranger in range(REFUSAL_COUNT + 5):
        inbox.refuse(f"stranger-{stranger}", RefusalReason.REFUSAL_REASON_NOT_INVITED, "x" * 5000)
    assert len(inbox.refusals) == REFUSAL_COUNT
    assert len(inbox.refusals[0].detail) == 1000
    # Those who were asked are recorded all the same, but none of them without end.
    for _ in range(CLIENT_REFUSAL_COUNT + 5):
        inbox.refuse("ana", RefusalReason.REFUSAL_REASON_NOT_FINITE, "nan")
    assert [refusal.client_id for refusal in inbox.refusals[REFUSAL_COUNT:]] == ["ana"] * CLIENT_REFUSAL_COUNT


# --- Evaluations ---


async def test_ballot_takes_each_asked_clients_first_word() -> None:
    ballot = Ballot(["ana", "ben", "eva", "ida"], Signal())
    ballot.record("ana", Evaluation(10, {"loss": 1.0, "Bad Name": 1.0, "odd": math.nan}))
    ballot.record("ana", Evaluation(99, {"loss": 9.0}))
    ballot.record("zoe", Evaluation(99, {"loss": 9.0}))
    ballot.fail("ben", RefusalReason.REFUSAL_REASON_CLIENT_DATA, "x" * 5000)
    ballot.record("ben", Evaluation(99, {"loss": 9.0}))
    assert ballot.unsettled == {"eva", "ida"}
    ballot.record("eva", Evaluation(30, {"loss": 2.0}))
    ballot.fail("eva", RefusalReason.REFUSAL_REASON_CLIENT_ERROR, "too late")
    assert ballot.count == 2
    found = [(failure.client_id, failure.reason, failure.detail) for failure in ballot.failures()]
    assert found == [("ben", "client_data", "x" * 1000), ("ida", "no_answer", "nothing came of it in time")]
    # Of 10 and 30 examples with losses 1 and 2: 70 over 40 examples.
    assert ballot.means() == {"loss": 1.75}


def test_weighted_means_leave_out_whom_has_no_examples_or_not_that_metric() -> None:
    parts = [(10, {"loss": 1.0, "accuracy": 0.5}), (30, {"loss": 2.0}), (0, {"loss": 100.0})]
    assert weighted_means(parts) == {"loss": 1.75, "accuracy": 0.5}
    assert weighted_means([]) == {}


metrics_of_client = st.tuples(
    st.integers(0, 2**64 - 1),
    st.dictionaries(st.sampled_from(["a", "b"]), st.floats(allow_nan=False, allow_infinity=False)),
)


@given(parts=st.lists(metrics_of_client, max_size=4), order=st.randoms(use_true_random=False))
def test_weighted_means_are_finite_and_the_same_in_any_order(
    parts: list[tuple[int, dict[str, float]]], order: random.Random
) -> None:
    means = weighted_means(parts)
    assert all(math.isfinite(value) for value in means.values())
    shuffled = list(parts)
    order.shuffle(shuffled)
    assert weighted_means(shuffled) == means


@pytest.mark.parametrize("order", list(itertools.permutations([1.7e308, 1.7e308, -1.7e308])))
def test_weighted_means_of_huge_values_do_not_depend_on_their_order(order: tuple[float, ...]) -> None:
    assert weighted_means([(1, {"loss": value}) for value in order]) == {"loss": 1.7e308 / 3}


def test_weighted_means_leave_out_a_sum_beyond_float64_and_keep_the_rest() -> None:
    parts = [(2**64 - 1, {"loss": 1.7e308, "accuracy": 0.5}), (2**64 - 1, {"loss": -1.7e308, "accuracy": 0.5})]
    assert weighted_means(parts) == {"accuracy": 0.5}


def test_accepted_metrics_keeps_names_and_values_of_the_contract_alone() -> None:
    odd = {
        "ok": 1,
        "a" * 64: 2.0,
        "a" * 65: 3.0,
        "1st": 4.0,
        "_x": 5.0,
        "Loss": 6.0,
        "a b": 7.0,
        "nan": math.nan,
        "inf": math.inf,
    }
    assert accepted_metrics(odd) == {"ok": 1.0, "a" * 64: 2.0}
    many = {f"m{index:03d}": float(index) for index in range(100)}
    assert list(accepted_metrics(many)) == [f"m{index:03d}" for index in range(64)]
