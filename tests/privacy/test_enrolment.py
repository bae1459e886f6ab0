"""The roster: what its signatures cover, who may take part, and what a file that changes under a process can do."""

import hashlib
import json
import logging
import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.enrolment import (
    EnrolledClient,
    Enrolment,
    EnrolmentFile,
    is_certificate_valid,
    read_enrolment,
    roster_bytes,
)
from privacy.errors import EnrolmentError
from privacy.officer import certify, sign_enrolment
from tests.privacy.rosters import (
    OFFICER,
    PAST,
    STRANGER,
    document_of,
    entry,
    key_of,
    public,
    roster,
    write_document,
    write_roster,
)
from wire.identity import client_id_of, labelled_hash

KEYS = "enrolment, coordinator and clients must each have a key of their own"
ANA, BEN, EVE = key_of(1), key_of(2), key_of(3)
GOOD = roster(entry("ana", ANA), entry("ben", BEN, date(2030, 1, 31)), epoch=4, coordinator_key=public(key_of(7)).hex())


# --- What is signed ---


def test_certificate_signs_the_documented_bytes() -> None:
    parts = [b"choral/secagg/1/cert", b"lakes", public(ANA)]
    data = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    certificate = bytes.fromhex(GOOD.clients[0].certificate)
    OFFICER.public_key().verify(certificate, hashlib.sha256(data).digest())


def test_signature_signs_the_canonical_json_of_all_the_rest() -> None:
    document = document_of(GOOD)
    signature = bytes.fromhex(document.pop("signature"))
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    OFFICER.public_key().verify(signature, labelled_hash("choral/secagg/1/enrolment", canonical))


@pytest.mark.parametrize(
    ("enrolment_key", "federation", "public_key", "certificate"),
    [
        pytest.param(public(STRANGER), "lakes", public(ANA), None, id="other-enrolment-key"),
        pytest.param(public(OFFICER), "rivers", public(ANA), None, id="other-federation"),
        pytest.param(public(OFFICER), "lakes", public(EVE), None, id="other-client"),
        pytest.param(public(OFFICER), "lakes", public(ANA), bytes(64), id="no-signature"),
        pytest.param(public(OFFICER), "lakes", public(ANA), b"", id="empty"),
        pytest.param(b"", "lakes", public(ANA), None, id="no-key"),
    ],
)
def test_certificate_of_anything_else_is_not_valid(
    enrolment_key: bytes, federation: str, public_key: bytes, certificate: bytes | None
) -> None:
    right = bytes.fromhex(GOOD.clients[0].certificate)
    assert is_certificate_valid(public(OFFICER), "lakes", public(ANA), right)
    assert not is_certificate_valid(
        enrolment_key, federation, public_key, right if certificate is None else certificate
    )


# --- Reading ---


def test_read_enrolment_returns_what_was_signed(tmp_path: Path) -> None:
    assert read_enrolment(write_roster(tmp_path / "roster.json", GOOD)) == GOOD


def test_read_enrolment_does_not_mind_how_the_json_is_laid_out(tmp_path: Path) -> None:
    document = dict(reversed(document_of(GOOD).items()))
    assert read_enrolment(write_document(tmp_path / "roster.json", document)) == GOOD


def replace(document: dict[str, Any], *path: str | int, value: Any) -> None:
    *parents, last = path
    target: Any = document
    for step in parents:
        target = target[step]
    target[last] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("federation",), "rivers"),
        (("epoch",), 5),
        (("coordinator_key",), public(EVE).hex()),
        (("coordinator_key",), ""),
        (("clients", 0, "name"), "eve"),
        (("clients", 0, "public_key"), public(EVE).hex()),
        (("clients", 1, "not_after"), "2040-01-31"),
        (("clients", 1, "not_after"), None),
        (("clients", 0, "revoked"), True),
        (("clients",), []),
        (("enrolment_key",), public(STRANGER).hex()),
        (("signature",), "0" * 128),
    ],
)
def test_read_enrolment_tampered_roster_is_refused(tmp_path: Path, path: tuple[str | int, ...], value: Any) -> None:
    document = document_of(GOOD)
    replace(document, *path, value=value)
    file = write_document(tmp_path / "roster.json", document)
    with pytest.raises(EnrolmentError, match=rf"^Roster {file}: signature must be that of enrolment_key over this"):
        read_enrolment(file)


