"""The officer's folder: what a change signs, and what it never loses."""

import fcntl
import os
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from privacy.enrolment import today_in_utc
from privacy.errors import EnrolmentError, IdentityError
from privacy.keys import load_identity, read_key
from privacy.officer import Office
from tests.privacy.rosters import OFFICER, STRANGER, key_of, public, roster, write_roster
from wire.errors import ChoralError

ANA, BEN = (public(key_of(seed)).hex() for seed in (1, 2))
COORDINATOR = public(key_of(7)).hex()


@pytest.fixture
def office(tmp_path: Path) -> Office:
    office = Office(tmp_path / "enrolment")
    office.begin("lakes")
    return office


def files(office: Office) -> dict[str, bytes]:
    """Return all that lies in the officer's folder."""
    return {path.name: path.read_bytes() for path in office.key_path.parent.iterdir()}


def test_begin_makes_a_private_key_and_a_public_roster(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        office = Office(tmp_path / "enrolment")
        made = office.begin("lakes")
    finally:
        os.umask(before)
    assert sorted(files(office)) == ["enrolment.pem", "roster.json"]
    assert office.key_path.stat().st_mode & 0o777 == 0o600
    assert office.roster_path.stat().st_mode & 0o777 == 0o644
    assert office.roster() == made
    assert (made.federation, made.epoch, made.coordinator_key, made.clients) == ("lakes", 1, "", ())
    assert made.enrolment_key == public(load_identity(office.key_path)).hex()


@pytest.mark.parametrize("lost", ["roster.json", "enrolment.pem", ""])
def test_begin_where_something_is_overwrites_nothing(office: Office, lost: str) -> None:
    if lost:
        (office.key_path.parent / lost).unlink()
    before = files(office)
    with pytest.raises(ChoralError, match=r"must not exist yet, and it does\."):
        office.begin("lakes")
    assert files(office) == before


def test_begin_name_that_breaks_a_rule_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(EnrolmentError, match=r"^Roster: federation must have at least 1 character, got ''\.$"):
        Office(tmp_path / "enrolment").begin("")
    assert list(tmp_path.iterdir()) == []


def test_changes_are_signed_and_each_raises_the_epoch(office: Office) -> None:
    ana = office.add("ana", ANA)
    assert office.roster().epoch == 2
    assert office.roster().clients == (ana,)
    office.add("ben", BEN, date(2100, 1, 31))
    office.set_coordinator(COORDINATOR)
    office.revoke("ana")
    enrolment = office.roster()
    assert (enrolment.epoch, enrolment.coordinator_key) == (5, COORDINATOR)
    assert [(client.name, client.not_after, client.revoked) for client in enrolment.clients] == [
        ("ana", None, True),
        ("ben", date(2100, 1, 31), False),
    ]
    assert enrolment.certificate_of(bytes.fromhex(ANA)) is None
    assert enrolment.certificate_of(bytes.fromhex(BEN)) is not None
    assert office.roster_path.stat().st_mode & 0o777 == 0o644


def test_add_again_sets_the_last_day_anew(office: Office) -> None:
    first = office.add("ana", ANA, date(2100, 1, 31))
    later = office.add("ana", ANA, date(2101, 1, 31))
    assert later.certificate == first.certificate
    assert office.roster().clients == (later,)


def test_add_new_key_under_the_name_of_a_revoked_client(office: Office) -> None:
    office.add("ana", ANA)
    office.revoke("ana")
    office.add("ana", BEN)
    office.revoke("ana")
    assert [client.revoked for client in office.roster().clients] == [True, True]


YESTERDAY = today_in_utc() - timedelta(days=1)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        pytest.param(
            lambda office: office.add("ben", BEN[:-1]), "^Client 'ben': public key must be 64 lower", id="short"
        ),
        pytest.param(
            lambda office: office.add("ben", BEN.upper()), "public key must be 64 lower-case", id="upper-case"
        ),
        pytest.param(lambda office: office.add("ana", BEN), "must each have a name of their own, got 'ana'", id="name"),
        pytest.param(lambda office: office.add("ben", ANA), "must each have a key of their own", id="key"),
        pytest.param(lambda office: office.add("", BEN), "^Client '': name must have at least 1 char", id="no-name"),
        pytest.param(lambda office: office.add("a\tb", BEN), r"must be printable, got 'a\\tb'", id="tab"),
        pytest.param(lambda office: office.add("ben", BEN, YESTERDAY), "last day must not have passed, got", id="past"),
        pytest.param(
            lambda office: office.add("eve", public(key_of(3)).hex()),
            "'eve': public key must not have been revoked, got that of 'old', which was. Let the client remove its",
            id="revoked",
        ),
        pytest.param(lambda office: office.set_coordinator("ab"), "coordinator_key must match pattern", id="no-key"),
        pytest.param(
            lambda office: office.set_coordinator(ANA), "must each have a key of their own", id="its-client's"
        ),
        pytest.param(
            lambda office: office.revoke("ben"), "'ben': must be the name of one client.*, got 0 ", id="unknown"
        ),
        pytest.param(lambda office: office.revoke(""), "'': must be the name of one client .*, got 0 that", id="empty"),
        pytest.param(
            lambda office: office.revoke(office.roster().clients[0].client_id), "got one that is revoked al", id="twice"
        ),
    ],
)
def test_change_that_breaks_a_rule_changes_nothing(
    office: Office, change: Callable[[Office], object], rule: str
) -> None:
    office.add("old", public(key_of(3)).hex())
    office.revoke("old")
    office.add("ana", ANA)
    before = files(office)
    with pytest.raises(EnrolmentError, match=rule):
        change(office)
    assert files(office) == before


