"""A coordinator that lies learns nothing: clients see each of its lies, keep what shows it, erase their secrets and stop.

The lies are told by the real messages, changed and signed again with the coordinator's own key wherever it can sign.
"""

import itertools
from collections.abc import Callable
from functools import partial

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.errors import AbortCode, SessionAbortedError
from privacy.secagg.client import ClientState
from privacy.secagg.coordinator import CoordinatorSession
from privacy.secagg.labels import hashed, sign
from privacy.secagg.members import advertised_parts
from privacy.secagg.party import Floor, Identity
from privacy.secagg.session import SessionParameters
from tests.privacy.secagg.hostile import Diary, Tale, ack_by, opened, refused, session_of, told
from tests.privacy.secagg.sessions import FEDERATION, Client, Play, parameters, play
from wire import federation_pb2 as pb
from wire.identity import client_id_of

LOW_ORDER = [
    bytes(32),
    b"\x01" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    b"\xec" + b"\xff" * 30 + b"\x7f",
    b"\xed" + b"\xff" * 30 + b"\x7f",
    b"\xee" + b"\xff" * 30 + b"\x7f",
    bytes(31) + b"\x80",
]
"""Keys of X25519 with which every agreed secret is 0, some written in a way that is not the shortest."""


def advertised(count: int = 5, **spec: object) -> Play:
    session, _ = play(count, **spec)  # type: ignore[arg-type]
    for client in session.clients:
        client.journal = Diary()
    session.advertise()
    return session


def entries_of(session: Play) -> list[pb.Advertise]:
    return [session_of(client).advertisement for client in session.clients]


def changed(entry: pb.Advertise, **fields: bytes) -> pb.Advertise:
    found = pb.Advertise()
    found.CopyFrom(entry)
    for name, value in fields.items():
        setattr(found, name, value)
    return found


def some_key() -> bytes:
    return X25519PrivateKey.generate().public_key().public_bytes_raw()


def made_up(identity: Identity, session_id: bytes, **fields: bytes) -> pb.Advertise:
    """Return an entry that is signed by an identity of the coordinator's making, or of a client that conspires."""
    client_id = bytes.fromhex(client_id_of(identity.public_key))
    entry = pb.Advertise(
        session_id=session_id,
        client_id=client_id,
        public_key=identity.public_key,
        certificate=identity.certificate,
        encryption_key=some_key(),
        mask_key=some_key(),
        seed_commitment=hashed("commit-b", session_id, client_id, bytes(32)),
    )
    for name, value in fields.items():
        setattr(entry, name, value)
    entry.signature = sign(identity.key, "advertise", session_id, *advertised_parts(entry))
    return entry


# --- Offers -----------------------------------------------------------------------------------------------------------------------------


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
        (pb.Delivery, {"session_id", "sharers", "packets"}),
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


# --- Rosters ----------------------------------------------------------------------------------------------------------------------------


def swapped(name: str) -> Callable[[Play], Tale]:
    def lie(session: Play) -> Tale:
        first, *others = entries_of(session)
        return Tale(session, [first, changed(others[0], **{name: some_key()}), *others[1:]])

    return lie


def own_changed(session: Play) -> Tale:
    first, *others = entries_of(session)
    return Tale(session, [changed(first, mask_key=some_key()), *others])


def own_with_more(session: Play) -> Tale:
    """The client's own entry, with a field that no one knows."""
    first, *others = entries_of(session)
    more = pb.Advertise.FromString(first.SerializeToString() + b"\xf8\x07\x01")
    return Tale(session, [more, *others])


def own_left_out(session: Play) -> Tale:
    return Tale(session, entries_of(session)[1:])


def uncertified(session: Play) -> Tale:
    stranger = Identity(Ed25519PrivateKey.generate(), bytes(64))
    return Tale(session, [*entries_of(session)[:-1], made_up(stranger, session.coordinator.session_id)])


def falsely_certified(session: Play) -> Tale:
    """An identity that the coordinator has certified with the one key that it has."""
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    stranger = Identity(key, sign(session.authority.coordinator, "cert", FEDERATION.encode(), public))
    return Tale(session, [*entries_of(session)[:-1], made_up(stranger, session.coordinator.session_id)])