def test_read_enrolment_foreign_certificate_is_refused_although_the_roster_is_signed(tmp_path: Path) -> None:
    foreign = certify(STRANGER, "lakes", "eve", public(EVE))
    with pytest.raises(EnrolmentError, match=r"^Roster: clients\.1\.certificate must be the signature of enrol.*'eve'"):
        roster(entry("ana", ANA), foreign)


def test_read_enrolment_certificate_of_another_federation_is_refused() -> None:
    with pytest.raises(EnrolmentError, match=r"clients\.0\.certificate must be .* in 'lakes', got"):
        roster(certify(OFFICER, "rivers", "ana", public(ANA)))


@pytest.mark.parametrize(
    ("path", "value", "rule"),
    [
        pytest.param(("federation",), "", "federation must have at least 1 character", id="no-name"),
        pytest.param(("federation",), "a\nb", r"federation: must be printable, got 'a\\nb'", id="two-lines"),
        pytest.param(("epoch",), 0, "epoch must be greater than or equal to 1, got 0", id="epoch"),
        pytest.param(("epoch",), "4", "epoch must be a valid integer, got '4'", id="epoch-text"),
        pytest.param(("enrolment_key",), "AB" * 32, "enrolment_key must match pattern .*, got 'ABAB", id="upper-case"),
        pytest.param(("coordinator_key",), "ab", "coordinator_key must match pattern .*, got 'ab'", id="coordinator"),
        pytest.param(("clients", 0, "public_key"), "ab", r"clients\.0\.public_key must match pattern", id="short"),
        pytest.param(("clients", 0, "not_after"), "soon", r"clients\.0\.not_after must be a valid date", id="date"),
        pytest.param(("clients", 0, "not_after"), 5, r"clients\.0\.not_after must be a valid date", id="number"),
        pytest.param(("clients", 0, "revoked"), "no", r"clients\.0\.revoked must be a valid boolean", id="boolean"),
        pytest.param(("colour",), "red", "colour is not a key that exists here", id="unknown"),
    ],
)
def test_read_enrolment_value_that_breaks_a_rule_is_named(
    tmp_path: Path, path: tuple[str | int, ...], value: Any, rule: str
) -> None:
    document = document_of(GOOD)
    replace(document, *path, value=value)
    file = write_document(tmp_path / "roster.json", document)
    with pytest.raises(EnrolmentError, match=rf"^Roster {file}: .*({rule})"):
        read_enrolment(file)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, roster_bytes(GOOD)[:-40]])
def test_read_enrolment_file_that_is_no_json_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "roster.json"
    file.write_bytes(content)
    with pytest.raises(EnrolmentError, match=rf"^Roster {file}: must be JSON, got: .+\.$"):
        read_enrolment(file)


def test_read_enrolment_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EnrolmentError, match=r"none\.json: must be a readable file, got: No such file or directory\.$"):
        read_enrolment(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("second", "rule"),
    [
        pytest.param(entry("eve", ANA), f"{KEYS}, got '{public(ANA).hex()}' twice", id="key"),
        pytest.param(entry("eve", ANA, revoked=True), f"{KEYS}, got '{public(ANA).hex()}' twice", id="key-revoked"),
        pytest.param(entry("eve", OFFICER), f"{KEYS}, got '{public(OFFICER).hex()}' twice", id="key-of-enrolment"),
        pytest.param(entry("ana", BEN), "clients must each have a name of their own, got 'ana' twice", id="name"),
    ],
)
def test_enrolment_client_twice_is_refused(second: EnrolledClient, rule: str) -> None:
    with pytest.raises(EnrolmentError, match=f"^Roster: {rule}"):
        roster(entry("ana", ANA), second)


