"""A client that lies is left out, or its lie is borne, or the session ends with the reason; it never gives a wrong sum of the others.

What no protocol of this kind can do is tell whether a vector is a good one: within the weight's cap a client may bring what it likes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.errors import AbortCode, MemberExcludedError, SessionAbortedError
from privacy.secagg.client import ClientState
from privacy.secagg.coordinator import CoordinatorState
from privacy.secagg.labels import sign
from privacy.secagg.masks import RingVector
from privacy.secagg.members import advertised_parts, packet_parts, unmask_parts
from tests.privacy.secagg.hostile import everything, session_of
from tests.privacy.secagg.sessions import Client, Play, parameters, play, sum_of
from tests.privacy.secagg.test_lying_coordinator import LOW_ORDER, bent, changed, made_up
from wire import federation_pb2 as pb

Lie = Callable[["Lied", Client, Message], Message]


@dataclass
class Lied(Play):
    """A session in which some clients send something else than their session says, by stage and client."""

    lies: dict[tuple[str, str], Lie] = field(default_factory=dict)

    def _take(self, stage: str, client: Client, message: Message, take: Callable[[str, Message], None]) -> None:
        lie = self.lies.get((stage, client.client_id))
        super()._take(stage, client, lie(self, client, message) if lie else message, take)

    def lie(self, stage: str, number: int, lie: Lie) -> None:
        """Let the client with this number in the roster tell a lie."""
        self.lies[stage, self.ordered[number].client_id] = lie

    @property
    def ordered(self) -> list[Client]:
        """The clients in the order of a roster of all of them."""
        return sorted(self.clients, key=lambda client: client.client_id)

    def sum_without(self, *numbers: int) -> RingVector:
        """Return the sum of the vectors of all but those with these numbers in the roster."""
        return sum_of([client.vector for number, client in enumerate(self.ordered) if number not in numbers])

    def run_without(self, uploads: set[int] = frozenset(), unmasks: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        """Play the session while some, by their number in the roster, bring no vector or do not unmask."""
        gone = [self.clients.index(self.ordered[number]) for number in uploads]
        mute = [self.clients.index(self.ordered[number]) for number in unmasks]
        self.run(lambda stage, number: (stage == "upload" and number in gone) or (stage == "unmask" and number in mute))


def lied(count: int = 8, **spec: object) -> Lied:
    settings: dict[str, object] = {"dropout_fraction": 0.25} | spec
    session, _ = play(count, **settings)  # type: ignore[arg-type]
    return Lied(session.parameters, session.authority, session.clients)


def signed(session: Play, client: Client, message: Message) -> Message:
    """Sign a message anew with its client's key."""
    if isinstance(message, pb.Shares):
        label, parts = "shares", packet_parts(message.packets)
    else:
        assert isinstance(message, pb.Unmask)
        label, parts = "unmask", unmask_parts(message)
    coordinator = session.coordinator
    bound = (coordinator.session_id, coordinator._members.roster_hash)
    message.signature = sign(client.identity.key, label, *bound, *parts)
    return message


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
    assert not session.coordinator._unmasks


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


# --- Advertisements ---------------------------------------------------------------------------------------------------------------------


def unsigned(session: Lied, client: Client, message: Message) -> Message:
    message.signature = bytes(64)  # type: ignore[attr-defined]
    return message


def anothers_signature(session: Lied, client: Client, message: Message) -> Message:
    if isinstance(message, pb.Advertise):
        message = changed(message)
        parts = advertised_parts(message)
        message.signature = sign(Ed25519PrivateKey.generate(), "advertise", message.session_id, *parts)
        return message
    other = next(other for other in session.clients if other is not client)
    if isinstance(message, pb.SurvivorAck):
        return session_of(other)._ack
    return signed(session, other, message)


def readvertised(**fields: bytes) -> Lie:
    return lambda session, client, message: made_up(client.identity, session.coordinator.session_id, **fields)


def anothers_key(name: str, taken: str) -> Lie:
    def lie(session: Lied, client: Client, message: Message) -> Message:
        first = session_of(session.clients[0]).advertisement
        return made_up(client.identity, session.coordinator.session_id, **{name: getattr(first, taken)})

    return lie


def of_another(session: Lied, client: Client, message: Message) -> Message:
    return session_of(session.clients[0]).advertisement


def stale(session: Lied, client: Client, message: Message) -> Message:
    return made_up(client.identity, bytes(32))


