import asyncio
import re
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from client.connection import Endpoint
from client.errors import RejectedError
from server.coordinator import CoordinatorConfig, serve
from server.errors import ConfigurationError
from server.web import TLS
from tests.client.certificates import Authority
from tests.client.sites import digits_spec, make_agent, played, running, until_joined, until_true, within
from tests.federation import Process, finished
from tests.loopback import serving


@pytest.fixture(autouse=True)
def soon_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients come back soon."""
    monkeypatch.setattr("client.agent.LONGEST_WAIT_SECONDS", 0.1)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates") / "ours", "ours")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates") / "theirs", "theirs")


async def refusals_logged(count: int, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Wait until a client has said so many times that it cannot reach the coordinator, and return what it said."""

    def lines() -> list[str]:
        return [text for text in caplog.messages if text.startswith("cannot reach the coordinator, ")]

    await until_true(lambda: len(lines()) >= count, f"{count} tries")
    return lines()


# --- TLS ---


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_tls_client_that_trusts_the_authority_works(authority: Authority, tmp_path: Path, host: str) -> None:
    async with serving(tmp_path / "coordinator", tls=TLS(*authority.sign_server())) as coordinator:
        address = coordinator.address.replace("127.0.0.1", host)
        agent = make_agent(tmp_path / "site", Endpoint(address, authority.path))
        async with running(agent):
            [record] = await played(coordinator, digits_spec())
    assert [part.client_id for part in record.contributions] == [agent.client_id]


async def test_tls_plain_client_gets_no_session_and_keeps_trying(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path / "coordinator", tls=TLS(*authority.sign_server())) as coordinator:
        async with running(make_agent(tmp_path / "site", coordinator.address)) as client:
            lines = await refusals_logged(3, caplog)
            assert not client.done()
        assert coordinator.sessions.clients() == []
    for line in lines:
        assert re.search(r"; if the coordinator uses TLS, give --tls-ca; trying again in 0\.\d s$", line)


async def test_tls_client_of_a_plain_coordinator_gets_no_session_and_keeps_trying(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path / "coordinator") as coordinator:
        async with running(make_agent(tmp_path / "site", Endpoint(coordinator.address, authority.path))) as client:
            await refusals_logged(2, caplog)
            assert not client.done()
        assert coordinator.sessions.clients() == []


async def test_tls_client_that_trusts_another_authority_gets_no_session_and_says_why(
    authority: Authority, stranger: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path / "coordinator", tls=TLS(*authority.sign_server())) as coordinator:
        async with running(make_agent(tmp_path / "site", Endpoint(coordinator.address, stranger.path))) as client:
            lines = await refusals_logged(2, caplog)
            assert not client.done()
        assert coordinator.sessions.clients() == []
    assert "CERTIFICATE_VERIFY_FAILED" in lines[0]


async def test_mutual_tls_only_a_client_with_a_certificate_of_the_authority_gets_a_session(
    authority: Authority, stranger: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tls = TLS(*authority.sign_server(), client_ca=authority.path)
    async with serving(tmp_path / "coordinator", tls=tls) as coordinator:
        address = coordinator.address
        without = make_agent(tmp_path / "without", Endpoint(address, authority.path))
        foreign = make_agent(tmp_path / "foreign", Endpoint(address, authority.path, *stranger.sign_client()))
        for outsider, hint in (
            (without, "; if the coordinator asks for certificates, give --tls-cert and --tls-key"),
            (foreign, "; if it goes on, --tls-cert may have ended, or the coordinator does not trust its authority"),
        ):
            caplog.clear()
            async with running(outsider) as client:
                lines = await refusals_logged(2, caplog)
                assert not client.done()
            assert all(hint in line for line in lines)
            assert coordinator.sessions.clients() == []
        member = make_agent(tmp_path / "member", Endpoint(address, authority.path, *authority.sign_client()))
        async with running(member):
            await until_joined(coordinator, member)
        assert [client.client_id for client in coordinator.sessions.clients()] == [member.client_id]


def encrypted_key(folder: Path) -> Path:
    path = folder / "encrypted.key"
    key = Ed25519PrivateKey.generate()
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    return path


async def test_tls_files_that_cannot_be_used_end_the_client_with_their_names(
    authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    garbage = tmp_path / "garbage.pem"
    garbage.write_bytes(b"no certificate")
    certificate, key = authority.sign_client()
    missing = tmp_path / "missing.pem"
    address = "127.0.0.1:1"
    together = "^TLS: a client's certificate must be given with its key and the coordinator's authority.$"
    for endpoint, rule in (
        (Endpoint(address, missing), rf"^Certificate {missing}: must be readable, got: No such file or directory.$"),
        (Endpoint(address, garbage), rf"^TLS: files must be PEM, .* got {garbage}: "),
        (Endpoint(address, authority.path, certificate, missing), rf"^Certificate {missing}: must be readable"),
        (Endpoint(address, authority.path, garbage, key), "^TLS: files must be PEM"),
        (Endpoint(address, authority.path, certificate, stranger.sign_client()[1]), "KEY_VALUES_MISMATCH"),
        (Endpoint(address, authority.path, certificate, encrypted_key(tmp_path)), "^TLS: files must be PEM"),
        (Endpoint(address, authority.path, certificate), together),
        (Endpoint(address, authority.path, None, key), together),
        (Endpoint(address, None, certificate, key), together),
    ):
        with pytest.raises(RejectedError, match=rule):
            await within(make_agent(tmp_path / "site", endpoint).run(), "the client to end")


# --- Plain text beyond loopback ---


@pytest.mark.parametrize("name", ["address", "http_address"])
async def test_serve_plain_text_beyond_loopback_is_refused(tmp_path: Path, name: str) -> None:
    rule = r"address: must be on loopback without TLS, got 0.0.0.0:0. Give --tls-cert and --tls-key, or --insecure.$"
    with pytest.raises(ConfigurationError, match=rule):
        async with serving(tmp_path / "coordinator", **{name: "0.0.0.0:0"}):
            pass
    assert not (tmp_path / "coordinator").exists()


def test_serve_defaults_to_loopback(tmp_path: Path) -> None:
    config = CoordinatorConfig(folder=tmp_path)
    assert (config.address, config.http_address, config.is_insecure) == ("127.0.0.1:7070", "127.0.0.1:8080", False)


def test_join_plain_text_beyond_loopback_ends_with_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    folder = tmp_path / "site"
    arguments = ["-m", "choral", "join", "10.0.0.1:7070", "--data", "digits", "--folder", str(folder)]
    code, output = finished(arguments, tmp_path / "log")
    assert code == 1
    assert output.split("\n") == [
        "Error: Coordinator address: must be on loopback without TLS, got 10.0.0.1:7070. Give --tls-ca, or --insecure.",
        "",
    ]
    assert not folder.exists()


async def test_plain_text_beyond_loopback_is_allowed_where_both_sides_say_so(tmp_path: Path) -> None:
    config = CoordinatorConfig(tmp_path / "coordinator", "", "0.0.0.0:0", "127.0.0.1:0", is_insecure=True)
    async with serve(config) as coordinator:
        assert coordinator.address.startswith("0.0.0.0:")
        command = [sys.executable, "-m", "choral", "join", coordinator.address, "--data", "digits,blocks=0"]
        command += ["--folder", str(tmp_path / "site"), "--insecure"]
        process = await asyncio.to_thread(Process, command, tmp_path / "log", is_forked=True)
        try:
            await until_true(coordinator.sessions.clients, "the client to join")
        finally:
            code = await asyncio.to_thread(process.end)
    assert code == 0, process.output
