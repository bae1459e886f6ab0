"""A coordinator that lies about what a session is for, or offers one again, is refused before the session has begun."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import Message

from privacy.errors import AbortCode, SessionAbortedError
from privacy.secagg.client import ClientState
from privacy.secagg.coordinator import CoordinatorSession
from privacy.secagg.labels import sign
from privacy.secagg.party import Floor
from privacy.secagg.session import SessionParameters
from tests.privacy.secagg.hostile import Diary, advertised, entries_of, opened, session_of
from tests.privacy.secagg.sessions import Play, parameters, play
from wire import federation_pb2 as pb


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"digest": b"x" * 32}, id="another-model"),
        pytest.param({"round_number": 2}, id="another-round"),
        pytest.param({"attempt": 1}, id="another-attempt"),
        pytest.param({"corrupt_fraction": 0.1}, id="another-corrupt-fraction"),
        pytest.param({"dropout_fraction": 0.1}, id="another-dropout-fraction"),
        pytest.param({"minimum_cohort": 3}, id="another-cohort"),
        pytest.param({"weight_cap": 99}, id="another-weight-cap"),
        pytest.param({"size": 6}, id="another-size"),
    ],
)
def test_offer_for_other_parameters_than_the_clients_own_is_refused(other: dict[str, float]) -> None:
    session, _ = play(5)
    theirs = parameters(5, **other)  # type: ignore[arg-type]
    with pytest.raises(SessionAbortedError, match="signed by the coordinator for this task") as abort:
        opened(session, session.clients[0], theirs)
    assert abort.value.code is AbortCode.FORGED
    assert abort.value.evidence == (session.coordinator.offer,)
    assert session.clients[0].session is None
    assert session.clients[0].journal.begun == []


def test_offer_of_another_federation_is_refused() -> None:
    session, _ = play(5)
    elsewhere = parameters(5)
    purpose = type(elsewhere.purpose)(
        "other", *[getattr(elsewhere.purpose, name) for name in elsewhere.purpose.__slots__[1:]]
    )
    agreed = SessionParameters(purpose, elsewhere.spec)
    session.coordinator = CoordinatorSession(agreed, session.authority.coordinator, session.authority.problem_with)
    with pytest.raises(SessionAbortedError, match="federation must be 'lab', got 'other'") as abort:
        opened(session, session.clients[0], agreed)
    assert abort.value.code is AbortCode.FORGED


def test_offer_of_another_coordinator_is_refused() -> None:
    session, _ = play(5)
    other = CoordinatorSession(session.parameters, Ed25519PrivateKey.generate(), session.authority.problem_with)
    session.coordinator = other
    with pytest.raises(SessionAbortedError, match="signed by the coordinator") as abort:
        opened(session, session.clients[0])
    assert abort.value.code is AbortCode.FORGED


@pytest.mark.parametrize(
    ("floor", "message"),
    [
        pytest.param(Floor(minimum_cohort=3), "minimum_cohort must be at least this site's 3, got 2", id="cohort"),
        pytest.param(
            Floor(minimum_cohort=2, corrupt_ppm=200_000),
            "corrupt_fraction must be at least this site's 0.2, got 0.1",
            id="corrupt",
        ),
    ],
)
def test_spec_below_the_floor_of_the_site_is_refused(floor: Floor, message: str) -> None:
    session, _ = play(5, corrupt_fraction=0.1)
    session.clients[0].floor = floor
    with pytest.raises(SessionAbortedError, match=message) as abort:
        opened(session, session.clients[0])
    assert abort.value.code is AbortCode.POLICY
    assert session.clients[0].journal.begun == []


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        (pb.SessionOffer, {"federation", "attempt", "nonce", "signature"}),
        (pb.Roster, {"session_id", "members", "signature"}),
        (pb.Delivery, {"session_id", "sharers", "packets", "signature"}),
        (pb.Survivors, {"session_id", "survivors", "signature"}),
        (pb.AckBundle, {"session_id", "acks"}),
    ],
)
def test_coordinator_has_no_field_to_lie_about_the_threshold(message: type[Message], fields: set[str]) -> None:
    """Degree and threshold follow from the roster's length and the signed spec by a public function, and from nothing else."""
    assert {field.name for field in message.DESCRIPTOR.fields} == fields


