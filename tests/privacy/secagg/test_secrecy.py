"""What the coordinator gets says nothing of any one client: checked on whole transcripts, by a checker that catches broken clients.

Inputs come from a fixed seed and are small numbers, far from uniform; keys are real ones.
"""

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from privacy.errors import SessionAbortedError
from privacy.secagg import client as client_module
from privacy.secagg.client import ClientSession, ClientState
from privacy.secagg.coordinator import CoordinatorState
from privacy.secagg.keys import ClientSecrets
from privacy.secagg.labels import sign
from privacy.secagg.masks import RING_TYPES, Mask, RingVector, StreamCipher, add_masks
from privacy.secagg.members import unmask_parts
from tests.privacy.secagg.hostile import Tale, session_of
from tests.privacy.secagg.sessions import Client, Play, parameters, play, sum_of
from tests.privacy.secagg.transcript import MOST_CHI_SQUARE, Record, is_uniform, problems
from wire import federation_pb2 as pb

SIZE = 3000


def small_inputs(count: int = 6, **spec: object) -> Play:
    session, vectors = play(count, SIZE, **({"dropout_fraction": 0.34} | spec))  # type: ignore[arg-type]
    generator = np.random.default_rng(11)
    for vector in vectors:
        vector[session.parameters.head.size :] = generator.integers(-200, 200, SIZE).astype(vector.dtype)
    return session


def record_of(session: Play, deliveries: dict[str, pb.Delivery], *survivors: pb.Survivors) -> Record:
    sharers = {client_id: delivery.sharers for client_id, delivery in deliveries.items()}
    return Record(
        session.parameters,
        Tale(session, session.coordinator._members.entries).roster,
        sharers,
        survivors,
        session.received,
    )


def ids(session: Play) -> set[str]:
    return {client.client_id for client in session.clients}


def played(session: Play, lost: set[tuple[str, int]] = frozenset(), late: set[int] = frozenset()) -> Record:  # type: ignore[assignment]
    """Play a session as far as it goes; the vectors of those who are late come, but after the sum was closed."""

    def is_lost(stage: str, number: int) -> bool:
        return (stage, number) in lost

    session.advertise(is_lost)
    session.share(session.coordinator.freeze(), is_lost)
    deliveries = session.coordinator.deliver()
    session.upload(deliveries, is_lost)
    missed = {session.clients[number].client_id for number in late}
    summed = [client_id for client_id in session.uploaded if client_id not in missed]
    sent = []
    try:
        sent.append(session.coordinator.close_sum(summed))
        session.acknowledge(dict.fromkeys(summed, sent[0]), is_lost)
        session.unmask(session.coordinator.bundles(), is_lost)
    except SessionAbortedError:
        for client in session.clients:
            session_of(client).abort()
    return record_of(session, deliveries, *sent)


def next_attempt(session: Play, **spec: object) -> Play:
    agreed = parameters(len(session.clients), SIZE, attempt=1, dropout_fraction=0.34, **spec)  # type: ignore[arg-type]
    return Play(agreed, session.authority, session.clients)


# --- Clients that keep to the protocol --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ring_bits", "key_agreement"),
    [(16, "x25519"), (32, "x25519"), (64, "x25519"), (32, "x25519_mlkem768")],
)
@pytest.mark.parametrize(
    ("lost", "late"),
    [
        pytest.param(set(), set(), id="all-stay"),
        pytest.param({("shares", 0), ("upload", 1)}, set(), id="gone-early"),
        pytest.param({("ack", 0), ("unmask", 1)}, set(), id="gone-late"),
        pytest.param(set(), {2, 3}, id="vectors-too-late"),
    ],
)
def test_transcript_of_a_session_says_nothing(
    lost: set[tuple[str, int]], late: set[int], ring_bits: int, key_agreement: str
) -> None:
    session = small_inputs(ring_bits=ring_bits, audit=True, key_agreement=key_agreement)
    record = played(session, lost, late)
    assert problems([record], ids(session)) == []
    signed = [message for _, _, message in record.received if isinstance(message, pb.UploadHeader)]
    assert len({message.signature for message in signed}) == len(list(record.uploads()))
    kind, in_sum = RING_TYPES[ring_bits], session.coordinator.survivors
    came = [np.frombuffer(m, kind) for _, name, m in record.received if isinstance(m, bytes) and name in in_sum]
    session.coordinator.open(sum_of(came))
    assert session.coordinator.state is CoordinatorState.DONE


