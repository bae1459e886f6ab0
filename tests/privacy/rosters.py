"""Rosters for tests, signed with a key that every test knows, and what can be wrong with one."""

import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.enrolment import EnrolledClient, Enrolment, roster_bytes
from privacy.files import write_file
from privacy.officer import certify, sign_enrolment

OFFICER = Ed25519PrivateKey.from_private_bytes(bytes([9] * 32))
STRANGER = Ed25519PrivateKey.from_private_bytes(bytes([8] * 32))
PAST = date(2020, 2, 29)


def key_of(seed: int) -> Ed25519PrivateKey:
    """Return the same key for the same seed, 0 to 255."""
    return Ed25519PrivateKey.from_private_bytes(bytes([seed] * 32))


def public(key: Ed25519PrivateKey) -> bytes:
    """Return the public half, 32 bytes."""
    return key.public_key().public_bytes_raw()


def entry(name: str, key: Ed25519PrivateKey, not_after: date | None = None, revoked: bool = False) -> EnrolledClient:
    """Return a client of the federation "lakes", certified by the officer."""
    client = certify(OFFICER, "lakes", name, public(key), not_after)
    return client.model_copy(update={"revoked": revoked})


def roster(*clients: EnrolledClient, epoch: int = 1, coordinator_key: str = "") -> Enrolment:
    """Return a roster of the federation "lakes", signed by the officer."""
    return sign_enrolment(OFFICER, "lakes", epoch, coordinator_key, clients)


def write_roster(path: Path, enrolment: Enrolment) -> Path:
    """Put a roster in the place of the file that is there."""
    write_file(path, roster_bytes(enrolment), 0o644)
    return path


def document_of(enrolment: Enrolment) -> dict[str, Any]:
    """Return a roster as plain values."""
    return dict(json.loads(roster_bytes(enrolment)))


def write_document(path: Path, document: Mapping[str, Any]) -> Path:
    """Write plain values as JSON."""
    path.write_text(json.dumps(document))
    return path