def of_another_session(session: Play) -> Tale:
    other = Play(parameters(5, attempt=1), session.authority, [session.clients[-1]])
    kept = session_of(session.clients[-1])
    stale = opened(other, session.clients[-1]).advertisement
    session.clients[-1].session = kept
    return Tale(session, [*entries_of(session)[:-1], stale])


def out_of_order(session: Play) -> Tale:
    entries = sorted(entries_of(session), key=lambda entry: entry.client_id, reverse=True)
    return Tale(session, entries, is_sorted=False)


def twice_the_same(session: Play) -> Tale:
    entries = entries_of(session)
    return Tale(session, [*entries[:-1], entries[1]])


def unlike_its_key(session: Play) -> Tale:
    entries = entries_of(session)
    return Tale(session, [*entries[:-1], changed(entries[-1], client_id=b"\xff" * 16)])


def conspiring(**fields: bytes) -> Callable[[Play], Tale]:
    """An entry that an enrolled client which conspires with the coordinator has signed."""

    def lie(session: Play) -> Tale:
        entry = made_up(session.clients[-1].identity, session.coordinator.session_id, **fields)
        return Tale(session, [*entries_of(session)[:-1], entry])

    return lie


def with_key_of_the_first(name: str, taken: str) -> Callable[[Play], Tale]:
    def lie(session: Play) -> Tale:
        return conspiring(**{name: getattr(entries_of(session)[0], taken)})(session)

    return lie


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        pytest.param(swapped("mask_key"), "must be signed with its key", id="swapped-mask-key"),
        pytest.param(swapped("encryption_key"), "must be signed with its key", id="swapped-encryption-key"),
        pytest.param(swapped("seed_commitment"), "must be signed with its key", id="swapped-commitment"),
        pytest.param(own_changed, "own entry must be what it advertised", id="own-entry-changed"),
        pytest.param(own_with_more, "own entry must be what it advertised", id="own-entry-with-more"),
        pytest.param(own_left_out, "own entry must be what it advertised", id="own-entry-left-out"),
        pytest.param(uncertified, "must be enrolled", id="invented"),
        pytest.param(falsely_certified, "must be enrolled", id="invented-with-forged-certificate"),
        pytest.param(of_another_session, "must be signed with its key for this session", id="of-another-session"),
        pytest.param(out_of_order, "different and in order", id="out-of-order"),
        pytest.param(twice_the_same, "different and in order", id="twice-the-same"),
        pytest.param(unlike_its_key, "identity must be that of its key", id="identity-unlike-its-key"),
        pytest.param(with_key_of_the_first("mask_key", "mask_key"), "of its own", id="mask-key-of-another"),
        pytest.param(
            with_key_of_the_first("encryption_key", "mask_key"), "of its own", id="mask-key-as-encryption-key"
        ),
        pytest.param(conspiring(mask_key=bytes(31)), "must have 32 bytes", id="short-key"),
        pytest.param(conspiring(seed_commitment=bytes(1000)), "must have 32 bytes", id="long-commitment"),
        *[
            pytest.param(conspiring(**{name: key}), "agree on a secret", id=f"{name}-{number}-of-low-order")
            for name in ("mask_key", "encryption_key")
            for number, key in enumerate(LOW_ORDER)
        ],
    ],
)
def test_forged_roster_is_refused(lie: Callable[[Play], Tale], message: str) -> None:
    session = advertised()
    roster = lie(session).roster
    victim = session_of(session.clients[0])
    error = refused(victim, lambda: victim.take_roster(roster), AbortCode.FORGED, message)
    assert error.code.is_alarming
    assert error.evidence == (roster,)


def test_roster_with_a_second_name_for_a_point_is_refused() -> None:
    """The highest bit of a key of X25519 is not looked at: the key of another, written anew, would pass for one of its own."""
    session = advertised()
    taken = entries_of(session)[0].mask_key
    roster = conspiring(mask_key=taken[:31] + bytes([taken[31] | 0x80]))(session).roster
    victim = session_of(session.clients[0])
    refused(victim, lambda: victim.take_roster(roster), AbortCode.FORGED, "agree on a secret")


@pytest.mark.parametrize("signer", ["nobody", "another"])
def test_roster_that_the_coordinator_did_not_sign_is_refused(signer: str) -> None:
    session = advertised()
    roster = Tale(session).roster
    parts = ("roster-sig", session.coordinator.session_id, Tale(session).members.roster_hash)
    roster.signature = b"" if signer == "nobody" else sign(Ed25519PrivateKey.generate(), *parts)
    victim = session_of(session.clients[0])
    refused(victim, lambda: victim.take_roster(roster), AbortCode.FORGED, "roster must be signed by the coordinator")


