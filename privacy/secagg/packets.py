"""Packets of shares: encrypted from one member to another under a key for this one message.

Source: CSA-1 (docs/secure-aggregation.md), section "Encodings"; Dworkin, "Galois/Counter Mode (GCM) and GMAC", NIST SP 800-38D, 2007.
https://doi.org/10.6028/NIST.SP.800-38D
"""

import secrets
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from privacy.secagg.hybrid import SECRET_BYTES
from privacy.secagg.kem import KEM_CIPHERTEXT_BYTES
from privacy.secagg.labels import derive_key, hashed
from privacy.secagg.shamir import SHARE_BYTES
from wire import federation_pb2 as pb

NONCE_BYTES = 12
CIPHERTEXT_BYTES = 1 + 2 * SHARE_BYTES + 16
_VERSION = b"\x01"


@dataclass(frozen=True, slots=True)
class Channel:
    """The way from one member to another, by their client ids."""

    session_id: bytes
    roster_hash: bytes
    source: bytes
    target: bytes

    def seal(self, packet: pb.Packet, agreed: bytes, encapsulated: bytes, shares: tuple[bytes, bytes]) -> None:
        """Encrypt two shares into a packet that has everything else already.

        Args:
            packet: What is sent.
            agreed: What X25519 agrees on.
            encapsulated: In suite 2, what the packet's `kem_ciphertext` holds; else nothing.
            shares: Of the dealer's seed and of its mask key.
        """
        packet.nonce = secrets.token_bytes(NONCE_BYTES)
        cipher = AESGCM(self._key(packet, agreed, encapsulated))
        packet.ciphertext = cipher.encrypt(packet.nonce, _VERSION + b"".join(shares), self._bound(packet))

    def open(self, packet: pb.Packet, agreed: bytes, encapsulated: bytes) -> tuple[bytes, bytes] | None:
        """Return the shares in a packet, or None when it is not one that its source has sent to its target in this session."""
        if len(packet.nonce) != NONCE_BYTES:
            return None
        try:
            cipher = AESGCM(self._key(packet, agreed, encapsulated))
            plaintext = cipher.decrypt(packet.nonce, packet.ciphertext, self._bound(packet))
        except InvalidTag:
            return None
        if len(plaintext) != 1 + 2 * SHARE_BYTES or not plaintext.startswith(_VERSION):
            return None
        return plaintext[1 : 1 + SHARE_BYTES], plaintext[1 + SHARE_BYTES :]

    def _key(self, packet: pb.Packet, agreed: bytes, encapsulated: bytes) -> bytes:
        ends = (self.roster_hash, self.source, self.target)
        if not packet.kem_ciphertext:
            return derive_key(agreed, self.session_id, "share-key", *ends)
        return derive_key(agreed + encapsulated, self.session_id, "hybrid-share-key", *ends, packet.kem_ciphertext)

    def _bound(self, packet: pb.Packet) -> bytes:
        ends = (self.session_id, self.roster_hash, self.source, self.target)
        if not packet.kem_ciphertext:
            return hashed("share-aad", *ends)
        handed_over = (packet.mask_ciphertext, packet.mask_secret, packet.mask_commitment)
        return hashed("hybrid-share-aad", *ends, *handed_over)


def sizes_of(packet: pb.Packet) -> tuple[int, ...]:
    """Return the lengths of a packet's fields, as `packet_sizes` has them."""
    handed_over = (packet.mask_ciphertext, packet.mask_secret, packet.mask_commitment)
    return tuple(map(len, (packet.nonce, packet.ciphertext, packet.kem_ciphertext, *handed_over)))


def packet_sizes(is_hybrid: bool, hands_over: bool) -> tuple[int, ...]:
    """Return the lengths of a packet's nonce, ciphertext, ciphertexts of ML-KEM and pair secret with its commitment.

    Args:
        is_hybrid: Whether the session is one of suite 2.
        hands_over: Whether the packet goes to a higher index.
    """
    handed_over = (KEM_CIPHERTEXT_BYTES, SECRET_BYTES, SECRET_BYTES) if is_hybrid and hands_over else (0, 0, 0)
    return (NONCE_BYTES, CIPHERTEXT_BYTES, KEM_CIPHERTEXT_BYTES if is_hybrid else 0, *handed_over)
