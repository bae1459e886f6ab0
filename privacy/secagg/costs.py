"""What a session of secure aggregation costs each side: mask streams, keys, signatures and bytes, and from them seconds of one core.

Counts follow from the parameters alone. The coordinator's are those of the worst session that still ends: all the clients that may be
missing leave after they have shared their secrets. Shares of Shamir, encryption of packets, sums of uploads, most framing and the model are
left out: they are small beside the rest, or cost as much without secure aggregation.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from privacy.errors import SecureAggregationError
from privacy.secagg.head import Head
from privacy.secagg.labels import is_signed, sign
from privacy.secagg.masks import CHUNK_BYTES, Mask, Peer, add_masks, pair_mask
from privacy.secagg.parameters import Parameters
from privacy.secagg.shamir import SHARE_BYTES
from wire import federation_pb2 as pb

_HASH = bytes(32)
_SIGNATURE = bytes(64)
_ADVERTISE = pb.Advertise(
    session_id=_HASH,
    client_id=bytes(16),
    public_key=_HASH,
    certificate=_SIGNATURE,
    encryption_key=_HASH,
    mask_key=_HASH,
    seed_commitment=_HASH,
    signature=_SIGNATURE,
)

_MASKS_AT_A_TIME = 4


@dataclass(frozen=True, slots=True)
class Speeds:
    """Seconds that one core takes: per byte of a mask, made and added; and per agreed key, signature and check of one."""

    mask_byte: float
    agreement: float
    signature: float
    verification: float


@dataclass(frozen=True, slots=True)
class Load:
    """What one party does in a session.

    Attributes:
        streams: Masks that are made and added, each as long as the vector.
        agreements: Keys agreed with another, or made.
        signatures: Signatures given.
        verifications: Signatures checked.
        sent_bytes: Bytes that leave.
        received_bytes: Bytes that come in.
    """

    streams: int
    agreements: int
    signatures: int
    verifications: int
    sent_bytes: int
    received_bytes: int

    def seconds(self, speeds: Speeds, vector_bytes: int) -> float:
        """Return the seconds of one core."""
        keys = self.agreements * speeds.agreement
        signed = self.signatures * speeds.signature + self.verifications * speeds.verification
        return self.streams * vector_bytes * speeds.mask_byte + keys + signed


def vector_bytes_of(parameter_count: int, ring_bits: int, client_count: int) -> int:
    """Return the bytes of a masked vector whose head has no metrics.

    Raises:
        SecureAggregationError: The ring is too small for so many clients.
    """
    head = Head(ring_bits, client_count, weight_cap=1, metrics=())
    if problem := head.problem:
        raise SecureAggregationError(f"Secure aggregation: {problem}. Take a larger ring.")
    return (head.size + parameter_count) * ring_bits // 8


def client_load(parameters: Parameters, vector_bytes: int) -> Load:
    """Return what a client does that stays to the end: a stream for itself and one with each neighbour, and two agreements with each."""
    others, neighbours = parameters.client_count - 1, parameters.degree
    before, after = _sent(parameters, vector_bytes)
    return Load(
        streams=neighbours + 1,
        agreements=2 * neighbours + 2,
        signatures=4,
        verifications=2 * others + 3 + neighbours,
        sent_bytes=before + after,
        received_bytes=sum(_received(parameters)),
    )


def coordinator_load(parameters: Parameters, vector_bytes: int) -> Load:
    """Return what the coordinator does when all that may be missing leave after sharing.

    It takes away the own mask of each survivor, and for each missing client the masks with those of its neighbours that survive: k of
    them, by (n - D) / (n - 1), exactly in a complete graph and on average in a ring.
    """
    n, missing = parameters.client_count, parameters.missing_count
    survivors = n - missing
    pairs = -(-missing * parameters.degree * survivors // (n - 1))
    before, after = _sent(parameters, vector_bytes)
    early, late = _received(parameters)
    return Load(
        streams=survivors + pairs,
        agreements=missing + pairs,
        signatures=3,
        verifications=3 * n + 2 * survivors,
        sent_bytes=n * early + survivors * late,
        received_bytes=n * before + survivors * after,
    )


def _sent(parameters: Parameters, vector_bytes: int) -> tuple[int, int]:
    """Return the bytes that a client sends up to its shares, and from its masked vector on."""
    shares = pb.Shares(session_id=_HASH, signature=_SIGNATURE).ByteSize() + parameters.degree * _packet(parameters)
    held = pb.Unmask(seed_shares=[pb.HeldShare(index=parameters.client_count - 1, share=bytes(SHARE_BYTES))]).ByteSize()
    unmask = pb.Unmask(session_id=_HASH, own_seed=_HASH, signature=_SIGNATURE).ByteSize() + parameters.degree * held
    ack = pb.SurvivorAck(session_id=_HASH, signature=_SIGNATURE).ByteSize()
    return _ADVERTISE.ByteSize() + shares, vector_bytes + ack + unmask


def _received(parameters: Parameters) -> tuple[int, int]:
    """Return the bytes that a client receives up to the others' shares, and from the set of survivors on."""
    bitmap = bytes(-(-parameters.client_count // 8))
    offer = pb.SessionOffer(nonce=_HASH, signature=_SIGNATURE).ByteSize()
    members = parameters.client_count * pb.Roster(members=[_ADVERTISE]).ByteSize()
    roster = pb.Roster(session_id=_HASH, signature=_SIGNATURE).ByteSize() + members
    delivery = pb.Delivery(session_id=_HASH, sharers=bitmap).ByteSize() + parameters.degree * _packet(parameters)
    survivors = pb.Survivors(session_id=_HASH, survivors=bitmap, signature=_SIGNATURE).ByteSize()
    ack = pb.AckBundle(acks=[pb.Ack(index=parameters.client_count - 1, signature=_SIGNATURE)]).ByteSize()
    acks = pb.AckBundle(session_id=_HASH).ByteSize() + parameters.degree * ack
    return offer + roster + delivery, survivors + acks


def _packet(parameters: Parameters) -> int:
    packet = pb.Packet(index=parameters.client_count - 1, nonce=bytes(12), ciphertext=bytes(1 + 2 * SHARE_BYTES + 16))
    return pb.Shares(packets=[packet]).ByteSize()


def measure_speeds(budget_seconds: float = 0.2) -> Speeds:
    """Measure this machine with the code that a session runs, on one core, for about as long as given."""
    secret, own, signer = X25519PrivateKey.generate(), Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    ends = [Peer(index, bytes(16), _public_bytes(secret)) for index in range(2)]
    public_key, signature = _public_bytes(signer), sign(signer, "measured", bytes(32))
    vector = np.zeros(CHUNK_BYTES, dtype="<u4")
    masks = [Mask(own.private_bytes_raw())] * _MASKS_AT_A_TIME
    each = budget_seconds / 4
    return Speeds(
        _fastest(lambda: add_masks(vector, masks), each) / (_MASKS_AT_A_TIME * vector.nbytes),
        _fastest(lambda: pair_mask(secret, ends[0], ends[1], bytes(32), bytes(32)), each),
        _fastest(lambda: sign(signer, "measured", bytes(32)), each),
        _fastest(lambda: is_signed(public_key, signature, "measured", bytes(32)), each),
    )


def _public_bytes(key: X25519PrivateKey | Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def _fastest(act: Callable[[], object], budget_seconds: float) -> float:
    """Return the fewest seconds that an act took of this thread, tried for as long as given: others on the machine only slow it down."""
    end, fastest = time.perf_counter() + budget_seconds, float("inf")
    while fastest == float("inf") or time.perf_counter() < end:
        start = time.thread_time()
        act()
        fastest = min(fastest, time.thread_time() - start)
    return fastest