def test_larger_roster_than_the_ring_was_made_for_is_refused() -> None:
    session = advertised(5)
    more = made_up(session.authority.enrol(), session.coordinator.session_id)
    roster = Tale(session, [*entries_of(session), more]).roster
    victim = session_of(session.clients[0])
    refused(victim, lambda: victim.take_roster(roster), AbortCode.POLICY, "members must be at most 5, got 6")


@pytest.mark.parametrize(
    ("count", "code", "message"),
    [
        pytest.param(1, AbortCode.POLICY, "client_count must be 2 to", id="alone"),
        pytest.param(3, AbortCode.TOO_FEW, "members must be at least 4, got 3", id="below-the-floor"),
    ],
)
def test_smaller_roster_than_the_site_asks_for_is_refused(count: int, code: AbortCode, message: str) -> None:
    """The site wants four honest ones, whatever the spec says."""
    session, _ = play(6, minimum_cohort=4)
    session.clients[0].floor = Floor(minimum_cohort=4)
    session.advertise()
    roster = Tale(session, entries_of(session)[:count]).roster
    victim = session_of(session.clients[0])
    refused(victim, lambda: victim.take_roster(roster), code, message)


def test_corrupt_members_count_beside_the_honest_ones() -> None:
    """With one of four corrupt, three honest ones are four members, and three members are too few."""
    session, _ = play(5, minimum_cohort=3, corrupt_fraction=0.34, dropout_fraction=0.2)
    session.advertise()
    roster = Tale(session, entries_of(session)[:3]).roster
    victim = session_of(session.clients[0])
    refused(victim, lambda: victim.take_roster(roster), AbortCode.TOO_FEW, "members must be at least 4, got 3")


@pytest.mark.parametrize("is_same", [True, False])
def test_second_roster_is_refused(is_same: bool) -> None:
    session = advertised(6)
    victim = session_of(session.clients[0])
    victim.take_roster(Tale(session).roster)
    again = Tale(session, entries_of(session)[: 6 if is_same else 5]).roster
    error = refused(victim, lambda: victim.take_roster(again), AbortCode.MALFORMED, "must come when it is due")
    assert error.evidence == (again,)


def test_different_rosters_open_nothing() -> None:
    """Some clients are told of six members and others of five; no packet and no acknowledgement passes between the two groups."""
    session = advertised(6, dropout_fraction=0.34)
    *clients, _ = sorted(session.clients, key=lambda client: client.client_id)
    tales = [Tale(session), Tale(session, [session_of(client).advertisement for client in clients])]
    told_by = [tales[number % 2] for number in range(5)]
    shares, acks = {}, {}
    for index, client in enumerate(clients):
        shares[index] = session_of(client).take_roster(told_by[index].roster)
    for index, client in enumerate(clients):
        victim = session_of(client)
        victim.take_delivery(told_by[index].delivery(client, shares))
        assert set(victim._missing) == {other for other in range(5) if told_by[other] is not told_by[index]}
        victim.mask(client.vector.copy())
        acks[index] = victim.take_survivors(told_by[index].survivors(range(5)))
    for index, client in enumerate(clients):
        group = {other: acks[other] for other in range(5) if told_by[other] is told_by[index]}
        shown, code, message = (
            (group, AbortCode.TOO_FEW, "must be at least")
            if index < 2
            else (acks, AbortCode.EQUIVOCATION, "does not fit")
        )
        bundle = told_by[index].bundle({other: ack for other, ack in shown.items() if other != index})
        victim = session_of(client)
        error = refused(victim, partial(victim.take_acks, bundle), code, message)
        assert told_by[index].is_proof(error.evidence[0])


# --- Deliveries -------------------------------------------------------------------------------------------------------------------------


