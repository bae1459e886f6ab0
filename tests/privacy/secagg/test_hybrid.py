"""Suite 2: keys agreed with ML-KEM-768 beside X25519 open sums as exactly, and whoever tampers with what it adds is found out."""

import hashlib
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from google.protobuf.message import Message

from privacy.errors import AbortCode, MemberExcludedError, SecureAggregationError, SessionAbortedError
from privacy.secagg.client import ClientState
from privacy.secagg.combinations import check_masking
from privacy.secagg.hybrid import MOST_MEMBERS, MaskKeys, Pair
from privacy.secagg.kem import KEM_KEY_BYTES, encapsulated
from privacy.secagg.packets import Channel, packet_sizes
from tests.privacy.secagg.forgeries import made_up
from tests.privacy.secagg.hostile import Tale, Told, addressed, entries_of, refused, session_of, told
from tests.privacy.secagg.liars import Lied, lied, signed
from tests.privacy.secagg.sessions import STAGES, Client, parameters, play, sum_of
from wire import federation_pb2 as pb
from wire.errors import SpecError
from wire.protocol import MESSAGE_LIMIT_BYTES
from wire.spec import validate_spec

HYBRID = "x25519_mlkem768"
SESSION, ROSTER, LOW, HIGH = b"\x11" * 32, b"\x22" * 32, b"\x01" * 16, b"\x02" * 16
PAIR = Pair(SESSION, ROSTER, LOW, HIGH)

Tell = Callable[[list[pb.Packet], Told], list[pb.Packet]]
"""Changes the packets that a member is handed."""


# --- Vectors ----------------------------------------------------------------------------------------------------------------------------

# Worked out once with HMAC and SHA-256 from the standard library, without the package.


def test_mask_keys_are_those_of_the_vectors() -> None:
    keys = MaskKeys(bytes(range(32)), SESSION)
    public = keys.x25519.public_key().public_bytes_raw()
    assert public.hex() == "1128539e89d26a5cec0e91f99c8fe5a7fee9eaecd652e12348b026f7330da214"
    digest = hashlib.sha256(keys.kem_key).hexdigest()
    assert digest == "1ad6ab914ed7beaef40f0b9ea0d30620d59e1aea3f2a9cdf5dcd38db944cc94a"


def test_secret_of_a_pair_is_that_of_the_vectors() -> None:
    secret = PAIR.secret(bytes(range(32)))
    assert secret.hex() == "43bd8e7731bc0595f4e756f23a740463e41ccd5af49bf0beaf4a7d89d7d30dde"
    commitment = bytes.fromhex("09a934ec987dd6ad3b8832384bdf33025276466c889daa3ac2d422d33d9ddd61")
    PAIR.check(secret, pb.Packet(mask_commitment=commitment))
    mask_key = PAIR.mask_key(b"\x06" * 32, secret)
    assert mask_key.hex() == "cb7fcc0af5649e2d11383918ef62b734c6568a77dc3b4f051d9c33af386313f7"


def test_secret_in_a_packet_is_under_the_pad_of_the_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("privacy.secagg.hybrid.encapsulated", lambda public_key: (b"\x05" * 32, b"\x07" * 1088))
    packet, secret = pb.Packet(), PAIR.secret(bytes(range(32)))
    PAIR.hand_over(secret, b"", packet)
    pad = bytes(one ^ other for one, other in zip(packet.mask_secret, secret, strict=True))
    assert pad.hex() == "14b2f19fe2c2f871949ee2cff09b51ed4a07c12bc3093bbb7b995ba8e6852049"


def test_key_of_a_packet_is_that_of_the_vectors() -> None:
    packet = pb.Packet(kem_ciphertext=b"\x07" * 1088, mask_ciphertext=b"\x08" * 1088)
    packet.mask_secret, packet.mask_commitment = b"\x09" * 32, b"\x0a" * 32
    channel = Channel(SESSION, ROSTER, LOW, HIGH)
    key, bound = channel._key(packet, b"\x06" * 32, b"\x05" * 32), channel._bound(packet)
    assert key.hex() == "d4a026dfd3413124293d6f077e4d258beb8e7f5b4fd572e86956363304555e91"
    assert bound.hex() == "41e9d483523d08ce85c2736fb42691b894e317cbce15ae58476a12912d5a7f8c"


# --- Sums -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("gone", [pytest.param({4}, id="one"), pytest.param({0, 5}, id="most-that-is-tolerated")])
def test_sum_is_that_of_the_survivors(stage: str, gone: set[int]) -> None:
    session, vectors = play(8, 40, dropout_fraction=0.25, key_agreement=HYBRID)
    head = session.run(lambda at, number: at == stage and number in gone)
    is_before_the_sum = stage in ("advertise", "shares", "upload")
    summed = [vector for number, vector in enumerate(vectors) if not is_before_the_sum or number not in gone]
    assert (session.total == sum_of(summed)).all()
    assert head.count == len(summed)
    assert not session.aborted
    assert not session.excluded