def test_transcripts_of_two_attempts_say_nothing_together() -> None:
    """The first ends after the vectors have come, because too few acknowledge; clients bring the same vectors again."""
    first = small_inputs()
    records = [played(first, {("ack", number) for number in range(4)})]
    second = next_attempt(first)
    records.append(played(second, {("upload", 0)}))
    assert [stage for stage, _, _ in first.received].count("upload") == 6
    assert {stage for stage, _, _ in second.received} >= {"unmask"}
    assert problems(records, ids(first)) == []


@pytest.mark.parametrize("ring_bits", [32, 64])
def test_uploads_equal_their_inputs_nowhere(ring_bits: int) -> None:
    """By chance, 6 vectors of about 3000 elements would have one equal element less than once in 200 000 runs."""
    session = small_inputs(ring_bits=ring_bits)
    record = played(session)
    by_id = {client.client_id: client.vector for client in session.clients}
    equal = [int((vector == by_id[record.clients[index]]).sum()) for index, vector in record.uploads()]
    # One by chance is nothing, two are less than once in 10^10.
    assert sum(equal) <= 1
    assert len(equal) == 6


def test_inputs_themselves_are_far_from_uniform() -> None:
    session = small_inputs()
    assert not any(is_uniform(client.vector) for client in session.clients)
    assert is_uniform(np.random.default_rng(5).integers(0, 2**32, SIZE, dtype=np.uint32))
    assert 440 < MOST_CHI_SQUARE < 450


# --- Broken clients ---------------------------------------------------------------------------------------------------------------------


class GivesBoth(ClientSession):
    """Gives its share of a survivor's key beside that of its seed."""

    def _unmask(self, held: ClientSecrets) -> pb.Unmask:
        message = super()._unmask(held)
        dealer = message.seed_shares[0].index
        message.key_shares.add(index=dealer, share=held.held[dealer][1])
        bound = (self.session_id, self._members.roster_hash)
        message.signature = sign(self._identity.key, "unmask", *bound, *unmask_parts(message))
        return message


class GivesBothLater(ClientSession):
    """Takes a second set of survivors, and gives the other kind of shares for it."""

    def take_survivors(self, survivors: pb.Survivors) -> pb.SurvivorAck:
        self.state = ClientState.MASKED
        return super().take_survivors(survivors)

    def _erase(self, state: ClientState) -> None:
        self.state = ClientState.MASKED


class MasksAgain(ClientSession):
    """Masks whatever it is given, as often as it is asked."""

    def mask(self, vector: RingVector) -> None:
        held = self._secrets
        assert held is not None
        key = held.mask_key
        super().mask(vector)
        held.mask_key, self.state = key, ClientState.DELIVERED


class NeedsNoAcks(ClientSession):
    """Gives its shares whoever has acknowledged."""

    def take_acks(self, bundle: pb.AckBundle) -> pb.Unmask:
        held = self._secrets
        assert held is not None
        return self._unmask(held)


def turn(client: Client, kind: type[ClientSession]) -> None:
    """Break a client."""
    session_of(client).__class__ = kind


def test_checker_catches_one_that_gives_both_kinds() -> None:
    session = small_inputs()
    session.advertise()
    turn(session.clients[0], GivesBoth)
    session.share(session.coordinator.freeze())
    deliveries = session.coordinator.deliver()
    session.upload(deliveries)
    survivors = session.coordinator.close_sum(session.uploaded)
    session.acknowledge(dict.fromkeys(session.uploaded, survivors))
    session.unmask(session.coordinator.bundles())
    found = problems([record_of(session, deliveries, survivors)], ids(session))
    assert any("both kinds" in problem for problem in found)
    assert any("never give both" in problem for problem in session.excluded.values())


