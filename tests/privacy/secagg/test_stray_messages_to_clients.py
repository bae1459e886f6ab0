"""Clients open nothing from elsewhere, and end the session at a message that is not due or is bent."""

import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.errors import AbortCode, SessionAbortedError
from privacy.secagg.client import ClientState
from tests.privacy.secagg.forgeries import bent
from tests.privacy.secagg.hostile import Tale, ack_by, advertised, refused, session_of, told
from tests.privacy.secagg.sessions import Client, Play, parameters, play
from wire import federation_pb2 as pb

# --- From elsewhere ---------------------------------------------------------------------------------------------------------------------


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