def test_packets_from_elsewhere_are_noted_as_missing() -> None:
    """Of another session, of another pair, in the other direction, cut, changed, under another name: none of them is opened."""
    at = told(play(9, dropout_fraction=0.25)[0])
    other = told(Play(parameters(9, attempt=1), at.play.authority, [Client(c.identity, c.vector) for c in at.clients]))

    def packet(source: int, target: int, message: pb.Shares) -> pb.Packet:
        found = next(packet for packet in message.packets if packet.index == target)
        return pb.Packet(index=source, nonce=found.nonce, ciphertext=found.ciphertext)

    good = packet(8, 0, at.shares[8])
    replayed = packet(1, 0, other.shares[1])
    of_another_pair = packet(2, 3, at.shares[2])
    turned = packet(3, 3, at.shares[0])
    cut = packet(4, 0, at.shares[4])
    cut.ciphertext = cut.ciphertext[:10]
    bent = packet(5, 0, at.shares[5])
    bent.ciphertext = bytes([bent.ciphertext[0] ^ 1]) + bent.ciphertext[1:]
    renamed = packet(6, 0, at.shares[1])
    no_nonce = packet(7, 0, at.shares[7])
    no_nonce.nonce = b""
    victim = session_of(at.clients[0])
    delivery = at.tale.delivery(at.clients[0], {}, range(9))
    delivery.packets.extend([good, replayed, of_another_pair, turned, cut, bent, renamed, no_nonce])
    # Those who are no neighbours, or are not there.
    delivery.packets.extend([pb.Packet(index=0, nonce=good.nonce), pb.Packet(index=2**32 - 1)])
    victim.take_delivery(delivery)
    assert victim._missing == [1, 2, 3, 4, 5, 6, 7]
    held = victim._secrets
    assert held is not None
    assert held.held.keys() == {8}


@pytest.mark.parametrize(
    ("sharers", "code", "message"),
    [
        pytest.param([1, 2, 3, 4], AbortCode.TOO_FEW, "must be among those who have shared", id="without-the-client"),
        pytest.param([0, 1, 2], AbortCode.TOO_FEW, "sharers must be at least 4, got 3", id="too-few"),
        pytest.param(b"\x3f", AbortCode.MALFORMED, "a bit for each of 5", id="more-bits"),
        pytest.param(b"\x1f\x00", AbortCode.MALFORMED, "a bit for each of 5", id="more-bytes"),
        pytest.param(b"", AbortCode.MALFORMED, "a bit for each of 5", id="nothing"),
    ],
)
def test_false_delivery_is_refused(sharers: list[int] | bytes, code: AbortCode, message: str) -> None:
    at = told(play(5, dropout_fraction=0.2)[0])
    delivery = at.tale.delivery(at.clients[0], at.shares, sharers if isinstance(sharers, list) else ())
    if isinstance(sharers, bytes):
        delivery.sharers = sharers
    victim = session_of(at.clients[0])
    error = refused(victim, lambda: victim.take_delivery(delivery), code, message)
    assert error.evidence == (delivery,)


# --- Survivors --------------------------------------------------------------------------------------------------------------------------


def test_second_set_of_survivors_is_refused_with_both_signatures() -> None:
    """So both kinds of shares of member 4 cannot be had from one client."""
    at = told(play(5, dropout_fraction=0.2)[0])
    at.deliver()
    victim = session_of(at.clients[0])
    first, second = at.tale.survivors(range(5)), at.tale.survivors(range(4))
    ack = victim.take_survivors(first)
    assert victim.take_survivors(first) == ack
    error = refused(victim, lambda: victim.take_survivors(second), AbortCode.EQUIVOCATION, "whenever they are named")
    assert error.evidence == (first, second)
    assert all(at.tale.is_proof(survivors) for survivors in error.evidence)
    assert error.code.is_alarming


def without_signature(tale: Tale) -> pb.Survivors:
    return pb.Survivors(session_id=tale.session_id, survivors=tale.members.bitmap(range(5)), signature=bytes(64))


def of_another_tale(tale: Tale) -> pb.Survivors:
    """Survivors that the coordinator has signed, for another roster."""
    four = Tale(tale.play, tale.members.entries[:4])
    return pb.Survivors(
        session_id=tale.session_id,
        survivors=tale.members.bitmap(range(4)),
        signature=four.survivors(range(4)).signature,
    )


def with_bits(bitmap: bytes) -> Callable[[Tale], pb.Survivors]:
    return lambda tale: pb.Survivors(survivors=bitmap, signature=tale.signed("survivors-srv", bitmap))