@pytest.mark.parametrize("key", [OFFICER, ANA])
def test_enrolment_coordinator_with_the_key_of_another_is_refused(key: Ed25519PrivateKey) -> None:
    with pytest.raises(EnrolmentError, match=f"^Roster: {KEYS}, got '{public(key).hex()}' twice"):
        roster(entry("ana", ANA), coordinator_key=public(key).hex())


def test_enrolment_revoked_client_leaves_its_name_to_its_next_key() -> None:
    enrolment = roster(entry("ana", ANA, revoked=True), entry("ana", BEN))
    assert enrolment.certificate_of(public(ANA)) is None
    assert enrolment.certificate_of(public(BEN)) is not None


# --- Who may take part ---


def test_certificate_of_valid_client_is_its_certificate() -> None:
    certificate = GOOD.certificate_of(public(ANA))
    assert certificate == bytes.fromhex(GOOD.clients[0].certificate)
    assert GOOD.problem_with(public(ANA)) == ""


@pytest.mark.parametrize(
    ("key", "standing"),
    [
        pytest.param(EVE, "not listed", id="not-listed"),
        pytest.param(BEN, "revoked", id="revoked"),
        pytest.param(key_of(4), "expired on 2020-02-29", id="expired"),
        pytest.param(key_of(5), "revoked", id="revoked-and-expired"),
    ],
)
def test_certificate_of_any_other_is_none_and_the_problem_says_why(key: Any, standing: str) -> None:
    enrolment = roster(
        entry("ana", ANA),
        entry("ben", BEN, revoked=True),
        entry("old", key_of(4), PAST),
        entry("older", key_of(5), PAST, revoked=True),
    )
    assert enrolment.certificate_of(public(key)) is None
    identity = client_id_of(public(key))
    sentence = f"client {identity} must be enrolled in 'lakes', got one that is {standing}"
    assert enrolment.problem_with(public(key)) == sentence


def test_certificate_of_client_is_valid_through_its_last_day() -> None:
    last = date(2030, 1, 31)
    assert GOOD.certificate_of(public(BEN), last) is not None
    assert GOOD.certificate_of(public(BEN), last + timedelta(days=1)) is None
    assert GOOD.problem_with(public(BEN), last) == ""
    assert GOOD.problem_with(public(BEN), last + timedelta(days=1)).endswith("expired on 2030-01-31")


def test_certificate_of_goes_by_the_day_in_utc() -> None:
    today = datetime.now(UTC).date()
    enrolment = roster(entry("ana", ANA, today + timedelta(days=1)), entry("ben", BEN, today - timedelta(days=1)))
    assert enrolment.certificate_of(public(ANA)) is not None
    assert enrolment.certificate_of(public(BEN)) is None


@pytest.mark.parametrize("key", [b"", b"short", bytes(33)])
def test_problem_with_what_is_no_key_is_that_it_is_not_listed(key: bytes) -> None:
    assert GOOD.problem_with(key).endswith("not listed")
    assert GOOD.certificate_of(key) is None


# --- Its successor ---


@pytest.mark.parametrize(
    ("newer", "problem"),
    [
        pytest.param(roster(epoch=3), "epoch must be at least 4, which was seen before, got 3", id="older"),
        pytest.param(roster(epoch=4), "epoch must grow with each change, got 4 for two rosters that differ", id="same"),
        pytest.param(
            sign_enrolment(OFFICER, "rivers", 5, "", []), "federation must stay 'lakes', got 'rivers'", id="federation"
        ),
        pytest.param(
            sign_enrolment(STRANGER, "lakes", 5, "", []),
            f"enrolment_key must stay '{public(OFFICER).hex()}', got '{public(STRANGER).hex()}'",
            id="enrolment-key",
        ),
        pytest.param(roster(epoch=5), "", id="newer"),
        pytest.param(read_enrolment, "", id="the-same"),
    ],
)
def test_problem_with_successor(newer: Enrolment | Callable[[Path], Enrolment], problem: str, tmp_path: Path) -> None:
    if not isinstance(newer, Enrolment):
        newer = newer(write_roster(tmp_path / "roster.json", GOOD))
    assert GOOD.problem_with_successor(newer) == problem


