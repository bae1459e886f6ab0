"""What the officer does, offline: keeps the enrolment key, certifies clients and signs the roster that lists them."""

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from privacy.enrolment import (
    EnrolledClient,
    Enrolment,
    certificate_digest,
    read_enrolment,
    roster_bytes,
    roster_digest,
    today_in_utc,
)
from privacy.errors import EnrolmentError
from privacy.files import write_file
from privacy.keys import make_key, read_key
from wire.validation import explain

ID_LENGTH = 8
"""Fewest digits by which a client's identity is named."""


class Office:
    """The officer's folder: the enrolment key and the roster. Each change is signed and on the disk when its method returns."""

    def __init__(self, folder: Path, passphrase: str = "") -> None:
        self._folder = folder
        self._passphrase = passphrase
        self.key_path = folder / "enrolment.pem"
        self.roster_path = folder / "roster.json"

    def begin(self, federation: str) -> Enrolment:
        """Make the enrolment key and a roster without clients.

        Raises:
            EnrolmentError: There is a roster already, the name breaks a rule, or the folder cannot be written. No file was changed.
            IdentityError: There is a key already, or it cannot be written. No file was changed.
        """
        # Before a key is made that would be of no use.
        sign_enrolment(Ed25519PrivateKey.generate(), federation, 1, "", [])
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EnrolmentError(f"Folder {self._folder}: must be writable, got: {error.strerror}.") from error
        with self._held():
            if self.roster_path.exists():
                raise EnrolmentError(
                    f"Roster {self.roster_path}: must not exist yet, and it does. Take another folder."
                )
            make_key(self.key_path, self._passphrase)
            roster = sign_enrolment(read_key(self.key_path, self._passphrase), federation, 1, "", [])
            try:
                self._write(roster)
            except EnrolmentError:
                self.key_path.unlink()
                raise
        return roster

    def roster(self) -> Enrolment:
        """Return the roster. Raises `EnrolmentError` when it cannot be used."""
        return read_enrolment(self.roster_path)

    def add(self, name: str, public_key: str, until: date | None = None) -> EnrolledClient:
        """Enrol a client, or set anew until when one that has this name and key may take part; return its entry.

        Raises:
            EnrolmentError: A value breaks a rule, or the key was revoked. No file was changed.
            IdentityError: The enrolment key cannot be used. No file was changed.
        """
        if not re.fullmatch("[0-9a-f]{64}", public_key):
            raise EnrolmentError(
                f"Client {name!r}: public key must be 64 lower-case hexadecimal digits, got {public_key[:80]!r}. "
                "The client prints it with: choral enroll key"
            )
        if until is not None and until < today_in_utc():
            raise EnrolmentError(f"Client {name!r}: last day must not have passed, got {until}.")

        def added(key: Ed25519PrivateKey, roster: Enrolment) -> Enrolment:
            client = certify(key, roster.federation, name, bytes.fromhex(public_key), until)
            others = []
            for other in roster.clients:
                if other.public_key == public_key and other.revoked:
                    raise EnrolmentError(
                        f"Client {name!r}: public key must not have been revoked, got that of {other.name!r}, which was. "
                        "Let the client remove its identity.pem, which gives it a new key."
                    )
                if (other.name, other.public_key) != (name, public_key):
                    others.append(other)
            return _next(key, roster, [*others, client])

        return self._change(added).clients[-1]

    def set_coordinator(self, public_key: str) -> Enrolment:
        """Name the key with which the coordinator signs.

        Raises:
            EnrolmentError: It is no public key, or somebody else's. No file was changed.
            IdentityError: The enrolment key cannot be used. No file was changed.
        """
        return self._change(lambda key, roster: _next(key, roster, roster.clients, public_key))

    def revoke(self, name_or_id: str) -> EnrolledClient:
        """Revoke a client for ever; return its entry.

        Args:
            name_or_id: Its name, or the beginning of its identity, 8 digits or more.

        Raises:
            EnrolmentError: No client, or more than one, has that name or identity. No file was changed.
            IdentityError: The enrolment key cannot be used. No file was changed.
        """
        found: list[EnrolledClient] = []

        def revoked(key: Ed25519PrivateKey, roster: Enrolment) -> Enrolment:
            found.append(_find(roster, name_or_id).model_copy(update={"revoked": True}))
            clients = [found[0] if client.public_key == found[0].public_key else client for client in roster.clients]
            return _next(key, roster, clients)

        self._change(revoked)
        return found[0]

    def _change(self, change: Callable[[Ed25519PrivateKey, Enrolment], Enrolment]) -> Enrolment:
        with self._held():
            roster = self.roster()
            key = read_key(self.key_path, self._passphrase)
            if key.public_key().public_bytes_raw().hex() != roster.enrolment_key:
                raise EnrolmentError(
                    f"Roster {self.roster_path}: enrolment_key must be that of {self.key_path}, got {roster.enrolment_key}."
                )
            changed = change(key, roster)
            self._write(changed)
        return changed

    def _write(self, roster: Enrolment) -> None:
        try:
            write_file(self.roster_path, roster_bytes(roster), 0o644)
        except OSError as error:
            raise EnrolmentError(f"Roster {self.roster_path}: must be writable, got: {error.strerror}.") from error

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """Keep other processes from changing the folder, so that no change is lost."""
        try:
            descriptor = os.open(self._folder, os.O_RDONLY)
        except OSError as error:
            raise EnrolmentError(
                f"Folder {self._folder}: must be the officer's, got: {error.strerror}. It is made with: choral enroll init"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError as error:
            raise EnrolmentError(
                f"Folder {self._folder}: must be changed by one process at a time, got another one. Try again."
            ) from error
        finally:
            os.close(descriptor)


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


def _next(
    key: Ed25519PrivateKey, roster: Enrolment, clients: Sequence[EnrolledClient], coordinator_key: str | None = None
) -> Enrolment:
    """Return the roster that follows one."""
    coordinator_key = roster.coordinator_key if coordinator_key is None else coordinator_key
    return sign_enrolment(key, roster.federation, roster.epoch + 1, coordinator_key, clients)


def _find(roster: Enrolment, name_or_id: str) -> EnrolledClient:
    found = [client for client in roster.clients if client.name == name_or_id and not client.revoked]
    if not found and len(name_or_id) >= ID_LENGTH:
        found = [client for client in roster.clients if client.client_id.startswith(name_or_id)]
    if len(found) != 1 or found[0].revoked:
        got = "one that is revoked already" if len(found) == 1 else f"{len(found)} that match"
        raise EnrolmentError(
            f"Client {name_or_id!r}: must be the name of one client or at least {ID_LENGTH} digits of its identity, got {got}. "
            "See: choral enroll list"
        )
    return found[0]