def not_enrolled(session: Lied, client: Client, message: Message) -> Message:
    key = client.identity.key.public_key().public_bytes_raw()
    assert isinstance(message, pb.Advertise)
    entry = changed(message, certificate=sign(client.identity.key, "cert", key))
    entry.signature = sign(client.identity.key, "advertise", entry.session_id, *advertised_parts(entry))
    return entry


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        pytest.param(lambda *told: unsigned(told[0], told[1], changed(told[2])), "must be signed", id="unsigned"),
        pytest.param(anothers_signature, "must be signed", id="signed-by-another"),
        pytest.param(of_another, "of the client that sends it", id="of-another"),
        pytest.param(stale, "must be for this session", id="of-another-session"),
        pytest.param(not_enrolled, "must be enrolled", id="false-certificate"),
        pytest.param(anothers_key("mask_key", "mask_key"), "keys must be its own", id="anothers-mask-key"),
        pytest.param(
            anothers_key("encryption_key", "mask_key"), "keys must be its own", id="anothers-as-encryption-key"
        ),
        pytest.param(
            readvertised(mask_key=b"\x09" + bytes(31), encryption_key=b"\x09" + bytes(31)),
            "be its own",
            id="one-key-for-both",
        ),
        pytest.param(readvertised(mask_key=LOW_ORDER[2]), "agree on a secret", id="mask-key-of-low-order"),
        pytest.param(readvertised(encryption_key=LOW_ORDER[0]), "agree on a secret", id="encryption-key-of-low-order"),
        pytest.param(readvertised(seed_commitment=b""), "must have 32 bytes", id="no-commitment"),
    ],
)
def test_false_advertisement_is_left_out(lie: Lie, message: str) -> None:
    session = lied(6)
    liar = session.clients[4]
    session.lies["advertise", liar.client_id] = lie
    session.run()
    assert message in session.excluded[liar.client_id]
    assert liar.client_id not in session.coordinator.clients
    assert (session.total == sum_of([client.vector for client in session.clients if client is not liar])).all()
    assert not session.aborted


def test_second_advertisement_leaves_the_first() -> None:
    session = lied(5)
    session.advertise()
    client = session.clients[2]
    again = made_up(client.identity, session.coordinator.session_id)
    with pytest.raises(MemberExcludedError, match="once"):
        session.coordinator.take_advertisement(client.client_id, again)
    assert session_of(client).advertisement in session.coordinator.freeze().members


def test_more_clients_than_were_asked_are_left_out() -> None:
    """The ring was made for so many and no more; the clients would refuse the roster."""
    session = lied(4)
    session.advertise()
    identity = session.authority.enrol()
    entry = made_up(identity, session.coordinator.session_id)
    with pytest.raises(MemberExcludedError, match="at most 4"):
        session.coordinator.take_advertisement(entry.client_id.hex(), entry)


def test_what_nobody_has_signed_is_handed_to_nobody() -> None:
    session = lied(4)

    def lie(session: Lied, client: Client, message: Message) -> Message:
        return pb.Advertise.FromString(message.SerializeToString() + b"\xfa\x07\x80\x08" + bytes(1024))

    session.lie("advertise", 1, lie)
    session.advertise()
    assert len(session.coordinator.freeze().SerializeToString()) < 4 * 350


# --- Packets ----------------------------------------------------------------------------------------------------------------------------


def repacked(change: Callable[[list[pb.Packet]], object], *, is_signed: bool = True) -> Lie:
    def lie(session: Lied, client: Client, message: Message) -> Message:
        assert isinstance(message, pb.Shares)
        copied = pb.Shares()
        copied.CopyFrom(message)
        packets = list(copied.packets)
        change(packets)
        told = pb.Shares(session_id=message.session_id, packets=packets, signature=message.signature)
        return signed(session, client, told) if is_signed else told

    return lie


