"""What a client signs of its masked vector in audit mode: whose bytes went into a sum can be told afterwards, by anyone.

A signature is bound to the session, and with it to its parameters, to the roster, to those with whom the client was told to make masks,
and to length and SHA-256 of what it uploads. It says nothing of what is under the masks.

Source: CSA-1 (docs/secure-aggregation.md), section "Audit".
"""

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.secagg.labels import is_signed, sign, u64
from privacy.secagg.session import SessionParameters, session_id_of


@dataclass(frozen=True, slots=True)
class UploadTerms:
    """What all uploads of a session are bound to. Who has them needs nothing else of the session.

    Attributes:
        parameters: Those of the session, as they are signed.
        nonce: The offer's, 32 bytes.
        roster_hash: 32 bytes.
        sharers: Bitmap of those who have shared.
        byte_count: Length of a masked vector.
    """

    parameters: bytes
    nonce: bytes
    roster_hash: bytes
    sharers: bytes
    byte_count: int

    @classmethod
    def of(cls, parameters: SessionParameters, nonce: bytes, roster_hash: bytes, sharers: bytes) -> "UploadTerms":
        """Return what uploads of a session are bound to."""
        return cls(parameters.canon(), nonce, roster_hash, sharers, parameters.byte_count)

    @property
    def session_id(self) -> bytes:
        """The session's id, 32 bytes."""
        return session_id_of(self.parameters, self.nonce)

    def sign(self, key: Ed25519PrivateKey, sha256: bytes) -> bytes:
        """Return a client's signature, 64 bytes, over a masked vector with this SHA-256."""
        return sign(key, "masked", *self._parts(sha256))

    def is_signed(self, public_key: bytes, sha256: bytes, signature: bytes) -> bool:
        """Tell whether the client with this public key has signed a masked vector with this SHA-256."""
        return is_signed(public_key, signature, "masked", *self._parts(sha256))

    def _parts(self, sha256: bytes) -> tuple[bytes, ...]:
        return self.session_id, self.roster_hash, self.sharers, u64(self.byte_count), sha256


@dataclass(frozen=True, slots=True)
class SignedUpload:
    """What one client has signed: the SHA-256 of its masked vector, 32 bytes, and its signature, 64 bytes."""

    terms: UploadTerms
    sha256: bytes
    signature: bytes
