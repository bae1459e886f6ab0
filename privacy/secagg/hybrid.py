"""Key agreement of suite 2: X25519 and ML-KEM-768 side by side, so that a secret stays one as long as either holds.

ML-KEM does not agree on keys, it encapsulates: one side makes a secret and a ciphertext for the other's key. Two places need that. A packet
of shares has a ciphertext of its own. And each pair of neighbours needs a second secret for its mask which the coordinator can have again
from the shares of either one, whichever is gone, though encapsulating is random. So the lower index derives that secret from its mask seed,
and hands it over: under a key that is encapsulated to the other, beside a commitment. All mask keys of a member follow from its mask seed,
which is what its neighbours hold in shares. With the lower one's seed the secret is derived again, with the other's it is opened again.

Our own analysis: CSA-1 (docs/secure-aggregation.md), section "Hybrid".
Source: NIST, "Module-Lattice-Based Key-Encapsulation Mechanism Standard", FIPS 203, 2024. https://doi.org/10.6028/NIST.FIPS.203
"""

import secrets
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from privacy.secagg.kem import encapsulated
from privacy.secagg.labels import derive_key, hashed
from privacy.secagg.masks import Mask
from privacy.secagg.members import Members
from wire import federation_pb2 as pb

SECRET_BYTES = 32

MOST_MEMBERS = 400
"""Members of a session of suite 2: with more, a roster would be larger than a message may be."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two members of a session by their client ids, the one with the lower index first."""

    session_id: bytes
    roster_hash: bytes
    low: bytes
    high: bytes

    def secret(self, mask_seed: bytes) -> bytes:
        """Return the pair's second secret, 32 bytes, from the lower member's mask seed."""
        return self._key(mask_seed, "pair-secret")

    def hand_over(self, secret: bytes, public_key: bytes, packet: pb.Packet) -> None:
        """Put the secret into a packet, for the higher member's mask key of ML-KEM-768 alone."""
        shared, packet.mask_ciphertext = encapsulated(public_key)
        packet.mask_secret = _xor(secret, self._key(shared, "pair-pad"))
        packet.mask_commitment = self._commitment(secret)

    def received(self, key: MLKEM768PrivateKey, packet: pb.Packet) -> bytes:
        """Return the secret in a packet to the higher member, whose key this is.

        Raises:
            ValueError: It does not open, or is not what the lower member has committed to.
        """
        shared = key.decapsulate(packet.mask_ciphertext)
        if len(packet.mask_secret) != SECRET_BYTES:
            raise ValueError(f"a pair's secret must have {SECRET_BYTES} bytes")
        secret = _xor(packet.mask_secret, self._key(shared, "pair-pad"))
        self.check(secret, packet)
        return secret

    def check(self, secret: bytes, packet: pb.Packet) -> None:
        """Check that a secret is what the lower member has committed to. Raises `ValueError` if it is not."""
        if self._commitment(secret) != packet.mask_commitment:
            raise ValueError("a pair's secret must be what its dealer committed to")

    def mask_key(self, agreed: bytes, secret: bytes) -> bytes:
        """Return the key of the pair's mask from the secret that X25519 agrees on and the second one."""
        return self._key(agreed + secret, "hybrid-pair-mask")

    def _key(self, secret: bytes, label: str) -> bytes:
        return derive_key(secret, self.session_id, label, self.roster_hash, self.low, self.high)

    def _commitment(self, secret: bytes) -> bytes:
        return hashed("commit-pair", self.session_id, self.roster_hash, self.low, self.high, secret)


class MaskKeys:
    """A member's mask keys, which all follow from its mask seed of 32 bytes.

    Attributes:
        seed: The seed.
        x25519: Its key of X25519.
    """

    __slots__ = ("_mlkem", "_session_id", "seed", "x25519")

    def __init__(self, seed: bytes, session_id: bytes) -> None:
        """Derive a session's keys."""
        self.seed = seed
        self._session_id = session_id
        self.x25519 = X25519PrivateKey.from_private_bytes(derive_key(seed, session_id, "mask-x25519"))
        # d and z of FIPS 203, algorithm 16.
        d, z = derive_key(seed, session_id, "mask-mlkem-d"), derive_key(seed, session_id, "mask-mlkem-z")
        self._mlkem = MLKEM768PrivateKey.from_seed_bytes(d + z)

    @property
    def kem_key(self) -> bytes:
        """The public key of ML-KEM-768, 1184 bytes."""
        return self._mlkem.public_key().public_bytes_raw()

    def are_of(self, entry: pb.Advertise) -> bool:
        """Tell whether a member has advertised these keys."""
        return (self.x25519.public_key().public_bytes_raw(), self.kem_key) == (entry.mask_key, entry.mask_kem_key)

    def secret_with(self, own: int, other: int, members: Members, packet: pb.Packet | None) -> bytes:
        """Return the second secret with another member.

        Args:
            own: Whose keys these are, by index.
            other: The other's index.
            members: The session's.
            packet: What the lower index has sent to the higher; None for the lower itself, which knows.

        Raises:
            ValueError: The packet does not have the secret that it must have.
        """
        pair = self._pair(own, other, members)
        if own > other:
            return pair.received(self._mlkem, packet or pb.Packet())
        secret = pair.secret(self.seed)
        if packet is not None:
            pair.check(secret, packet)
        return secret

    def hand_over(self, own: int, other: int, members: Members, packet: pb.Packet) -> None:
        """Put the second secret with another member into a packet for it, if it has the higher index."""
        if own < other:
            pair = self._pair(own, other, members)
            pair.hand_over(pair.secret(self.seed), members.entries[other].mask_kem_key, packet)

    def mask_with(self, own: int, other: int, members: Members, secret: bytes) -> Mask:
        """Return the mask that two members have in common, as the one whose keys these are adds it."""
        agreed = self.x25519.exchange(X25519PublicKey.from_public_bytes(members.entries[other].mask_key))
        return Mask(self._pair(own, other, members).mask_key(agreed, secret), is_negative=own > other)

    def _pair(self, own: int, other: int, members: Members) -> Pair:
        low, high = (members.entries[index].client_id for index in sorted((own, other)))
        return Pair(self._session_id, members.roster_hash, low, high)


@dataclass(slots=True)
class KemSecrets:
    """What a client has more to erase in suite 2: its mask keys, its key for packets, and second secrets by the other's index."""

    mask_keys: MaskKeys = field(repr=False)
    encryption_key: MLKEM768PrivateKey = field(default_factory=MLKEM768PrivateKey.generate, repr=False)
    pair_secrets: dict[int, bytes] = field(default_factory=dict, repr=False)

    @classmethod
    def generate(cls, session_id: bytes) -> "KemSecrets":
        """Make new ones."""
        return cls(MaskKeys(secrets.token_bytes(SECRET_BYTES), session_id))


def _xor(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other, strict=True))
