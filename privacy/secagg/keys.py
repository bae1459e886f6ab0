"""What a client must erase at the end of a session: its keys, its seeds, and its shares of others'. Here keys are agreed on.

Source: CSA-1 (docs/secure-aggregation.md), sections "Encodings" and "Hybrid".
"""

import secrets
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from privacy.secagg.hybrid import KemSecrets
from privacy.secagg.kem import encapsulated
from privacy.secagg.masks import Mask, pair_mask
from privacy.secagg.members import Members
from privacy.secagg.packets import Channel
from wire import federation_pb2 as pb


@dataclass(slots=True)
class ClientSecrets:
    """A client's secrets of one session.

    Attributes:
        session_id: The session's.
        encryption_key: For packets of shares.
        mask_key: For pair masks; none once they are made.
        seed: Of the client's own mask, 32 bytes.
        held: Shares of seed and mask key by their dealer's index.
        kem: What suite 2 has more; the mask key then follows from it.
    """

    session_id: bytes
    encryption_key: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate, repr=False)
    mask_key: X25519PrivateKey | None = field(default_factory=X25519PrivateKey.generate, repr=False)
    seed: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    held: dict[int, tuple[bytes, bytes]] = field(default_factory=dict, repr=False)
    kem: KemSecrets | None = field(default=None, repr=False)
    _agreed_keys: dict[int, bytes] = field(default_factory=dict, repr=False)

    @classmethod
    def hybrid(cls, session_id: bytes) -> "ClientSecrets":
        """Make those of a session of suite 2."""
        kem = KemSecrets.generate(session_id)
        return cls(session_id, mask_key=kem.mask_keys.x25519, kem=kem)

    @property
    def shared(self) -> bytes:
        """What the mask keys follow from, 32 bytes, which goes to the neighbours in shares."""
        assert self.mask_key is not None
        return self.mask_key.private_bytes_raw() if self.kem is None else self.kem.mask_keys.seed

    def advertise(self, entry: pb.Advertise) -> None:
        """Put the public keys into an advertisement."""
        assert self.mask_key is not None
        entry.encryption_key = self.encryption_key.public_key().public_bytes_raw()
        entry.mask_key = self.mask_key.public_key().public_bytes_raw()
        if self.kem is not None:
            entry.encryption_kem_key = self.kem.encryption_key.public_key().public_bytes_raw()
            entry.mask_kem_key = self.kem.mask_keys.kem_key

    def seal(self, members: Members, index: int, holder: int, shares: tuple[bytes, bytes]) -> pb.Packet:
        """Return the packet from this client, at `index`, to a holder of shares of its seed and mask key."""
        packet, secret = pb.Packet(index=holder), b""
        if self.kem is not None:
            secret, packet.kem_ciphertext = encapsulated(members.entries[holder].encryption_kem_key)
            self.kem.mask_keys.hand_over(index, holder, members, packet)
        self._channel(members, index, holder).seal(packet, self._agreed(members, holder), secret, shares)
        return packet

    def open(self, members: Members, index: int, dealer: int, packet: pb.Packet | None) -> tuple[bytes, bytes] | None:
        """Return the shares in a packet to this client, at `index`, or None when there is none that can be opened."""
        if packet is None or bool(packet.kem_ciphertext) != (self.kem is not None):
            return None
        secret = b""
        if self.kem is not None:
            try:
                secret = self.kem.encryption_key.decapsulate(packet.kem_ciphertext)
            except ValueError:
                return None
        return self._channel(members, dealer, index).open(packet, self._agreed(members, dealer), secret)

    def can_mask_with(self, members: Members, index: int, other: int, packet: pb.Packet | None) -> bool:
        """Tell whether this client, at `index`, has all that the mask with a neighbour needs, and keep it.

        Args:
            members: The session's.
            index: Where this client stands.
            other: Where the neighbour stands.
            packet: What it has sent, if that opens. In suite 2 the lower index of the two sends the higher a secret.
        """
        if self.kem is None:
            return True
        try:
            sent = packet if other < index else None
            self.kem.pair_secrets[other] = self.kem.mask_keys.secret_with(index, other, members, sent)
        except ValueError:
            return False
        return True

    def pair_mask(self, members: Members, index: int, other: int) -> Mask:
        """Return the mask that this client, at `index`, has in common with a neighbour."""
        if self.kem is not None:
            return self.kem.mask_keys.mask_with(index, other, members, self.kem.pair_secrets[other])
        assert self.mask_key is not None
        return pair_mask(self.mask_key, members.peer(index), members.peer(other), self.session_id, members.roster_hash)

    def erase(self) -> None:
        """Let go of everything: who still has this object, such as the frames of an error, has nothing."""
        del self.encryption_key, self.mask_key, self.seed, self.held, self._agreed_keys, self.kem

    def _agreed(self, members: Members, other: int) -> bytes:
        """Return what X25519 agrees on with another member: one secret for what goes there and what comes from there."""
        if other not in self._agreed_keys:
            public_key = X25519PublicKey.from_public_bytes(members.entries[other].encryption_key)
            self._agreed_keys[other] = self.encryption_key.exchange(public_key)
        return self._agreed_keys[other]

    def _channel(self, members: Members, source: int, target: int) -> Channel:
        entries = members.entries
        return Channel(self.session_id, members.roster_hash, entries[source].client_id, entries[target].client_id)
