"""Client identities: what a client signs to open a session, and the name that follows from its key.

The labelled, length-prefixed hash is that of the secure aggregation protocol, so that one key serves both.
"""

import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


def labelled_hash(label: str, *parts: bytes) -> bytes:
    """Return SHA-256 over the length-prefixed label and parts, 32 bytes: no two lists of parts share an input."""
    digest = hashlib.sha256()
    for part in (label.encode(), *parts):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


def client_id_of(public_key: bytes) -> str:
    """Return the identity of an Ed25519 public key: 32 lower-case hexadecimal digits."""
    return hashlib.sha256(b"choral/secagg/1/id" + public_key).hexdigest()[:32]


def sign_hello(key: Ed25519PrivateKey, protocol_version: int, nonce: bytes) -> bytes:
    """Return the signature of a Hello, 64 bytes."""
    return key.sign(_hello_digest(protocol_version, nonce, key.public_key().public_bytes_raw()))


def is_hello_signed(public_key: bytes, signature: bytes, protocol_version: int, nonce: bytes) -> bool:
    """Tell whether `signature` over this session's nonce was made with the key of `public_key`."""
    try:
        verifier = Ed25519PublicKey.from_public_bytes(public_key)
        verifier.verify(signature, _hello_digest(protocol_version, nonce, public_key))
    except (InvalidSignature, ValueError):
        return False
    return True


def _hello_digest(protocol_version: int, nonce: bytes, public_key: bytes) -> bytes:
    return labelled_hash("choral/hello/1", protocol_version.to_bytes(4, "little"), nonce, public_key)