def with_ciphertext(ciphertext: bytes) -> Callable[[list[pb.Packet]], None]:
    def change(packets: list[pb.Packet]) -> None:
        for packet in packets:
            packet.ciphertext = ciphertext

    return change


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        pytest.param(unsigned, "must be signed", id="unsigned"),
        pytest.param(anothers_signature, "must be signed", id="signed-by-another"),
        pytest.param(repacked(lambda packets: packets.pop(), is_signed=False), "must be signed", id="changed"),
        pytest.param(repacked(lambda packets: packets.pop()), "one packet for each neighbour", id="one-less"),
        pytest.param(repacked(lambda packets: packets.append(packets[0])), "one packet for each", id="one-twice"),
        pytest.param(repacked(lambda packets: packets.reverse()), "in order", id="out-of-order"),
        pytest.param(
            repacked(lambda packets: setattr(packets[-1], "index", 2**32 - 1)), "one packet for each", id="for-nobody"
        ),
        pytest.param(repacked(with_ciphertext(bytes(88))), "must have 12 and 89 bytes", id="short"),
        pytest.param(repacked(with_ciphertext(bytes(1 << 20))), "must have 12 and 89 bytes", id="long"),
        pytest.param(repacked(lambda packets: setattr(packets[0], "nonce", b"")), "12 and 89 bytes", id="no-nonce"),
    ],
)
def test_false_shares_leave_their_dealer_out(lie: Lie, message: str) -> None:
    session = lied()
    session.lie("shares", 2, lie)
    session.run()
    liar = session.ordered[2].client_id
    assert message in session.excluded[liar]
    assert liar not in session.coordinator.sharers
    assert (session.total == session.sum_without(2)).all()


def test_second_shares_leave_the_first() -> None:
    """The same ones again are no harm; others could not be told from what some have been handed."""
    session = lied()

    def lie(session: Lied, client: Client, message: Message) -> Message:
        session.coordinator.take_shares(client.client_id, message)  # type: ignore[arg-type]
        other = repacked(lambda packets: setattr(packets[0], "nonce", bytes(12)))(session, client, message)
        with pytest.raises(MemberExcludedError, match="must share once"):
            session.coordinator.take_shares(client.client_id, other)  # type: ignore[arg-type]
        return message

    session.lie("shares", 2, lie)
    session.run()
    assert not session.excluded
    assert not session.coordinator.complaints
    assert (session.total == session.sum_without()).all()


def test_packets_that_nobody_can_open_are_complained_of() -> None:
    """The dealer's vector stays in the sum while the dealer stays."""
    session = lied()
    session.lie("shares", 2, repacked(with_ciphertext(bytes(89))))
    session.run()
    assert session.coordinator.complaints == {session.ordered[2].client_id: 7}
    assert (session.total == session.sum_without()).all()


def test_dealer_of_packets_that_nobody_can_open_cannot_be_done_without() -> None:
    session = lied()
    session.lie("shares", 2, repacked(with_ciphertext(bytes(89))))
    with pytest.raises(SessionAbortedError, match=r"shares of the mask key of .* must be at least 6, got 0") as abort:
        session.run_without(uploads={2})
    assert abort.value.code is AbortCode.TOO_FEW
    assert session.coordinator.complaints[session.ordered[2].client_id] == 7


def test_packet_of_another_session_is_complained_of() -> None:
    session, other = lied(), lied()
    other.clients, other.authority = [Client(c.identity, c.vector) for c in session.clients], session.authority
    other = Lied(parameters(8, attempt=1, dropout_fraction=0.25), session.authority, other.clients)
    other.advertise()
    other.share(other.coordinator.freeze())
    stale = next(
        message
        for stage, client_id, message in other.received
        if stage == "shares" and client_id == other.ordered[2].client_id
    )
    assert isinstance(stale, pb.Shares)
    packet = stale.packets[0]
    session.lie("shares", 2, repacked(lambda packets: packets.__setitem__(0, packet)))
    session.run()
    assert session.coordinator.complaints == {session.ordered[2].client_id: 1}
    assert (session.total == session.sum_without()).all()


# --- Acknowledgements and unmasking -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lie", [unsigned, anothers_signature])
def test_false_acknowledgement_is_left_out(lie: Lie) -> None:
    session = lied()
    session.lie("ack", 2, lie)
    session.run()
    liar = session.ordered[2].client_id
    assert "must be signed" in session.excluded[liar]
    assert liar not in session.coordinator.acknowledged
    assert (session.total == session.sum_without()).all()