@pytest.mark.parametrize(
    ("lie", "code", "message"),
    [
        pytest.param(
            lambda tale: tale.survivors([1, 2, 3, 4]), AbortCode.EQUIVOCATION, "called missing", id="called-missing"
        ),
        pytest.param(lambda tale: tale.survivors([0, 1, 2]), AbortCode.TOO_FEW, "at least 4, got 3", id="too-few"),
        pytest.param(without_signature, AbortCode.FORGED, "signed by the coordinator", id="unsigned"),
        pytest.param(of_another_tale, AbortCode.FORGED, "signed by the coordinator", id="of-another-roster"),
        pytest.param(with_bits(b"\x3f"), AbortCode.MALFORMED, "a bit for each of 5", id="more-bits"),
        pytest.param(with_bits(b"\x1f\x00"), AbortCode.MALFORMED, "a bit for each of 5", id="more-bytes"),
    ],
)
def test_false_survivors_are_refused(lie: Callable[[Tale], pb.Survivors], code: AbortCode, message: str) -> None:
    at = told(play(5, dropout_fraction=0.2)[0])
    at.deliver()
    victim, survivors = session_of(at.clients[0]), lie(at.tale)
    error = refused(victim, lambda: victim.take_survivors(survivors), code, message)
    assert error.evidence == (survivors,)


@pytest.mark.parametrize(
    ("spec", "gone", "message"),
    [
        pytest.param({}, {8}, "survivors must be at least 9, got 8", id="none-may-be-missing"),
        pytest.param(
            {"dropout_fraction": 0.23, "minimum_cohort": 5, "corrupt_fraction": 0.34},
            {7, 8},
            "survivors must be at least 8, got 7",
            id="too-few-beside-the-corrupt",
        ),
    ],
)
def test_survivors_above_the_threshold_may_be_too_few(spec: dict[str, float], gone: set[int], message: str) -> None:
    at = told(play(9, **spec)[0])  # type: ignore[arg-type]
    at.deliver()
    victim, survivors = session_of(at.clients[0]), at.tale.survivors(set(range(9)) - gone)
    refused(victim, lambda: victim.take_survivors(survivors), AbortCode.TOO_FEW, message)


def test_survivors_who_were_not_among_the_sharers_are_refused() -> None:
    """So a delivery that leaves one out for one client and not for another keeps that client from acknowledging both."""
    at = told(play(5, dropout_fraction=0.2)[0])
    victim = session_of(at.clients[0])
    victim.take_delivery(at.tale.delivery(at.clients[0], at.shares, range(4)))
    victim.mask(at.clients[0].vector.copy())
    survivors = at.tale.survivors(range(5))
    error = refused(
        victim, lambda: victim.take_survivors(survivors), AbortCode.EQUIVOCATION, "among those who have shared"
    )
    assert at.tale.is_proof(error.evidence[0])


@pytest.mark.parametrize(
    "halves", list(itertools.product([0, 1], repeat=5)), ids=lambda halves: "".join(map(str, halves))
)
def test_two_sets_of_survivors_for_two_halves_never_open_both(halves: tuple[int, ...]) -> None:
    """The coordinator shows each half its own set, however it cuts them; one who conspires acknowledges both.

    Member 4 is in one set and not in the other. Seed and key of it would need a threshold of clients in each half.
    """
    at = told(play(6, corrupt_fraction=0.2, dropout_fraction=0.17)[0])
    at.deliver()
    told_sets = [at.tale.survivors(range(6)), at.tale.survivors([0, 1, 2, 3, 5])]
    conspirator, honest = 5, [index for index in range(5) if index != 4 or not halves[4]]
    acks: list[dict[int, pb.SurvivorAck]] = [{}, {}]
    for index in honest:
        acks[halves[index]][index] = session_of(at.clients[index]).take_survivors(told_sets[halves[index]])
    for half, survivors in enumerate(told_sets):
        signature = sign(
            at.clients[conspirator].identity.key,
            "survivors-ack",
            at.tale.session_id,
            at.tale.members.roster_hash,
            survivors.survivors,
        )
        acks[half][conspirator] = pb.SurvivorAck(signature=signature)
    released = [1, 1]  # of the one who conspires: its shares of both
    refusals: list[AbortCode] = []
    opened_sets: set[int] = set()
    for index in honest:
        half, victim = halves[index], session_of(at.clients[index])
        bundle = at.tale.bundle({other: ack for other, ack in acks[half].items() if other != index})
        try:
            unmask = victim.take_acks(bundle)
        except SessionAbortedError as error:
            refusals.append(error.code)
            continue
        opened_sets.add(half)
        seeds, keys = ({held.index for held in shares} for shares in (unmask.seed_shares, unmask.key_shares))
        assert not seeds & keys
        released[0] += 4 in seeds or index == 4
        released[1] += 4 in keys
    threshold = at.tale.members.graph.threshold
    assert min(released) < threshold
    assert set(refusals) <= {AbortCode.TOO_FEW}
    assert len(opened_sets) <= 1


