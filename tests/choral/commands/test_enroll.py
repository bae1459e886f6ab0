"""`choral enroll`: the officer's commands in the order in which they are needed, and what they refuse."""

from pathlib import Path

import pytest

from privacy.enrolment import read_enrolment
from privacy.keys import load_identity
from tests.choral.command_line import WIDTH, Choral, sentence
from tests.privacy.rosters import PAST, entry, key_of, public, roster, write_roster
from wire.identity import client_id_of

ROSTER = Path("enrolment/roster.json")
ANA = public(key_of(1)).hex()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CHORAL_ENROLMENT_PASSPHRASE", raising=False)
    return tmp_path


def printed(choral: Choral, *arguments: str) -> list[str]:
    """Run a command that succeeds, and return the lines that it printed."""
    outcome = choral("enroll", *arguments)
    assert (outcome.code, outcome.err) == (0, "")
    return outcome.lines


def test_officers_commands_in_their_order(choral: Choral) -> None:
    made = printed(choral, "init", "--federation", "lakes")
    assert made == [
        "enrolment/enrolment.pem: the enrolment key, not locked by a passphrase; keep it offline",
        "enrolment/roster.json: the roster",
    ]
    [client_key] = printed(choral, "key", "--folder", "site-3")
    [coordinator_key] = printed(choral, "coordinator-key")
    identity = client_id_of(bytes.fromhex(client_key))
    assert printed(choral, "add", "site-3", client_key, "--until", "2100-12-31") == [
        f"Client {identity} (site-3): enrolled until 2100-12-31",
        "Give the coordinator and every client the new enrolment/roster.json, epoch 2",
    ]
    assert printed(choral, "set-coordinator", coordinator_key)[0] == "Coordinator: set"
    enrolment = read_enrolment(ROSTER)
    assert enrolment.coordinator_key == coordinator_key
    assert enrolment.certificate_of(bytes.fromhex(client_key)) is not None
    assert printed(choral, "revoke", "site-3") == [
        f"Client {identity} (site-3): revoked",
        "Give the coordinator and every client the new enrolment/roster.json, epoch 4",
    ]
    assert read_enrolment(ROSTER).certificate_of(bytes.fromhex(client_key)) is None


@pytest.mark.parametrize(
    ("command", "file"), [("key", "client-state/identity.pem"), ("coordinator-key", "coordinator/coordinator.pem")]
)
def test_key_is_made_once_and_its_public_half_printed(choral: Choral, command: str, file: str) -> None:
    [first] = printed(choral, command)
    path = Path(file)
    assert path.stat().st_mode & 0o777 == 0o600
    content = path.read_bytes()
    assert printed(choral, command) == [first]
    assert path.read_bytes() == content
    assert public(load_identity(path)).hex() == first


def test_list_says_who_is_enrolled_until_when_and_who_no_longer_is(choral: Choral) -> None:
    clients = (
        entry("a" * 64, key_of(1)),
        entry("[red]ben", key_of(2), revoked=True),
        entry("cleo", key_of(3), PAST),
    )
    Path("enrolment").mkdir()
    write_roster(ROSTER, roster(*clients, epoch=7, coordinator_key=ANA.replace("a", "b")))
    lines = printed(choral, "list")
    assert max(map(len, lines)) <= WIDTH
    assert lines[0] == "lakes, epoch 7"
    assert lines[2] == f"coordinator key {ANA.replace('a', 'b')}"
    assert lines[4].split() == ["name", "client", "until", "state"]
    rows = [line.split() for line in lines[6:]]
    assert ["[red]ben", clients[1].client_id, "revoked"] in rows
    assert ["cleo", clients[2].client_id, "2020-02-29", "expired"] in rows
    assert next(row[1:] for row in rows if row[0].startswith("aaaa")) == [clients[0].client_id, "enrolled"]
    assert "".join(row[0] for row in rows if set(row[0]) == {"a"}) == "a" * 64


def test_list_of_a_new_roster_has_no_coordinator(choral: Choral) -> None:
    printed(choral, "init", "--federation", "lakes")
    assert "coordinator key not set" in printed(choral, "list")


def test_init_never_overwrites(choral: Choral) -> None:
    printed(choral, "init", "--federation", "lakes")
    before = [path.read_bytes() for path in sorted(Path("enrolment").iterdir())]
    message = "Roster enrolment/roster.json: must not exist yet, and it does. Take another folder."
    assert sentence(choral("enroll", "init", "--federation", "lakes")) == message
    assert [path.read_bytes() for path in sorted(Path("enrolment").iterdir())] == before


def test_passphrase_comes_from_option_or_environment(choral: Choral, monkeypatch: pytest.MonkeyPatch) -> None:
    made = printed(choral, "init", "--federation", "lakes", "--passphrase", "open sesame")
    assert made[0] == "enrolment/enrolment.pem: the enrolment key, locked by the passphrase; keep it offline"
    rule = "Key file enrolment/enrolment.pem: must be opened with its passphrase, got"
    assert sentence(choral("enroll", "add", "ana", ANA)) == f"{rule} none."
    monkeypatch.setenv("CHORAL_ENROLMENT_PASSPHRASE", "open barley")
    refused = choral("enroll", "add", "ana", ANA)
    assert sentence(refused) == f"{rule} another one."
    assert "barley" not in refused.err
    assert read_enrolment(ROSTER).epoch == 1
    monkeypatch.setenv("CHORAL_ENROLMENT_PASSPHRASE", "open sesame")
    printed(choral, "add", "ana", ANA)
    assert read_enrolment(ROSTER).epoch == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("add", "ana", "ab"),
            "Client 'ana': public key must be 64 lower-case hexadecimal digits, got 'ab'. The client",
        ),
        (("add", "ana", ANA, "--until", "2020-01-01"), "Client 'ana': last day must not have passed, got 2020-01-01."),
        (("revoke", "ana"), "Client 'ana': must be the name of one client or at least 8 digits of its identity, got 0"),
        (("set-coordinator", "ab"), "Roster: coordinator_key must match pattern"),
        (("list", "--folder", "none"), "Roster none/roster.json: must be a readable file, got: No such file"),
        (("add", "ana", ANA, "--folder", "none"), "Folder none: must be the officer's, got: No such file"),
    ],
)
def test_refusal_is_one_sentence_and_changes_nothing(choral: Choral, arguments: tuple[str, ...], message: str) -> None:
    printed(choral, "init", "--federation", "lakes")
    before = ROSTER.read_bytes()
    assert sentence(choral("enroll", *arguments)).startswith(message)
    assert ROSTER.read_bytes() == before


def test_until_that_is_no_date_is_a_usage_error(choral: Choral) -> None:
    printed(choral, "init", "--federation", "lakes")
    outcome = choral("enroll", "add", "ana", ANA, "--until", "soon")
    assert outcome.code == 2
    assert "does not match the format '%Y-%m-%d'" in " ".join(outcome.err.replace("│", " ").split())
