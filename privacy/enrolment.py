"""Who may take part in a federation: a roster that is signed offline, with an enrolment key that is not the coordinator's.

The officer who holds the enrolment key certifies each client's key. Coordinator and clients hold the roster as a file and believe nothing
but its signatures, so a coordinator that lies can neither invent a client nor pass one off as another.

Source: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017, figure 4 (the signatures against
an active server). https://eprint.iacr.org/2017/281
"""

import json
import logging
import threading
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, date, datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import AfterValidator, Field, StringConstraints, ValidationError, model_validator

from privacy.errors import EnrolmentError
from privacy.files import write_file
from wire.identity import client_id_of, labelled_hash
from wire.validation import Strict, explain

log = logging.getLogger(__name__)


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"must be printable, got {text!r}")
    return text


Name = Annotated[str, StringConstraints(min_length=1, max_length=64), AfterValidator(_printable)]
"""A name for people, 1 to 64 printable characters."""

PublicKey = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""An Ed25519 public key, 32 bytes in lower-case hexadecimal."""

Signature = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{128}$")]
"""An Ed25519 signature, 64 bytes in lower-case hexadecimal."""


class EnrolledClient(Strict):
    """One client, as the officer certified it."""

    name: Name
    """Unique among the clients that are not revoked."""
    public_key: PublicKey
    certificate: Signature
    """The enrolment key's signature over federation and public key."""
    not_after: date | None
    """Last day, in UTC, on which the client may take part; None for no such day."""
    revoked: bool
    """Stays in the roster for ever, so that the key cannot be enrolled again."""

    @property
    def client_id(self) -> str:
        """Identity that follows from the key."""
        return client_id_of(bytes.fromhex(self.public_key))

    def standing(self, today: date) -> str:
        """Return why the client may not take part, such as "revoked", or nothing."""
        if self.revoked:
            return "revoked"
        if self.not_after is not None and today > self.not_after:
            return f"expired on {self.not_after}"
        return ""


class Enrolment(Strict):
    """A roster. One that exists is signed: its signature and every certificate are checked when it is made."""

    federation: Name
    epoch: int = Field(ge=1)
    """Grows with each change; an older roster is refused by who has seen a newer one."""
    enrolment_key: PublicKey
    coordinator_key: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?$")]
    """With what the coordinator signs; empty as long as it is not known."""
    clients: tuple[EnrolledClient, ...]
    signature: Signature
    """The enrolment key's, over the canonical JSON of all the rest."""

    @model_validator(mode="after")
    def _check(self) -> "Enrolment":
        key = bytes.fromhex(self.enrolment_key)
        content = self.model_dump(mode="json", exclude={"signature"})
        if not _is_signed(key, bytes.fromhex(self.signature), roster_digest(content)):
            raise ValueError(f"signature must be that of enrolment_key over this roster, got {self.signature[:16]}...")
        for place, client in enumerate(self.clients):
            certificate = bytes.fromhex(client.certificate)
            if not is_certificate_valid(key, self.federation, bytes.fromhex(client.public_key), certificate):
                raise ValueError(
                    f"clients.{place}.certificate must be the signature of enrolment_key over {client.name!r}'s key "
                    f"in {self.federation!r}, got {client.certificate[:16]}..."
                )
        keys = [self.enrolment_key, self.coordinator_key, *(client.public_key for client in self.clients)]
        _refuse_twice("enrolment, coordinator and clients must each have a key", filter(None, keys))
        _refuse_twice("clients must each have a name", (client.name for client in self.clients if not client.revoked))
        return self

    def certificate_of(self, public_key: bytes, today: date | None = None) -> bytes | None:
        """Return the certificate of a client that may take part, 64 bytes; None for any other.

        Args:
            public_key: Ed25519, 32 bytes.
            today: The day in UTC, if not that of the clock.
        """
        client = self._clients_by_id.get(client_id_of(public_key))
        if client is None or client.standing(today or today_in_utc()):
            return None
        return bytes.fromhex(client.certificate)

    def problem_with(self, public_key: bytes, today: date | None = None) -> str:
        """Return why the holder of a key may not take part, in one sentence without a full stop; empty when it may.

        Args:
            public_key: Ed25519, 32 bytes.
            today: The day in UTC, if not that of the clock.
        """
        return self.problem_with_id(client_id_of(public_key), today)

    def problem_with_id(self, client_id: str, today: date | None = None) -> str:
        """Return what `problem_with` does, for a client of whom only the identity is known."""
        client = self._clients_by_id.get(client_id)
        standing = "not listed" if client is None else client.standing(today or today_in_utc())
        if not standing:
            return ""
        return f"client {client_id} must be enrolled in {self.federation!r}, got one that is {standing}"

    def problem_with_certificate(self, public_key: bytes, certificate: bytes) -> str:
        """Return what `problem_with` does, and why a certificate that the client shows is not the one that it was given."""
        if problem := self.problem_with(public_key):
            return problem
        return "" if certificate == self.certificate_of(public_key) else "its certificate must be that of the roster"

    def problem_with_successor(self, newer: "Enrolment") -> str:
        """Return why a roster must not take this one's place, in one sentence without a full stop; empty when it may."""
        for field in ("federation", "enrolment_key"):
            if (expected := getattr(self, field)) != (got := getattr(newer, field)):
                return f"{field} must stay {expected!r}, got {got!r}"
        if newer.epoch < self.epoch:
            return f"epoch must be at least {self.epoch}, which was seen before, got {newer.epoch}"
        if newer.epoch == self.epoch and newer != self:
            return f"epoch must grow with each change, got {newer.epoch} for two rosters that differ"
        return ""

    @cached_property
    def _clients_by_id(self) -> dict[str, EnrolledClient]:
        return {client.client_id: client for client in self.clients}