def test_acknowledgement_of_one_who_is_gone_disturbs_nobody() -> None:
    """Handed on to the others, it would look like a lie of the coordinator, and every one of them would end the session."""
    session = lied()
    session.advertise()
    session.share(session.coordinator.freeze())
    gone = session.ordered[5]
    session.upload(session.coordinator.deliver(), lambda _, number: session.clients[number] is gone)
    survivors = session.coordinator.close_sum(session.uploaded)
    session.acknowledge(dict.fromkeys(session.uploaded, survivors))
    roster_hash = session.coordinator._members.roster_hash
    signature = sign(
        gone.identity.key, "survivors-ack", session.coordinator.session_id, roster_hash, survivors.survivors
    )
    with pytest.raises(MemberExcludedError, match="must be among the survivors"):
        session.coordinator.take_ack(gone.client_id, pb.SurvivorAck(signature=signature))
    session.unmask(session.coordinator.bundles())
    session.coordinator.open(session.total)
    assert not session.aborted
    assert (session.total == session.sum_without(5)).all()


def reshared(change: Callable[[pb.Unmask], object]) -> Lie:
    def lie(session: Lied, client: Client, message: Message) -> Message:
        assert isinstance(message, pb.Unmask)
        change(message)
        return signed(session, client, message)

    return lie


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        pytest.param(unsigned, "must be signed", id="unsigned"),
        pytest.param(anothers_signature, "must be signed", id="signed-by-another"),
        pytest.param(
            reshared(lambda message: message.key_shares.add(index=1, share=bytes(36))),
            "never give both",
            id="both-kinds",
        ),
        pytest.param(
            reshared(lambda message: message.seed_shares.add(index=7, share=bytes(36))),
            "never give both",
            id="both-of-gone",
        ),
        pytest.param(
            reshared(lambda message: message.seed_shares.add(index=2, share=bytes(36))), "of seeds of", id="of-itself"
        ),
        pytest.param(
            reshared(lambda message: message.key_shares.add(index=2**31, share=b"")), "of keys of", id="of-nobody"
        ),
    ],
)
def test_false_unmask_is_left_out(lie: Lie, message: str) -> None:
    """Number 7 is gone, 2 is the liar; six others are as many as it takes."""
    session = lied()
    session.lie("unmask", 2, lie)
    session.run_without(uploads={7})
    assert message in session.excluded[session.ordered[2].client_id]
    assert (session.total == session.sum_without(7)).all()


def test_key_of_a_survivor_alone_is_left_out() -> None:
    session = lied()

    def change(message: pb.Unmask) -> None:
        taken = message.seed_shares.pop()
        message.key_shares.add(index=taken.index, share=taken.share)

    session.lie("unmask", 2, reshared(change))
    session.run_without(uploads={7})
    assert "seeds of survivors" in session.excluded[session.ordered[2].client_id]
    assert (session.total == session.sum_without(7)).all()


def test_one_client_complains_once() -> None:
    """Two complaints keep a client out of the next attempt, so that one liar must not make two."""
    session = lied()
    told: list[Message] = []

    def lie(session: Lied, client: Client, message: Message) -> Message:
        assert isinstance(message, pb.Unmask)
        message.missing.extend([3, 3, 2, 2**32 - 1])
        told.append(signed(session, client, message))
        return message

    session.lie("unmask", 2, lie)
    session.advertise()
    session.share(session.coordinator.freeze())
    session.upload(session.coordinator.deliver())
    survivors = session.coordinator.close_sum(session.uploaded)
    session.acknowledge(dict.fromkeys(session.uploaded, survivors))
    session.unmask(session.coordinator.bundles())
    liar, victim = session.ordered[2], session.ordered[3]
    assert session.coordinator.complaints == {victim.client_id: 1}
    (first,) = told
    assert isinstance(first, pb.Unmask)
    session.coordinator.take_unmask(liar.client_id, first)
    other = pb.Unmask()
    other.CopyFrom(first)
    other.missing.append(4)
    signed(session, liar, other)
    with pytest.raises(MemberExcludedError, match="once"):
        session.coordinator.take_unmask(liar.client_id, other)
    assert session.coordinator.complaints == {victim.client_id: 1}
    session.coordinator.open(session.total)
    assert (session.total == session.sum_without()).all()


# --- Order ------------------------------------------------------------------------------------------------------------------------------

TAKES = {"advertise": "take_advertisement", "shares": "take_shares", "ack": "take_ack", "unmask": "take_unmask"}


DUE = dict(zip(TAKES, [state for state in CoordinatorState if state is not CoordinatorState.VECTORS], strict=False))


