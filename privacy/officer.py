"""What the officer signs, offline: certificates of clients, and the roster that lists them."""

import json
from collections.abc import Sequence
from datetime import date
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from privacy.enrolment import EnrolledClient, Enrolment, certificate_digest, roster_digest
from privacy.errors import EnrolmentError
from wire.validation import explain


def certify(
    key: Ed25519PrivateKey, federation: str, name: str, public_key: bytes, not_after: date | None = None
) -> EnrolledClient:
    """Return a client's entry with a new certificate.

    Args:
        key: The enrolment key.
        federation: Its name.
        name: The client's, 1 to 64 printable characters.
        public_key: The client's, Ed25519, 32 bytes.
        not_after: Last day, in UTC, on which it may take part.

    Raises:
        EnrolmentError: A value breaks a rule.
    """
    certificate = key.sign(certificate_digest(federation, public_key))
    entry = {"name": name, "public_key": public_key.hex(), "certificate": certificate.hex()}
    try:
        return EnrolledClient.model_validate({**entry, "not_after": not_after, "revoked": False})
    except ValidationError as error:
        raise EnrolmentError(explain(error, f"Client {name!r}")) from error


def sign_enrolment(
    key: Ed25519PrivateKey, federation: str, epoch: int, coordinator_key: str, clients: Sequence[EnrolledClient]
) -> Enrolment:
    """Return a roster, signed.

    Args:
        key: The enrolment key.
        federation: Its name.
        epoch: Above that of every roster before, 1 or more.
        coordinator_key: Ed25519 public key in hexadecimal, or empty.
        clients: In the order in which they are listed.

    Raises:
        EnrolmentError: A value breaks a rule.
    """
    content: dict[str, Any] = {
        "federation": federation,
        "epoch": epoch,
        "enrolment_key": key.public_key().public_bytes_raw().hex(),
        "coordinator_key": coordinator_key,
        "clients": [client.model_dump(mode="json") for client in clients],
    }
    signature = key.sign(roster_digest(content)).hex()
    try:
        return Enrolment.model_validate_json(json.dumps({**content, "signature": signature}))
    except ValidationError as error:
        raise EnrolmentError(explain(error, "Roster")) from error