@pytest.mark.parametrize(
    ("count", "ring_bits", "message"),
    [
        pytest.param(0, 32, "client_count must be 2 to", id="nobody"),
        pytest.param(1, 32, "client_count must be 2 to", id="alone"),
        pytest.param(1 << 16, 16, "clients", id="more-than-the-ring-counts"),
        pytest.param(1 << 31, 32, "client_count must be", id="more-than-there-are"),
    ],
)
def test_cohort_that_no_session_can_have_is_refused(count: int, ring_bits: int, message: str) -> None:
    session, _ = play(5)
    theirs = parameters(count, ring_bits=ring_bits, weight_cap=1)
    with pytest.raises(SessionAbortedError, match=message) as abort:
        opened(session, session.clients[0], theirs)
    assert abort.value.code is AbortCode.POLICY


@pytest.mark.parametrize("length", [0, 31, 33])
def test_offer_with_a_nonce_of_another_length_is_refused(length: int) -> None:
    session, _ = play(5)
    nonce = bytes(length)
    session.coordinator.offer.nonce = nonce
    session.coordinator.offer.signature = sign(
        session.authority.coordinator, "offer", session.parameters.canon(), nonce
    )
    with pytest.raises(SessionAbortedError, match="signed by the coordinator"):
        opened(session, session.clients[0])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param((1, 0), (1, 0), id="same-attempt"),
        pytest.param((2, 1), (2, 0), id="earlier-attempt"),
        pytest.param((3, 0), (2, 5), id="earlier-round"),
    ],
)
def test_round_or_attempt_that_was_before_is_refused(first: tuple[int, int], second: tuple[int, int]) -> None:
    session, _ = play(5)
    client, authority = session.clients[0], session.authority
    client.journal = Diary()
    opened(Play(parameters(5, round_number=first[0], attempt=first[1]), authority, [client]), client)
    again = Play(parameters(5, round_number=second[0], attempt=second[1]), authority, [client])
    with pytest.raises(SessionAbortedError, match="must be later than before") as abort:
        opened(again, client)
    assert abort.value.code is AbortCode.REPLAY
    assert abort.value.code.is_alarming


def test_attempt_after_the_sum_was_opened_is_refused() -> None:
    """Those who have revealed refuse any other session for the round; those who have not may go on."""
    session = advertised(5, dropout_fraction=0.2)
    session.share(session.coordinator.freeze())
    session.upload(session.coordinator.deliver())
    survivors = session.coordinator.close_sum(session.uploaded)
    session.acknowledge(dict.fromkeys(session.uploaded, survivors))
    bundles = session.coordinator.bundles()
    silent = session.clients[3]
    session.unmask({name: bundle for name, bundle in bundles.items() if name != silent.client_id})
    session_of(silent).abort()
    again = Play(parameters(5, attempt=1, dropout_fraction=0.2), session.authority, session.clients)
    again.advertise()
    assert again.aborted.keys() == {client.client_id for client in session.clients} - {silent.client_id}
    assert {error.code for error in again.aborted.values()} == {AbortCode.REPLAY}
    assert session_of(silent).state is ClientState.ADVERTISED


def test_no_secret_of_an_attempt_is_one_of_the_next() -> None:
    """So both kinds of shares of one client cannot be had by asking for each in an attempt of its own."""
    session = advertised()
    first = entries_of(session)
    again = Play(parameters(5, attempt=1), session.authority, session.clients)
    again.advertise()
    assert not again.aborted
    second = entries_of(again)
    for name in ("encryption_key", "mask_key", "seed_commitment", "session_id"):
        assert not {getattr(entry, name) for entry in first} & {getattr(entry, name) for entry in second}
