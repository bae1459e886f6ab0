"""A client whose message is false is left out or complained of, with the reason, and the others have their exact sum or an end."""

from collections.abc import Callable

import pytest
from google.protobuf.message import Message

from privacy.errors import AbortCode, MemberExcludedError, SessionAbortedError
from privacy.secagg.labels import sign
from privacy.secagg.members import advertised_parts
from tests.privacy.secagg.forgeries import LOW_ORDER, changed, made_up
from tests.privacy.secagg.hostile import session_of
from tests.privacy.secagg.liars import Lie, Lied, anothers_signature, lied, signed, unsigned
from tests.privacy.secagg.sessions import Client, parameters, sum_of
from wire import federation_pb2 as pb

# --- Advertisements ---------------------------------------------------------------------------------------------------------------------


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