def test_shares_that_come_too_late_change_nothing() -> None:
    """Taken as those of one who has shared and is gone, they would ask for a key that no one can give, and end the session."""
    session = lied()
    session.advertise()
    late = session.ordered[2].client_id
    session.share(session.coordinator.freeze(), lambda _, number: session.clients[number].client_id == late)
    session.upload(session.coordinator.deliver())
    session.acknowledge(dict.fromkeys(session.uploaded, session.coordinator.close_sum(session.uploaded)))
    shares = signed(
        session,
        session.ordered[2],
        pb.Shares(session_id=session.coordinator.session_id, packets=[pb.Packet(index=0)] * 7),
    )
    assert isinstance(shares, pb.Shares)
    with pytest.raises(MemberExcludedError, match="must come when it is due"):
        session.coordinator.take_shares(late, shares)
    session.unmask(session.coordinator.bundles())
    session.coordinator.open(session.total)
    assert (session.total == session.sum_without(2)).all()


@pytest.mark.parametrize(
    ("until", "stage"), [(until, stage) for until in CoordinatorState for stage in TAKES if DUE[stage] is not until]
)
def test_message_that_is_not_due_changes_nothing(until: CoordinatorState, stage: str) -> None:
    messages = {kind: message for kind, name, message in whole().received if name == whole().ordered[0].client_id}
    session = lied()
    coordinator, late = session.coordinator, session.ordered[0].client_id
    steps: list[Callable[[], None]] = [
        session.advertise,
        lambda: session.share(coordinator.freeze()),
        lambda: session.upload(coordinator.deliver()),
        lambda: session.acknowledge(dict.fromkeys(session.uploaded, coordinator.close_sum(session.uploaded))),
        lambda: session.unmask(coordinator.bundles()),
    ]
    for step in steps[: list(CoordinatorState).index(until) + 1]:
        step()
    if until is CoordinatorState.DONE:
        coordinator.open(session.total)
    assert coordinator.state is until
    with pytest.raises(MemberExcludedError, match="must come when it is due"):
        getattr(coordinator, TAKES[stage])(late, messages[stage])
    for step in steps[list(CoordinatorState).index(until) + 1 :]:
        step()
    if until is not CoordinatorState.DONE:
        coordinator.open(session.total)
    assert (session.total == session.sum_without()).all()


_WHOLE: list[Lied] = []


def whole() -> Lied:
    """Return a session that went well, played once."""
    if not _WHOLE:
        _WHOLE.append(lied())
        _WHOLE[0].run()
    return _WHOLE[0]


def test_coordinator_keeps_no_secret_that_comes_after_the_end() -> None:
    session = lied()
    session.run()
    kind, name, message = session.received[-1]
    assert kind == "unmask"
    assert isinstance(message, pb.Unmask)
    with pytest.raises(MemberExcludedError):
        session.coordinator.take_unmask(name, message)
    assert message.own_seed not in everything(session.coordinator)


@pytest.mark.parametrize("stage", ["shares", "ack", "unmask"])
def test_message_of_a_stranger_is_refused(stage: str) -> None:
    session = lied()
    refusals = []

    def lie(session: Lied, client: Client, message: Message) -> Message:
        with pytest.raises(MemberExcludedError, match="must be of a member") as refusal:
            getattr(session.coordinator, TAKES[stage])("0" * 32, message)
        refusals.append(refusal)
        return message

    session.lie(stage, 0, lie)
    session.run()
    assert len(refusals) == 1
    assert (session.total == session.sum_without()).all()


# --- Anything ---------------------------------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(st.data(), st.sampled_from(sorted(TAKES)), st.booleans())
def test_bent_messages_are_refused_or_borne(data: st.DataObject, stage: str, is_signed: bool) -> None:
    """Whatever one of four clients sends: the exact sum of those who are in it, or an end that says why."""
    session = lied(4)

    def lie(session: Lied, client: Client, message: Message) -> Message:
        try:
            told = type(message).FromString(data.draw(bent(message.SerializeToString())))
        except Exception:  # noqa: BLE001 - what is no message at all ends at the transport
            return message
        if is_signed and isinstance(told, pb.Advertise):
            told.signature = sign(
                client.identity.key, "advertise", session.coordinator.session_id, *advertised_parts(told)
            )
        elif is_signed and isinstance(told, pb.Shares | pb.Unmask):
            signed(session, client, told)
        return told

    session.lie(stage, 1, lie)
    try:
        session.run()
    except SessionAbortedError as error:
        ended = error.code
        assert ended in {AbortCode.TOO_FEW, AbortCode.BAD_SHARE}
        return
    summed = [client.vector for client in session.clients if client.client_id in session.coordinator.survivors]
    assert (session.total == sum_of(summed)).all()