def test_set_coordinator_with_the_enrolment_key_is_refused(office: Office) -> None:
    with pytest.raises(EnrolmentError, match="must each have a key of their own"):
        office.set_coordinator(office.roster().enrolment_key)


def test_revoke_by_identity_takes_eight_digits_or_more(office: Office) -> None:
    client = office.add("ana", ANA)
    with pytest.raises(EnrolmentError, match="got 0 that match"):
        office.revoke(client.client_id[:7])
    assert office.revoke(client.client_id[:8]).revoked
    assert office.roster().clients[0].revoked


def test_change_of_a_tampered_roster_is_refused(office: Office) -> None:
    office.add("ana", ANA)
    text = office.roster_path.read_text().replace('"ana"', '"eve"')
    office.roster_path.write_text(text)
    with pytest.raises(EnrolmentError, match="signature must be that of enrolment_key"):
        office.add("ben", BEN)
    assert office.roster_path.read_text() == text


def test_change_of_another_officers_roster_is_refused(office: Office) -> None:
    write_roster(office.roster_path, roster(epoch=3))
    with pytest.raises(
        EnrolmentError, match=rf"enrolment_key must be that of .*enrolment\.pem, got {public(OFFICER).hex()}"
    ):
        office.add("ana", ANA)
    assert office.roster() == roster(epoch=3)


def test_change_beside_another_is_refused(office: Office) -> None:
    descriptor = os.open(office.key_path.parent, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(EnrolmentError, match="must be changed by one process at a time, got another one"):
            office.add("ana", ANA)
    finally:
        os.close(descriptor)
    assert office.roster().epoch == 1
    office.add("ana", ANA)


def test_change_in_no_folder_makes_none(tmp_path: Path) -> None:
    with pytest.raises(EnrolmentError, match=r"must be the officer's, got: No such file .* with: choral enroll init$"):
        Office(tmp_path / "none").add("ana", ANA)
    assert list(tmp_path.iterdir()) == []


# --- Passphrase ---


@pytest.fixture
def locked(tmp_path: Path) -> Office:
    office = Office(tmp_path / "locked", "open sesame")
    office.begin("lakes")
    return office


def test_passphrase_locks_the_key(locked: Office) -> None:
    assert locked.key_path.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY")
    locked.add("ana", ANA)
    assert locked.roster().epoch == 2


@pytest.mark.parametrize(("passphrase", "got"), [("", "none"), ("open barley", "another one")])
def test_passphrase_that_is_not_the_keys_is_refused(locked: Office, passphrase: str, got: str) -> None:
    before = files(locked)
    rule = rf"^Key file {locked.key_path}: must be opened with its passphrase, got {got}\.$"
    with pytest.raises(IdentityError, match=rule):
        Office(locked.key_path.parent, passphrase).add("ana", ANA)
    assert files(locked) == before


def test_passphrase_for_a_key_that_has_none_is_refused(office: Office) -> None:
    with pytest.raises(IdentityError, match=r"must be opened without a passphrase, got one\.$"):
        Office(office.key_path.parent, "open sesame").add("ana", ANA)


def test_key_that_others_can_read_is_not_used(office: Office) -> None:
    office.key_path.chmod(0o640)
    with pytest.raises(IdentityError, match="must be readable by its owner alone, got mode 040"):
        office.add("ana", ANA)


def test_read_key_locked_file_that_is_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "enrolment.pem"
    pem = STRANGER.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"open sesame"))
    path.write_bytes(pem[:80])
    path.chmod(0o600)
    with pytest.raises(IdentityError, match=f"^Key file {path}: must "):
        read_key(path, "open sesame")