@pytest.mark.parametrize("halves", [(0, 0, 1), (0, 1, 1)])
def test_acknowledgements_of_the_other_half_show_the_lie(halves: tuple[int, ...]) -> None:
    at = told(play(6, dropout_fraction=0.17)[0])
    at.deliver()
    sets = [at.tale.survivors(range(6)), at.tale.survivors(range(5))]
    acks = {index: session_of(at.clients[index]).take_survivors(sets[half]) for index, half in enumerate(halves)}
    for index, half in enumerate(halves):
        victim = session_of(at.clients[index])
        bundle = at.tale.bundle({other: ack for other, ack in acks.items() if other != index})
        error = refused(
            victim,
            partial(victim.take_acks, bundle),
            AbortCode.EQUIVOCATION,
            "must have acknowledged the same survivors",
        )
        assert error.evidence == (sets[half], bundle)
        assert at.tale.is_proof(error.evidence[0])


# --- Acknowledgements -------------------------------------------------------------------------------------------------------------------

Acks = dict[int, pb.SurvivorAck]


@pytest.mark.parametrize(
    ("lie", "code", "message"),
    [
        pytest.param(lambda tale, acks: tale.bundle({}), AbortCode.TOO_FEW, "at least 4, got 1", id="all-dropped"),
        pytest.param(
            lambda tale, acks: tale.bundle({1: acks[1], 2: acks[2]}),
            AbortCode.TOO_FEW,
            "at least 4, got 3",
            id="some-dropped",
        ),
        pytest.param(
            lambda tale, acks: pb.AckBundle(acks=[pb.Ack(index=1, signature=acks[1].signature)] * 4),
            AbortCode.TOO_FEW,
            "at least 4, got 2",
            id="one-as-many",
        ),
        pytest.param(
            lambda tale, acks: tale.bundle(acks | {2: pb.SurvivorAck(signature=tale.survivors(range(5)).signature)}),
            AbortCode.EQUIVOCATION,
            "member 2 must have acknowledged",
            id="forged",
        ),
        pytest.param(
            lambda tale, acks: tale.bundle(acks | {2: acks[1]}),
            AbortCode.EQUIVOCATION,
            "member 2 must have acknowledged",
            id="of-another",
        ),
        pytest.param(
            lambda tale, acks: tale.bundle(acks | {0: acks[1]}),
            AbortCode.EQUIVOCATION,
            "member 0 must have acknowledged",
            id="for-the-client-itself",
        ),
        pytest.param(
            lambda tale, acks: tale.bundle(acks | {5: acks[1]}),
            AbortCode.EQUIVOCATION,
            "member 5 must have acknowledged",
            id="of-one-who-is-not-there",
        ),
    ],
)
def test_false_acknowledgements_are_refused(
    lie: Callable[[Tale, Acks], pb.AckBundle], code: AbortCode, message: str
) -> None:
    at = told(play(5, dropout_fraction=0.2)[0])
    at.deliver()
    survivors = at.tale.survivors(range(5))
    acks = at.acks(survivors)
    del acks[0]
    victim, bundle = session_of(at.clients[0]), lie(at.tale, acks)
    error = refused(victim, lambda: victim.take_acks(bundle), code, message)
    assert error.evidence == (survivors, bundle)
    assert at.tale.is_proof(error.evidence[0])
    assert at.clients[0].journal.revealed == []


def test_journal_that_cannot_be_written_reveals_nothing() -> None:
    at = told(play(5)[0])
    at.deliver()
    acks = at.acks(at.tale.survivors(range(5)))
    del acks[0]

    class Full(Diary):
        def reveal(self, parameters: SessionParameters) -> None:
            raise OSError("No space left on device")

    victim = session_of(at.clients[0])
    victim._journal = Full()
    with pytest.raises(OSError, match="No space left"):
        victim.take_acks(at.tale.bundle(acks))
    assert victim.state is ClientState.ABORTED
    assert victim._secrets is None