# --- A file that changes ---


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_roster(tmp_path / "roster.json", GOOD)


def test_file_change_is_seen(file: Path) -> None:
    enrolment = EnrolmentFile(file)
    assert enrolment.latest() == GOOD
    newer = roster(entry("ana", ANA, revoked=True), epoch=5)
    write_roster(file, newer)
    assert enrolment.latest() == newer


def test_file_that_has_not_changed_is_not_read_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enrolment = EnrolmentFile(file)

    def fail(path: Path) -> Enrolment:
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr("privacy.enrolment.read_enrolment", fail)
    assert enrolment.latest() is enrolment.latest()


def break_it(file: Path) -> None:
    file.write_bytes(roster_bytes(GOOD)[:-40])


def remove_it(file: Path) -> None:
    file.unlink()


def open_it_to_all(file: Path) -> None:
    document = document_of(roster(entry("ana", ANA), epoch=9))
    document["clients"][0]["revoked"] = False
    document["clients"].append(json.loads(entry("eve", EVE).model_dump_json()))
    write_document(file, document)


def roll_it_back(file: Path) -> None:
    write_roster(file, roster(entry("ana", ANA), entry("eve", EVE), epoch=3))


def forge_it(file: Path) -> None:
    stranger = sign_enrolment(STRANGER, "lakes", 9, "", [certify(STRANGER, "lakes", "eve", public(EVE))])
    write_roster(file, stranger)


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        (break_it, "must be JSON"),
        (remove_it, "must be a readable file"),
        (open_it_to_all, "signature must be that of enrolment_key"),
        (roll_it_back, "epoch must be at least 4"),
        (forge_it, "enrolment_key must stay"),
    ],
)
def test_file_that_cannot_be_used_leaves_the_last_good_roster_in_force_and_is_told_once(
    file: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None], rule: str
) -> None:
    enrolment = EnrolmentFile(file)
    spoil(file)
    for _ in range(3):
        assert enrolment.latest() == GOOD
    [warning] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert re.match(rf"^Roster {file}: {rule}.* The roster of epoch 4 stays in force\.$", warning.getMessage())
    newer = roster(entry("ana", ANA), epoch=5)
    write_roster(file, newer)
    assert enrolment.latest() == newer


def test_file_kept_copy_refuses_an_older_roster_after_a_restart(file: Path, tmp_path: Path) -> None:
    kept = tmp_path / "state" / "enrolment.json"
    EnrolmentFile(file, kept)
    assert read_enrolment(kept) == GOOD
    assert kept.stat().st_mode & 0o777 == 0o644
    roll_it_back(file)
    rule = rf"^Roster {file}: epoch must be at least 4, .* got 3\. Take the newest .* is meant, remove {kept}\.$"
    with pytest.raises(EnrolmentError, match=rule):
        EnrolmentFile(file, kept)
    assert read_enrolment(kept) == GOOD


def test_file_kept_copy_follows_the_newest_roster(file: Path, tmp_path: Path) -> None:
    kept = tmp_path / "enrolment.json"
    enrolment = EnrolmentFile(file, kept)
    newer = roster(entry("ana", ANA), epoch=5)
    write_roster(file, newer)
    enrolment.latest()
    assert read_enrolment(kept) == newer
    write_roster(file, GOOD)
    with pytest.raises(EnrolmentError, match="epoch must be at least 5"):
        EnrolmentFile(file, kept)


def test_file_new_roster_is_in_force_although_its_copy_cannot_be_kept(
    file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = tmp_path / "state" / "enrolment.json"
    enrolment = EnrolmentFile(file, kept)
    kept.unlink()
    kept.parent.rmdir()
    kept.parent.write_text("in the way")
    newer = roster(entry("ana", ANA, revoked=True), epoch=5)
    write_roster(file, newer)
    assert enrolment.latest() == newer
    assert any(f"Roster {kept}: must be writable, got: " in text for text in caplog.messages)
