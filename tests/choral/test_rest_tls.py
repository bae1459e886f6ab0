"""The command line against a coordinator that a private authority vouches for."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from server.coordinator import Coordinator
from server.records import RunState
from server.web import TLS
from tests.choral.command_line import Choral, sentence
from tests.client.certificates import DAY, Authority
from tests.loopback import serving
from tests.server.rest import DOCUMENT, stored_run

DEAD_PROXY = "http://127.0.0.1:9"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority", "Choral's tests")


@pytest.fixture
async def coordinator(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Coordinator]:
    """A coordinator over TLS with a paused run, which the environment names."""
    async with serving(tmp_path / "coordinator", tls=TLS(*authority.sign_server())) as coordinator:
        await stored_run(coordinator, "r1", RunState.PAUSED)
        monkeypatch.setenv("CHORAL_URL", f"https://{coordinator.http_address}")
        # Loopback takes no proxy, with TLS or without.
        monkeypatch.setenv("HTTPS_PROXY", DEAD_PROXY)
        yield coordinator


@pytest.mark.usefixtures("coordinator")
@pytest.mark.parametrize(
    "command",
    [
        ("clients",),
        ("runs", "list"),
        ("runs", "show", "r1"),
        ("runs", "rounds", "r1"),
        ("runs", "watch", "r1"),
        ("runs", "resume", "r1"),
        ("runs", "stop", "r1"),
    ],
    ids=" ".join,
)
async def test_command_trusts_the_given_authority(
    choral: Choral, authority: Authority, command: tuple[str, ...]
) -> None:
    outcome = await asyncio.to_thread(choral, *command, "--tls-ca", str(authority.path))
    assert outcome.code == 0, outcome.err


@pytest.mark.usefixtures("coordinator")
@pytest.mark.parametrize(
    ("command", "refusal"),
    [
        (("runs", "pause", "r1"), "state must be queued or running to be paused, got paused."),
        (("runs", "model", "r1"), "at least one round must be committed before it has a model, got none."),
    ],
    ids=["pause", "model"],
)
async def test_refusal_comes_over_tls(
    choral: Choral, authority: Authority, command: tuple[str, ...], refusal: str
) -> None:
    outcome = await asyncio.to_thread(choral, *command, "--tls-ca", str(authority.path))
    assert outcome.code == 1
    assert refusal in outcome.err


async def test_run_is_submitted_over_tls(
    choral: Choral, coordinator: Coordinator, authority: Authority, tmp_path: Path
) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(DOCUMENT))
    outcome = await asyncio.to_thread(choral, "submit", str(path), "--tls-ca", str(authority.path))
    assert outcome.code == 0, outcome.err
    assert [run.spec.name for run in await coordinator.store.runs()] == ["tiny", "tiny"]


@pytest.mark.usefixtures("coordinator")
@pytest.mark.parametrize("variable", ["CHORAL_TLS_CA", "SSL_CERT_FILE"])
async def test_environment_names_the_authority(
    choral: Choral, authority: Authority, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, str(authority.path))
    assert "paused" in (await asyncio.to_thread(choral, "runs", "list")).out


async def test_unknown_authority_is_refused_with_what_to_give(
    choral: Choral, coordinator: Coordinator, tmp_path: Path
) -> None:
    other = Authority(tmp_path / "other", "somebody else")
    for options in ((), ("--tls-ca", str(other.path))):
        found = sentence(await asyncio.to_thread(choral, "runs", "list", *options))
        assert found.startswith(f"Coordinator https://{coordinator.http_address}: must be reachable, got: ")
        assert "CERTIFICATE_VERIFY_FAILED" in found
        assert found.endswith("Give the authority that signed its certificate with --tls-ca.")


@pytest.mark.parametrize(
    ("later", "problem", "advice"),
    [
        (-3 * DAY, "certificate has expired", "Renew it with choral certificates, and start the coordinator again."),
        (
            3 * DAY,
            "certificate is not yet valid",
            "Compare this machine's clock with that of the machine that made it.",
        ),
    ],
    ids=["expired", "not-yet-valid"],
)
async def test_certificate_out_of_its_time_is_refused_with_what_to_do(
    choral: Choral, authority: Authority, tmp_path: Path, later: timedelta, problem: str, advice: str
) -> None:
    async with serving(tmp_path / "coordinator", tls=TLS(*authority.sign_server(later))) as coordinator:
        options = ("--url", f"https://{coordinator.http_address}", "--tls-ca", str(authority.path))
        found = sentence(await asyncio.to_thread(choral, "runs", "list", *options))
    assert problem in found
    assert found.endswith(f". {advice}")


@pytest.mark.parametrize("name", ["missing.pem", "text.pem", ""], ids=["missing", "no-pem", "folder"])
def test_file_that_is_no_authority_is_one_sentence(choral: Choral, tmp_path: Path, name: str) -> None:
    (tmp_path / "text.pem").write_text("hello")
    path = tmp_path / name
    found = sentence(choral("runs", "list", "--tls-ca", str(path)))
    assert found.startswith(f"TLS authority {path}: must be a readable PEM file of certificates, got: ")


def test_environment_that_names_no_authority_is_one_sentence(
    choral: Choral, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing.pem"))
    found = sentence(choral("runs", "list"))
    assert found.startswith("TLS authority of SSL_CERT_FILE or SSL_CERT_DIR: must be a readable PEM file")


async def test_address_without_tls_is_refused_with_what_to_give(
    choral: Choral, coordinator: Coordinator, authority: Authority
) -> None:
    options = ("--tls-ca", str(authority.path), "--url")
    plain = await asyncio.to_thread(choral, "runs", "list", *options, f"http://{coordinator.http_address}")
    assert sentence(plain).endswith("If it uses TLS, give https://.")