# --- Order ------------------------------------------------------------------------------------------------------------------------------

STEPS = ("take_roster", "take_delivery", "mask", "take_survivors", "take_acks")


WRONG = [
    (done, step)
    for done, due in enumerate([*STEPS, ""])
    for step in STEPS
    if step != due and (done, step) != (4, "take_survivors")
]


@pytest.mark.parametrize(("done", "wrong"), WRONG)
def test_message_that_is_not_due_ends_the_session(done: int, wrong: str) -> None:
    """Each good message in each state: but for the one that is due, and survivors that are named again, all of them end it."""
    at = told(play(5, dropout_fraction=0.2)[0])
    survivors = at.tale.survivors(range(5))
    others = {index: ack_by(client, at.tale, survivors.survivors) for index, client in enumerate(at.clients) if index}
    delivery = at.tale.delivery(at.clients[0], {index: at.shares[index] for index in range(1, 5)}, range(5))
    arguments = (at.tale.roster, delivery, at.clients[0].vector.copy(), survivors, at.tale.bundle(others))
    messages = dict(zip(STEPS, arguments, strict=True))
    if done == 0:
        Play(at.play.parameters, at.play.authority, at.play.clients).advertise()
    victim = session_of(at.clients[0])
    for step in STEPS[1:done]:
        getattr(victim, step)(messages[step])
    if done == 5:
        with pytest.raises(SessionAbortedError, match="must come when it is due"):
            getattr(victim, wrong)(messages[wrong])
        assert victim.state is ClientState.DONE
        assert victim._secrets is None
        return
    refused(victim, lambda: getattr(victim, wrong)(messages[wrong]), AbortCode.MALFORMED, "must come when it is due")
    with pytest.raises(SessionAbortedError, match="while aborted"):
        getattr(victim, wrong)(messages[wrong])


# --- Anything ---------------------------------------------------------------------------------------------------------------------------


@st.composite
def bent(draw: st.DrawFn, data: bytes) -> bytes:
    """Return the bytes of a message with some of them changed, left out, doubled or made up."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 40)))
        put = draw(st.one_of(st.binary(max_size=8), st.just(data[start:end] * 2)))
        data = data[:start] + put + data[end:]
    return data


@settings(max_examples=120, deadline=None)
@given(st.data(), st.integers(0, 3))
def test_bent_messages_end_in_a_refusal_and_in_nothing_else(data: st.DataObject, stage: int) -> None:
    """Whatever comes, clients answer, or refuse with the one error and without their secrets."""
    session = advertised(3, dropout_fraction=0.34)
    tale = Tale(session)
    clients = sorted(session.clients, key=tale.index)
    victim = session_of(clients[0])

    def tell(number: int, method: str, message: Message) -> Message | None:
        if number == stage:
            text = data.draw(bent(message.SerializeToString()))
            try:
                message = type(message).FromString(text)
            except Exception:  # noqa: BLE001 - what is no message at all ends at the transport
                return None
            if data.draw(st.booleans()):
                resign(tale, message)
        answer: Message | None = getattr(victim, method)(message)
        return answer

    try:
        tell(0, "take_roster", tale.roster)
        if stage == 0:
            return
        shares = {index: session_of(client).take_roster(tale.roster) for index, client in enumerate(clients) if index}
        tell(1, "take_delivery", tale.delivery(clients[0], shares, range(3)))
        victim.mask(clients[0].vector.copy())
        tell(2, "take_survivors", tale.survivors(range(3)))
        acks = {
            index: ack_by(client, tale, tale.members.bitmap(range(3))) for index, client in enumerate(clients) if index
        }
        tell(3, "take_acks", tale.bundle(acks))
    except SessionAbortedError:
        assert victim.state is ClientState.ABORTED
        assert victim._secrets is None


def resign(tale: Tale, message: Message) -> None:
    """Sign a bent message anew, as the coordinator would."""
    if isinstance(message, pb.Survivors):
        message.signature = tale.signed("survivors-srv", message.survivors)
    elif isinstance(message, pb.Roster):
        message.CopyFrom(Tale(tale.play, message.members, is_sorted=False).roster)
