"""Masks: streams of ring elements that are added to a vector by one party and taken away by another.

A mask is the keystream of AES-256 in counter mode, or of ChaCha20, under a key of its own, read as little-endian ring elements; its
element j masks element j of the vector. The sum of many masks is made chunk by chunk, all masks for one chunk before the next: the
chunk stays in the core's cache, and no memory grows with the number of masks.

Source: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017, section 4 and figure 4.
https://eprint.iacr.org/2017/281
ChaCha20: Nir and Langley, RFC 8439, 2018. https://www.rfc-editor.org/rfc/rfc8439
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from privacy.secagg.labels import derive_key

RingVector: TypeAlias = npt.NDArray[np.unsignedinteger[Any]]

RING_TYPES: dict[int, np.dtype[np.unsignedinteger[Any]]] = {
    16: np.dtype("<u2"),
    32: np.dtype("<u4"),
    64: np.dtype("<u8"),
}
"""Type of a ring's elements by its bits. Sums wrap around, as the ring's do."""

StreamCipher: TypeAlias = Literal["aes256", "chacha20"]
"""AES-256 in counter mode, or ChaCha20, as a run spec names them."""

CHUNK_BYTES = 256 << 10
_ZEROS = bytes(CHUNK_BYTES)


@dataclass(frozen=True, slots=True)
class Mask:
    """One mask: its key, 32 bytes, and whether it is taken away where it would be added."""

    key: bytes = field(repr=False)
    is_negative: bool = False


def keystream(key: bytes, cipher: StreamCipher = "aes256") -> CipherContext:
    """Return a cipher from counter 0 with a nonce of zeros, for a key is used once: what it makes of zeros is the stream."""
    if cipher == "chacha20":
        return Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    return Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()


def add_masks(vector: RingVector, masks: Iterable[Mask], cipher: StreamCipher = "aes256") -> None:
    """Add masks to a vector in place, modulo the ring's size.

    Args:
        vector: Ring elements, contiguous, of a type of `RING_TYPES`.
        masks: Any number; each adds its stream, or subtracts it.
        cipher: What makes the streams.
    """
    streams = [(keystream(mask.key, cipher), np.subtract if mask.is_negative else np.add) for mask in masks]
    buffer = np.empty(CHUNK_BYTES, dtype=np.uint8)
    step = CHUNK_BYTES // vector.itemsize
    for start in range(0, len(vector), step):
        part = vector[start : start + step]
        zeros, out = _ZEROS[: part.nbytes], buffer[: part.nbytes]
        words = out.view(vector.dtype)
        for stream, add in streams:
            stream.update_into(zeros, out.data)
            add(part, words, out=part)


def self_mask(seed: bytes, session_id: bytes, roster_hash: bytes, client_id: bytes) -> Mask:
    """Return the mask that a client's own seed b makes, 32 bytes."""
    return Mask(derive_key(seed, session_id, "self-mask", roster_hash, client_id))


@dataclass(frozen=True, slots=True)
class Peer:
    """A member of a session as its masks see it: its place in the roster, its identity (16 bytes) and its mask key (32 bytes)."""

    index: int
    client_id: bytes
    mask_public_key: bytes


def pair_mask(secret: X25519PrivateKey, own: Peer, other: Peer, session_id: bytes, roster_hash: bytes) -> Mask:
    """Return the mask that two clients share, as the one whose `secret` this is adds it: the lower index adds, the higher subtracts.

    Raises:
        ValueError: The other's mask key is no key that can be agreed with.
    """
    shared = secret.exchange(X25519PublicKey.from_public_bytes(other.mask_public_key))
    low, high = sorted((own, other), key=lambda peer: peer.index)
    key = derive_key(shared, session_id, "pair-mask", roster_hash, low.client_id, high.client_id)
    return Mask(key, is_negative=own.index > other.index)