def test_checker_catches_those_that_answer_two_sets_of_survivors() -> None:
    """With the seed from one set and the key from the other, a vector stands bare: that is seen from the numbers, too."""
    session = small_inputs()
    session.advertise()
    for client in session.clients:
        turn(client, GivesBothLater)
    session.share(session.coordinator.freeze())
    deliveries = session.coordinator.deliver()
    session.upload(deliveries)
    tale = Tale(session)
    sets = [tale.survivors(range(6)), tale.survivors(range(5))]
    clients = sorted(session.clients, key=tale.index)
    for survivors, those in zip(sets, (clients, clients[:5]), strict=True):
        acks = {tale.index(client): session_of(client).take_survivors(survivors) for client in those}
        for client in those:
            own = tale.index(client)
            session.received.append(("ack", client.client_id, acks[own]))
        for client in those:
            bundle = tale.bundle({index: ack for index, ack in acks.items() if index != tale.index(client)})
            session.received.append(("unmask", client.client_id, session_of(client).take_acks(bundle)))
    found = problems([record_of(session, deliveries, *sets)], ids(session))
    assert found == [
        "both kinds of shares of member 5 were given",
        "the vector of member 5 is not uniform without the masks that are known",
    ]


def test_checker_catches_one_that_masks_a_second_vector() -> None:
    session = small_inputs()
    session.advertise()
    broken = session.clients[2]
    turn(broken, MasksAgain)
    session.share(session.coordinator.freeze())
    deliveries = session.coordinator.deliver()
    session.upload(deliveries)
    again = (broken.vector + np.uint32(1)).astype(broken.vector.dtype)
    session_of(broken).mask(again)
    session.received.append(("upload", broken.client_id, again.tobytes()))
    found = problems([record_of(session, deliveries)], ids(session))
    assert f"two vectors of client {broken.client_id} have the same masks" in found
    assert any("has masked 2 vectors" in problem for problem in found)


def test_checker_catches_one_that_forgets_its_own_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its vector comes too late, is called missing, and its key is given: that is what its own mask is for."""
    session = small_inputs()
    forgetful = session.clients[1]

    def forget(vector: RingVector, masks: list[Mask], cipher: StreamCipher) -> None:
        add_masks(vector, masks[1:] if (vector == forgetful.vector).all() else masks, cipher)

    monkeypatch.setattr(client_module, "add_masks", forget)
    record = played(session, late={1})
    index = record.clients.index(forgetful.client_id)
    assert problems([record], ids(session)) == [
        f"the vector of member {index} is not uniform without the masks that are known"
    ]


def test_checker_catches_one_with_a_constant_mask_key() -> None:
    first = small_inputs()
    constant = X25519PrivateKey.generate()
    broken = first.clients[3]

    def advertise(session: Play) -> None:
        kept = session.coordinator.take_advertisement

        def take(client_id: str, message: pb.Advertise) -> None:
            if client_id == broken.client_id:
                own = session_of(broken)
                held = own._secrets
                assert held is not None
                held.mask_key = constant
                own.advertisement = message = own._advertise(held)
            kept(client_id, message)

        session.coordinator.take_advertisement = take  # type: ignore[method-assign]

    advertise(first)
    records = [played(first, {("ack", number) for number in range(4)})]
    second = next_attempt(first)
    advertise(second)
    records.append(played(second))
    assert problems(records, ids(first)) == [f"client {broken.client_id} used a key twice"]


@pytest.mark.parametrize("is_broken", [True, False])
def test_checker_catches_one_that_needs_no_acknowledgements(is_broken: bool) -> None:
    session = small_inputs()
    session.advertise()
    lonely = session.clients[4]
    if is_broken:
        turn(lonely, NeedsNoAcks)
    session.share(session.coordinator.freeze())
    deliveries = session.coordinator.deliver()
    session.upload(deliveries)
    survivors = session.coordinator.close_sum(session.uploaded)
    session.acknowledge({lonely.client_id: survivors})
    try:
        unmask = session_of(lonely).take_acks(pb.AckBundle())
        session.received.append(("unmask", lonely.client_id, unmask))
    except SessionAbortedError:
        assert not is_broken
    index = session.coordinator.clients.index(lonely.client_id)
    expected = [f"member {index} gave shares without enough acknowledgements"] if is_broken else []
    assert problems([record_of(session, deliveries, survivors)], ids(session)) == expected


@pytest.mark.parametrize("shift", [0, 1])
def test_checker_catches_one_that_does_not_mask(shift: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at all, or with one element for all."""
    session = small_inputs()

    def add_little(vector: RingVector, masks: list[Mask], cipher: StreamCipher) -> None:
        vector += vector.dtype.type(12345 * shift)

    monkeypatch.setattr(client_module, "add_masks", add_little)
    found = problems([played(session)], ids(session))
    assert sum("is not uniform" in problem and "without" not in problem for problem in found) == 6