def test_sum_is_exact_with_every_other_setting() -> None:
    session, vectors = play(
        7, 300, ring_bits=64, cipher="chacha20", audit=True, dropout_fraction=0.3, key_agreement=HYBRID
    )
    session.run(lambda at, number: at == "upload" and number in {1, 6})
    assert (session.total == sum_of([vectors[number] for number in (0, 2, 3, 4, 5)])).all()
    assert session.parameters.suite == 2 + 64 + 128


def test_mask_of_a_pair_needs_both_secrets() -> None:
    """Who knows what either agreement gives, and not the other, has another key."""
    secret = PAIR.secret(bytes(32))
    assert (
        len({PAIR.mask_key(bytes(32), secret), PAIR.mask_key(b"\x01" * 32, secret), PAIR.mask_key(bytes(32), LOW * 2)})
        == 3
    )
    packet, channel = pb.Packet(kem_ciphertext=b"\x07" * 1088), Channel(SESSION, ROSTER, LOW, HIGH)
    channel.seal(packet, bytes(32), b"\x05" * 32, (bytes(36), bytes(36)))
    assert channel.open(packet, bytes(32), b"\x05" * 32) == (bytes(36), bytes(36))
    assert channel.open(packet, b"\x01" * 32, b"\x05" * 32) is None
    assert channel.open(packet, bytes(32), b"\x06" * 32) is None
    # Nor is it one of suite 1 when its ciphertext is taken away.
    packet.ClearField("kem_ciphertext")
    assert channel.open(packet, bytes(32), b"") is None


# --- Advertisements ---------------------------------------------------------------------------------------------------------------------


def kem_key() -> bytes:
    return MLKEM768PrivateKey.generate().public_key().public_bytes_raw()


@pytest.mark.parametrize(
    ("key_agreement", "changes"),
    [
        pytest.param(HYBRID, {"encryption_kem_key": kem_key()}, id="no-mask-key"),
        pytest.param(HYBRID, {"mask_kem_key": kem_key()}, id="no-encryption-key"),
        pytest.param(HYBRID, {}, id="none"),
        pytest.param(HYBRID, {"encryption_kem_key": kem_key(), "mask_kem_key": kem_key()[:-1]}, id="short"),
        pytest.param(HYBRID, {"encryption_kem_key": kem_key(), "mask_kem_key": b"\xff" * KEM_KEY_BYTES}, id="no-key"),
        pytest.param("x25519", {"encryption_kem_key": kem_key(), "mask_kem_key": kem_key()}, id="in-suite-1"),
    ],
)
def test_advertisement_of_another_suite_is_refused_by_both_sides(key_agreement: str, changes: dict[str, bytes]) -> None:
    session, _ = play(5, key_agreement=key_agreement)
    liar = session.clients[0]
    entry = made_up(liar.identity, session.coordinator.session_id, **changes)
    with pytest.raises(MemberExcludedError, match="keys must be those of the session's key agreement"):
        session.coordinator.take_advertisement(liar.client_id, entry)
    session.advertise()
    roster = Tale(session, [entry, *entries_of(session)[1:]]).roster
    victim = session_of(session.clients[1])
    refused(victim, lambda: victim.take_roster(roster), AbortCode.FORGED, "those of the session's key agreement")


def test_one_key_for_two_purposes_is_refused() -> None:
    session, _ = play(5, key_agreement=HYBRID)
    liar, key = session.clients[0], kem_key()
    entry = made_up(liar.identity, session.coordinator.session_id, encryption_kem_key=key, mask_kem_key=key)
    with pytest.raises(MemberExcludedError, match="its keys must be its own"):
        session.coordinator.take_advertisement(liar.client_id, entry)
    session.advertise()
    roster = Tale(session, [entry, *entries_of(session)[1:]]).roster
    victim = session_of(session.clients[1])
    refused(victim, lambda: victim.take_roster(roster), AbortCode.FORGED, "a mask_key of its own")


# --- A coordinator that lies ------------------------------------------------------------------------------------------------------------


def without(packets: list[pb.Packet], at: Told) -> list[pb.Packet]:
    return packets[1:]


def of_another(name: str) -> Tell:
    def lie(packets: list[pb.Packet], at: Told) -> list[pb.Packet]:
        setattr(packets[0], name, getattr(packets[1], name))
        return packets

    return lie


def flip(packet: pb.Packet, name: str) -> None:
    value = getattr(packet, name)
    setattr(packet, name, value[:-1] + bytes([value[-1] ^ 1]))


def flipped(name: str) -> Tell:
    def lie(packets: list[pb.Packet], at: Told) -> list[pb.Packet]:
        flip(packets[0], name)
        return packets

    return lie


