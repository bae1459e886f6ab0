"""Audit mode: clients sign their masked vectors, what they sign is bound to everything it must be, and nothing is signed without it."""

import hashlib
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.errors import AbortCode
from privacy.secagg.audit import SignedUpload, UploadTerms
from privacy.secagg.client import ClientState
from privacy.secagg.session import SessionParameters
from tests.privacy.secagg.hostile import Told, refused, session_of, told
from tests.privacy.secagg.sessions import Memory, play

TERMS = UploadTerms(b"parameters", b"\x44" * 32, b"\x22" * 32, b"\x1f", 1000)
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC_KEY = KEY.public_key().public_bytes_raw()
SHA256 = b"\x05" * 32


def masked(audit: bool = True) -> Told:
    """Return a session of five whose vectors are masked."""
    at = told(play(5, audit=audit)[0])
    at.deliver()
    return at


def test_statement_is_that_of_its_vector() -> None:
    signature = (
        "a86cc0bc6320b405e7948172e5228f0a9f1bafae2c4e9cb6372d871cd57a2a15"
        "a12471c188da239b50c5ec89bad571815d6ce295b4a8228204dd035eb3328805"
    )
    assert TERMS.sign(KEY, SHA256).hex() == signature
    assert TERMS.is_signed(PUBLIC_KEY, SHA256, bytes.fromhex(signature))


def test_statement_is_bound_to_every_part() -> None:
    signature = TERMS.sign(KEY, SHA256)
    others = [
        replace(TERMS, parameters=b"parameter"),
        replace(TERMS, nonce=bytes(32)),
        replace(TERMS, roster_hash=bytes(32)),
        replace(TERMS, sharers=b"\x0f"),
        replace(TERMS, byte_count=1001),
    ]
    assert not any(other.is_signed(PUBLIC_KEY, SHA256, signature) for other in others)
    assert not TERMS.is_signed(PUBLIC_KEY, bytes(32), signature)
    stranger = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    assert not TERMS.is_signed(stranger, SHA256, signature)


def test_client_keeps_what_it_signs_and_the_coordinator_finds_the_same() -> None:
    at = masked()
    client = at.clients[3]
    sha256 = hashlib.sha256(b"vector").digest()
    signature = session_of(client).sign_upload(sha256)
    # A connection that breaks makes it sign the same once more.
    assert session_of(client).sign_upload(sha256) == signature
    [kept, again] = client.journal.signed
    assert kept == again == SignedUpload(kept.terms, sha256, signature)
    assert kept.terms.session_id == at.tale.session_id
    assert kept.terms.byte_count == client.vector.nbytes
    assert kept.terms.sharers == b"\x1f"
    coordinator = at.play.coordinator
    coordinator.freeze()
    for index, shares in at.shares.items():
        coordinator.take_shares(at.clients[index].client_id, shares)
    assert coordinator.upload_terms == kept.terms
    assert kept.terms.is_signed(coordinator.public_keys[client.client_id], sha256, signature)


def test_nothing_is_signed_without_audit() -> None:
    client = masked(audit=False).clients[0]
    assert session_of(client).sign_upload(SHA256) == b""
    assert client.journal.signed == []


def test_nothing_is_signed_before_the_vector_is_masked() -> None:
    victim = session_of(told(play(5, audit=True)[0]).clients[0])
    refused(victim, lambda: victim.sign_upload(SHA256), AbortCode.MALFORMED, "got one for masked while shared")


def test_nothing_is_signed_that_cannot_be_kept() -> None:
    class Full(Memory):
        def note_upload(self, parameters: SessionParameters, upload: SignedUpload) -> None:
            raise OSError("No space left on device")

    victim = session_of(masked().clients[0])
    victim._journal = Full()
    with pytest.raises(OSError, match="No space left"):
        victim.sign_upload(SHA256)
    assert victim.state is ClientState.MASKED
