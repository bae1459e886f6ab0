"""Labelled hashes, keys and signatures: every one is bound to what it is for, and none can be taken for another.

Source: CSA-1 (docs/secure-aggregation.md), section "Encodings"; Krawczyk and Eronen, "HMAC-based Extract-and-Expand Key Derivation Function
(HKDF)", RFC 5869. https://www.rfc-editor.org/rfc/rfc5869
"""

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from wire.identity import labelled_hash

PREFIX = "choral/secagg/1/"


def prefixed(part: bytes) -> bytes:
    """Return LP(part): its length as u64 little-endian, then itself."""
    return len(part).to_bytes(8, "little") + part


def u32(number: int) -> bytes:
    """Return a number as 4 bytes, little-endian."""
    return number.to_bytes(4, "little")


def u64(number: int) -> bytes:
    """Return a number as 8 bytes, little-endian."""
    return number.to_bytes(8, "little")


def hashed(label: str, *parts: bytes) -> bytes:
    """Return H(label, parts), 32 bytes."""
    return labelled_hash(PREFIX + label, *parts)


def derive_key(secret: bytes, session_id: bytes, label: str, *parts: bytes) -> bytes:
    """Return KDF(secret, label, parts) of a session, 32 bytes."""
    info = b"".join(map(prefixed, ((PREFIX + label).encode(), *parts)))
    return HKDF(SHA256(), 32, salt=session_id, info=info).derive(secret)


def sign(key: Ed25519PrivateKey, label: str, *parts: bytes) -> bytes:
    """Return Sig(label, parts), 64 bytes."""
    return key.sign(hashed(label, *parts))


def is_signed(public_key: bytes, signature: bytes, label: str, *parts: bytes) -> bool:
    """Tell whether `signature` over label and parts was made with the key of `public_key`."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, hashed(label, *parts))
    except (InvalidSignature, ValueError):
        return False
    return True