def emptied(name: str) -> Tell:
    def lie(packets: list[pb.Packet], at: Told) -> list[pb.Packet]:
        packets[0].ClearField(name)
        return packets

    return lie


def of_its_own(packets: list[pb.Packet], at: Told) -> list[pb.Packet]:
    """Hand over a secret that the coordinator knows, committed to and all."""
    low, high = at.tale.members.entries[0], at.tale.members.entries[4]
    pair = Pair(at.tale.session_id, at.tale.members.roster_hash, low.client_id, high.client_id)
    pair.hand_over(bytes(32), high.mask_kem_key, packets[0])
    return packets


def of_its_own_channel(packets: list[pb.Packet], at: Told) -> list[pb.Packet]:
    _, packets[0].kem_ciphertext = encapsulated(at.tale.members.entries[4].encryption_kem_key)
    return packets


def to_its_receiver(at: Told, index: int) -> list[pb.Packet]:
    """Return the packets for a member as they were sent, by ascending sender."""
    return [
        addressed(packet, dealer)
        for dealer, shares in sorted(at.shares.items())
        for packet in shares.packets
        if packet.index == index
    ]


NAMES = ("kem_ciphertext", "mask_ciphertext", "mask_secret", "mask_commitment")


@pytest.mark.parametrize(
    "lie",
    [
        pytest.param(without, id="left-out"),
        pytest.param(of_its_own, id="a-secret-of-its-own"),
        pytest.param(of_its_own_channel, id="a-ciphertext-of-its-own"),
        *(pytest.param(of_another(name), id=f"{name}-of-another") for name in NAMES),
        *(pytest.param(flipped(name), id=f"{name}-changed") for name in (*NAMES, "ciphertext")),
        *(pytest.param(emptied(name), id=f"{name}-taken-away") for name in NAMES),
    ],
)
def test_part_of_a_pair_mask_that_is_not_its_senders_ends_the_session_with_what_was_said(
    lie: Tell,
) -> None:
    """Of five members the last gets a part of each pair mask; the first member's is not what it sent."""
    at = told(play(5, dropout_fraction=0.2, key_agreement=HYBRID)[0])
    delivery = at.tale.delivery_of(at.tale.members.bitmap(range(5)), lie(to_its_receiver(at, 4), at))
    victim = session_of(at.clients[4])
    error = refused(
        victim,
        lambda: victim.take_delivery(delivery),
        AbortCode.FALSE_PACKET,
        f"the packet of member {at.clients[0].client_id} must open and have its part of a pair mask",
    )
    # What it was handed is signed: the coordinator can be asked to show that member 0 has signed the same.
    assert error.evidence == (delivery,)
    assert error.code.is_alarming


def test_delivery_that_is_not_signed_is_refused() -> None:
    at = told(play(5, key_agreement=HYBRID)[0])
    delivery = at.tale.delivery(at.clients[4], {d: s for d, s in at.shares.items() if d != 4}, range(5))
    delivery.sharers = at.tale.members.bitmap(range(4))
    victim = session_of(at.clients[4])
    refused(
        victim, lambda: victim.take_delivery(delivery), AbortCode.FORGED, "Delivery must be signed by the coordinator"
    )


def test_packet_of_a_higher_index_that_does_not_open_is_noted_as_missing() -> None:
    """Nothing of the pair's mask is in it."""
    at = told(play(5, dropout_fraction=0.2, key_agreement=HYBRID)[0])
    packets = to_its_receiver(at, 0)
    flip(packets[-1], "ciphertext")
    first = session_of(at.clients[0])
    first.take_delivery(at.tale.delivery_of(at.tale.members.bitmap(range(5)), packets))
    assert (first.state, first._missing) == (ClientState.DELIVERED, [4])


# --- Clients that lie -------------------------------------------------------------------------------------------------------------------


def test_packet_of_the_wrong_size_is_left_out() -> None:
    def lie(session: Lied, client: Client, message: Message) -> Message:
        assert isinstance(message, pb.Shares)
        message.packets[0].ClearField("mask_ciphertext")
        return signed(session, client, message)

    session = lied(key_agreement=HYBRID)
    session.lie("shares", 2, lie)
    session.lie("shares", 0, lie)
    session.run()
    # The second member's first packet goes to a lower index, and has none.
    assert list(session.excluded.values()) == [
        "Shares: a packet must have 12 and 89 and 1088 and 1088 and 32 and 32 bytes."
    ]
    assert (session.total == session.sum_without(0)).all()