def read_enrolment(path: Path) -> Enrolment:
    """Read a roster and check every signature in it.

    Raises:
        EnrolmentError: The file cannot be read, a key breaks a rule, or a signature is not the enrolment key's.
    """
    try:
        return Enrolment.model_validate_json(path.read_bytes())
    except OSError as error:
        raise EnrolmentError(f"Roster {path}: must be a readable file, got: {error.strerror}.") from error
    except ValidationError as error:
        [first, *_] = error.errors(include_url=False)
        if first["type"] == "json_invalid":
            raise EnrolmentError(f"Roster {path}: must be JSON, got: {first['ctx']['error']}.") from error
        raise EnrolmentError(explain(error, f"Roster {path}")) from error


def is_certificate_valid(enrolment_key: bytes, federation: str, public_key: bytes, certificate: bytes) -> bool:
    """Tell whether `certificate` was made with the enrolment key for a client's key in this federation.

    Args:
        enrolment_key: Ed25519, 32 bytes.
        federation: Its name.
        public_key: The client's, Ed25519, 32 bytes.
        certificate: 64 bytes.
    """
    return _is_signed(enrolment_key, certificate, certificate_digest(federation, public_key))


def certificate_digest(federation: str, public_key: bytes) -> bytes:
    """Return what a certificate signs, 32 bytes. `public_key` is the client's, Ed25519, 32 bytes."""
    return labelled_hash("choral/secagg/1/cert", federation.encode(), public_key)


def roster_digest(content: dict[str, Any]) -> bytes:
    """Return what a roster's signature signs, 32 bytes. `content` is the roster without it, as plain values of JSON."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return labelled_hash("choral/secagg/1/enrolment", canonical.encode())


def today_in_utc() -> date:
    """Return the day that it is now, by which enrolments expire."""
    return datetime.now(UTC).date()


def roster_bytes(roster: Enrolment) -> bytes:
    """Return a roster as its file holds it."""
    return f"{roster.model_dump_json(indent=2)}\n".encode()


class EnrolmentFile:
    """Follows a roster's file. A file that cannot be used changes nothing, so that a broken one never lets anybody in.

    May be used from several threads.
    """

    def __init__(self, path: Path, kept: Path | None = None) -> None:
        """Read the roster.

        Args:
            path: Its file, which others may replace at any time.
            kept: Where to keep a copy of the newest roster that was seen, so that an older one is refused after a restart too.

        Raises:
            EnrolmentError: The roster cannot be used, or is older than the kept one.
        """
        self.path = path
        self._kept = kept
        self._lock = threading.Lock()
        self._stamp = _stamp(path)
        self._roster = read_enrolment(path)
        if kept is not None and kept.exists():
            advice = f" Take the newest roster; if this one is meant, remove {kept}."
            self._check(read_enrolment(kept), self._roster, advice)
        self._keep()

    def latest(self) -> Enrolment:
        """Return the newest roster that could be used; reads the file, if it has changed."""
        with self._lock:
            if (stamp := _stamp(self.path)) != self._stamp:
                self._stamp = stamp
                self._read_again()
            return self._roster

    def _read_again(self) -> None:
        try:
            newer = read_enrolment(self.path)
            self._check(self._roster, newer)
        except EnrolmentError as error:
            log.warning("%s The roster of epoch %d stays in force.", error, self._roster.epoch)
            return
        self._roster = newer
        log.info("roster %s: epoch %d is in force, with %d clients", self.path, newer.epoch, len(newer.clients))
        try:
            self._keep()
        except EnrolmentError as error:
            log.warning("%s", error)

    def _check(self, older: Enrolment, newer: Enrolment, advice: str = "") -> None:
        if problem := older.problem_with_successor(newer):
            raise EnrolmentError(f"Roster {self.path}: {problem}.{advice}")

    def _keep(self) -> None:
        if self._kept is None:
            return
        try:
            self._kept.parent.mkdir(parents=True, exist_ok=True)
            write_file(self._kept, roster_bytes(self._roster), 0o644)
        except OSError as error:
            raise EnrolmentError(f"Roster {self._kept}: must be writable, got: {error.strerror}.") from error


def _is_signed(public_key: bytes, signature: bytes, digest: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, digest)
    except (InvalidSignature, ValueError):
        return False
    return True


def _refuse_twice(rule: str, values: Iterable[str]) -> None:
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise ValueError(f"{rule} of their own, got {twice[0]!r} twice")


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Return what tells one state of a file from the next; None when there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
