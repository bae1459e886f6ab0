"""A client whose shares, seed or vector are false is named, or the session ends with the reason: no wrong sum comes out."""

import numpy as np
import pytest
from google.protobuf.message import Message

from privacy.errors import AbortCode, SessionAbortedError
from privacy.secagg.client import ClientState
from privacy.secagg.coordinator import CoordinatorState
from tests.privacy.secagg.hostile import session_of
from tests.privacy.secagg.liars import Lie, Lied, lied, signed
from tests.privacy.secagg.sessions import Client
from wire import federation_pb2 as pb

# --- Shares and seeds -------------------------------------------------------------------------------------------------------------------


def false_share(kind: str, value: bytes = bytes(36)) -> Lie:
    def lie(session: Lied, client: Client, message: Message) -> Message:
        for held in getattr(message, kind):
            held.share = value
        return signed(session, client, message)

    return lie


@pytest.mark.parametrize("value", [bytes(36), b"\xff" * 36, bytes(35), b""], ids=["zeros", "beyond", "short", "empty"])
@pytest.mark.parametrize("liar", [0, 3, 5])
@pytest.mark.parametrize("kind", ["key_shares", "seed_shares"])
def test_false_share_of_one_holder_is_passed_over_and_named(kind: str, liar: int, value: bytes) -> None:
    """Of eight, one is gone: its key is asked for when it has brought no vector, its seed when it has."""
    session = lied()
    session.lie("unmask", liar, false_share(kind, value))
    if kind == "key_shares":
        session.run_without(uploads={7})
        assert (session.total == session.sum_without(7)).all()
    else:
        session.run_without(unmasks={7})
        assert (session.total == session.sum_without()).all()
    assert session.coordinator.false_holders == {session.ordered[liar].client_id}


@pytest.mark.parametrize(
    ("liars", "gone"),
    [pytest.param([0, 3], {7}, id="two-liars"), pytest.param([0], {6, 7}, id="one-of-as-many-as-it-takes")],
)
def test_false_shares_that_cannot_be_passed_over_end_the_session(liars: list[int], gone: set[int]) -> None:
    session = lied()
    for liar in liars:
        session.lie("unmask", liar, false_share("key_shares"))
    with pytest.raises(SessionAbortedError, match=r"mask key of .* must give what it committed to") as abort:
        session.run_without(uploads=gone)
    assert abort.value.code is AbortCode.BAD_SHARE
    assert session.ordered[min(gone)].client_id in str(abort.value)
    assert session.coordinator.false_holders == set()
    assert session.coordinator.state is CoordinatorState.DONE
    assert not session.coordinator._recovery.unmasks


def test_dealer_of_false_shares_who_goes_is_blamed() -> None:
    """Its packets open, but what is in them is nobody's secret."""
    session = lied()
    dealer = session.ordered[2]

    def take_roster(roster: pb.Roster) -> pb.Shares:
        held = session_of(dealer)._secrets
        assert held is not None
        held.seed = bytes(32)
        return kept(roster)

    session.advertise()
    kept, session_of(dealer).take_roster = session_of(dealer).take_roster, take_roster  # type: ignore[method-assign]
    session.share(session.coordinator.freeze())
    session.upload(session.coordinator.deliver())
    survivors = session.coordinator.close_sum(session.uploaded)
    session.acknowledge(dict.fromkeys(session.uploaded, survivors))
    bundles = session.coordinator.bundles()
    del bundles[dealer.client_id]
    session.unmask(bundles)
    with pytest.raises(SessionAbortedError, match=f"seed of {dealer.client_id} must give") as abort:
        session.coordinator.open(session.total)
    assert abort.value.code is AbortCode.BAD_SHARE


@pytest.mark.parametrize("seed", [bytes(32), b"", b"x" * 31])
def test_false_seed_of_its_owner_is_passed_over_and_named(seed: bytes) -> None:
    session = lied()

    def lie(session: Lied, client: Client, message: Message) -> Message:
        assert isinstance(message, pb.Unmask)
        message.own_seed = seed
        return signed(session, client, message)

    session.lie("unmask", 4, lie)
    session.run()
    assert (session.total == session.sum_without()).all()
    assert session.coordinator.false_holders == {session.ordered[4].client_id}


# --- Vectors ----------------------------------------------------------------------------------------------------------------------------

# What no protocol of this kind can do is tell whether a vector is a good one: within the weight's cap a client may bring what it likes.


@pytest.mark.parametrize(
    ("element", "value", "message"),
    [
        pytest.param(1, 2, "must be of 8 vectors, its canary says 9", id="canary"),
        pytest.param(1, 0, "must be of 8 vectors, its canary says 7", id="no-canary"),
        pytest.param(0, 801, "sum of weights must be 8 to 800", id="weight-over-the-cap"),
        pytest.param(0, 2**32 - 40, "sum of weights must be 8 to 800", id="negative-weight"),
        pytest.param(4, 0, "sum of examples must be 0 to", id="negative-examples"),
        pytest.param(4, 2**20, "sum of examples must be 0 to", id="more-examples-than-there-can-be"),
    ],
)
def test_head_that_cannot_be_ends_the_session(element: int, value: int, message: str) -> None:
    session = lied()
    session.ordered[3].vector[element] = value
    with pytest.raises(SessionAbortedError, match=message) as abort:
        session.run()
    assert abort.value.code is AbortCode.CANARY


def test_weight_that_takes_all_others_away_ends_the_session() -> None:
    """A mean over a weight of 0 would be no number."""
    session = lied()
    others = [client.vector[0] for number, client in enumerate(session.ordered) if number != 3]
    session.ordered[3].vector[0] = 2**32 - int(sum(others))
    with pytest.raises(SessionAbortedError, match="sum of weights must be 8 to 800, got 0") as abort:
        session.run()
    assert abort.value.code is AbortCode.CANARY


def test_vector_of_noise_ends_the_session() -> None:
    session = lied()
    vector = session.ordered[3].vector
    vector[:] = np.random.default_rng(7).integers(0, 2**32, len(vector), dtype=np.uint32)
    with pytest.raises(SessionAbortedError) as abort:
        session.run()
    assert abort.value.code is AbortCode.CANARY


def test_vector_that_was_not_masked_for_this_roster_ends_the_session() -> None:
    session = lied()
    session.ordered[3].vector[:] += np.uint32(12345)
    with pytest.raises(SessionAbortedError, match="canary says"):
        session.run()


@pytest.mark.parametrize("kind", ["<u2", "<u8", "<u4"])
def test_vector_of_another_length_or_ring_is_not_masked(kind: str) -> None:
    session = lied()
    session.advertise()
    session.share(session.coordinator.freeze())
    client, delivery = session.clients[0], session.coordinator.deliver()
    session_of(client).take_delivery(delivery[client.client_id])
    wrong = np.zeros(session.parameters.size + (kind == "<u4"), dtype=kind)
    with pytest.raises(ValueError, match="session's size and ring"):
        session_of(client).mask(wrong)
    assert not wrong.any()
    assert session_of(client).state is ClientState.DELIVERED


def test_vector_of_one_who_has_not_shared_is_refused() -> None:
    session = lied()
    session.advertise()
    mute = session.ordered[2].client_id
    session.share(session.coordinator.freeze(), lambda _, number: session.clients[number].client_id == mute)
    session.upload(session.coordinator.deliver())
    with pytest.raises(SessionAbortedError, match="must be of those who have shared") as abort:
        session.coordinator.close_sum([*session.uploaded, mute])
    assert abort.value.code is AbortCode.MALFORMED
    session.coordinator.close_sum(session.uploaded)