@pytest.mark.parametrize("name", ["mask_ciphertext", "mask_secret", "mask_commitment"])
def test_secret_that_does_not_open_is_found_before_anybody_masks_with_it(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Its receiver falls out, welcome to the next session; with its seed the coordinator sees whose fault it was."""
    session, hand_over = lied(key_agreement=HYBRID), Pair.hand_over
    liar, victim = session.ordered[1].client_id, session.ordered[6].client_id

    def spoil(self: Pair, secret: bytes, public_key: bytes, packet: pb.Packet) -> None:
        hand_over(self, secret, public_key, packet)
        if (self.low.hex(), self.high.hex()) == (liar, victim):
            flip(packet, name)

    monkeypatch.setattr(Pair, "hand_over", spoil)
    with pytest.raises(SessionAbortedError, match="must have what it committed to for a pair mask") as abort:
        session.run()
    assert abort.value.code is AbortCode.BAD_SHARE
    assert {client_id: error.code for client_id, error in session.aborted.items()} == {victim: AbortCode.FALSE_PACKET}
    assert session.coordinator.false_holders == {liar}


def test_packets_that_nobody_can_open_end_the_session_before_anything_is_opened() -> None:
    def lie(session: Lied, client: Client, message: Message) -> Message:
        assert isinstance(message, pb.Shares)
        for packet in message.packets:
            flip(packet, "ciphertext")
        return signed(session, client, message)

    session = lied(key_agreement=HYBRID)
    session.lie("shares", 2, lie)
    with pytest.raises(SessionAbortedError, match="survivors must be at least 6, got 3") as abort:
        session.run()
    assert abort.value.code is AbortCode.TOO_FEW
    assert session.aborted.keys() == {client.client_id for client in session.ordered[3:]}
    assert {error.code for error in session.aborted.values()} == {AbortCode.FALSE_PACKET}
    assert not {stage for stage, _, _ in session.received} & {"ack", "unmask"}


def test_secret_that_is_not_of_its_dealers_seed_is_found_when_the_dealer_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = lied(key_agreement=HYBRID)
    liar, secret = session.ordered[2], Pair.secret

    def another(self: Pair, mask_seed: bytes) -> bytes:
        return bytes(32) if self.low.hex() == liar.client_id else secret(self, mask_seed)

    session.advertise()
    monkeypatch.setattr(Pair, "secret", another)
    session.share(session.coordinator.freeze())
    number = session.clients.index(liar)
    session.upload(session.coordinator.deliver(), lambda at, who: at == "upload" and who == number)
    monkeypatch.undo()
    survivors = session.coordinator.close_sum(session.uploaded)
    session.acknowledge(dict.fromkeys(session.uploaded, survivors))
    session.unmask(session.coordinator.bundles())
    with pytest.raises(SessionAbortedError, match=f"a packet of {liar.client_id} must have") as abort:
        session.coordinator.open(session.total)
    assert abort.value.code is AbortCode.BAD_SHARE
    assert session.coordinator.false_holders == {liar.client_id}


# --- Sizes ------------------------------------------------------------------------------------------------------------------------------


def test_messages_of_the_largest_session_fit() -> None:
    keys = {"encryption_kem_key": bytes(KEM_KEY_BYTES), "mask_kem_key": bytes(KEM_KEY_BYTES)}
    plain = dict.fromkeys(("session_id", "public_key", "encryption_key", "mask_key", "seed_commitment"), bytes(32))
    entry = pb.Advertise(client_id=bytes(16), certificate=bytes(64), signature=bytes(64), **plain, **keys)
    roster = pb.Roster(session_id=bytes(32), signature=bytes(64), members=[entry] * MOST_MEMBERS)
    names = ("nonce", "ciphertext", *NAMES)
    fields = {name: bytes(size) for name, size in zip(names, packet_sizes(True, True), strict=True)}
    packet = pb.Packet(index=MOST_MEMBERS, **fields)
    shares = pb.Shares(session_id=bytes(32), signature=bytes(64), packets=[packet] * MOST_MEMBERS)
    assert pb.JoinResponse(roster=roster).ByteSize() < MESSAGE_LIMIT_BYTES
    assert pb.JoinRequest(shares=shares).ByteSize() < MESSAGE_LIMIT_BYTES


def test_more_members_than_messages_have_room_for_are_refused_before_the_run() -> None:
    rule = "with key_agreement x25519_mlkem768 clients must be at most 400, got 401"
    parameters(400, key_agreement=HYBRID).canon()
    with pytest.raises(SecureAggregationError, match=rule):
        parameters(401, key_agreement=HYBRID).canon()
    document = {"name": "big", "learner": {"name": "mlp"}, "rounds": 1, "cohort": {"size": 401}}
    for key_agreement in ("x25519", HYBRID):
        privacy = {"secure_aggregation": {"key_agreement": key_agreement}}
        spec = validate_spec(document | {"privacy": privacy})
        if key_agreement == HYBRID:
            with pytest.raises(SpecError, match=f"Run spec: privacy.secure_aggregation: {rule}"):
                check_masking(spec)
        else:
            check_masking(spec)
