"""The coordinator's process: what it refuses to start with, who may serve a folder, and how it ends."""

import asyncio
import datetime
import logging
import re
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from server.coordinator import CoordinatorConfig, serve
from server.errors import ConfigurationError, LeaseTakenError, StoreError
from server.store import open_store
from server.web import SHUTDOWN_SECONDS, TLS, bound_socket, check_exposure
from tests.federation import Federation
from tests.hostile import joined
from tests.loopback import WAIT_SECONDS, serving
from wire.errors import ChoralError


def config(folder: Path, **changes: object) -> CoordinatorConfig:
    addresses: dict[str, object] = {"address": "127.0.0.1:0", "http_address": "127.0.0.1:0"}
    return CoordinatorConfig(folder, **(addresses | changes))  # type: ignore[arg-type]


async def refusal(config: CoordinatorConfig, kind: type[ChoralError] = ConfigurationError) -> str:
    """Serve, and return why that is refused."""
    with pytest.raises(kind) as raised:
        async with asyncio.timeout(WAIT_SECONDS), serve(config):
            pass
    return str(raised.value)


@pytest.fixture
def taken() -> Iterator[str]:
    """An address that somebody else listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


# Addresses.


def test_connection_sends_small_pieces_at_once() -> None:
    with bound_socket("REST", "127.0.0.1:0") as listening, socket.create_connection(listening.getsockname()[:2]):
        connection, _ = listening.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


@pytest.mark.parametrize(("key", "name"), [("address", "gRPC"), ("http_address", "REST")])
async def test_serve_taken_address_is_refused_and_nothing_stays_open(
    tmp_path: Path, taken: str, key: str, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    message = await refusal(config(tmp_path, **{key: taken}))
    assert message.startswith(f"{name} address: must be free and of this machine, got {taken}: Address already in use")
    # gRPC's own word of it would be a second, longer one.
    assert capfd.readouterr().err == ""
    async with serve(config(tmp_path)) as coordinator:
        assert await coordinator.store.runs() == []


@pytest.mark.parametrize("key", ["address", "http_address"])
@pytest.mark.parametrize(
    "address", ["nonsense", "127.0.0.1", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:65536", "127.0.0.1:-1", ":70", ""]
)
async def test_serve_address_that_is_none_is_refused(tmp_path: Path, key: str, address: str) -> None:
    message = await refusal(config(tmp_path, is_insecure=True, **{key: address}))
    name = {"address": "gRPC", "http_address": "REST"}[key]
    assert message == f"{name} address: must be HOST:PORT with a port of 0 to 65535, got {address!r}."


async def test_serve_address_of_another_machine_is_refused(tmp_path: Path) -> None:
    message = await refusal(config(tmp_path, is_insecure=True, http_address="192.0.2.1:8080"))
    assert message.startswith("REST address: must be free and of this machine, got 192.0.2.1:8080: ")


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("gRPC", "0.0.0.0:7070"),
        ("gRPC", "[::]:7070"),
        ("REST", "192.168.1.5:8080"),
        ("REST", "choral.example:8080"),
    ],
)
def test_plain_text_beyond_loopback_must_be_asked_for(tmp_path: Path, name: str, address: str) -> None:
    message = (
        f"{name} address: must be on loopback without TLS, got {address}. Give --tls-cert and --tls-key, or --insecure."
    )
    addresses = {"loopback": "127.0.0.1:7070", name: address}
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        check_exposure(addresses, None, is_insecure=False)
    check_exposure(addresses, None, is_insecure=True)
    check_exposure(addresses, TLS(tmp_path / "cert", tmp_path / "key"), is_insecure=False)


# Certificates.


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TLS:
    """A certificate for 127.0.0.1, signed by itself."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    pem = (Encoding.PEM, PrivateFormat.PKCS8)
    (folder / "key.pem").write_bytes(key.private_bytes(*pem, NoEncryption()))
    (folder / "locked.pem").write_bytes(key.private_bytes(*pem, BestAvailableEncryption(b"secret")))
    other = ec.generate_private_key(ec.SECP256R1())
    (folder / "other.pem").write_bytes(other.private_bytes(*pem, NoEncryption()))
    (folder / "garbage.pem").write_text("-----BEGIN CERTIFICATE-----\nnothing\n-----END CERTIFICATE-----\n")
    return TLS(folder / "cert.pem", folder / "key.pem")


async def test_serve_with_certificates_answers_over_tls_alone(tmp_path: Path, tls: TLS) -> None:
    async with serve(config(tmp_path, tls=tls)) as coordinator:
        port = coordinator.http_address.rpartition(":")[2]
        trust = ssl.create_default_context(cafile=tls.certificate)
        async with httpx.AsyncClient(verify=trust, timeout=WAIT_SECONDS) as api:
            health = (await api.get(f"https://localhost:{port}/api/v1/health")).json()
            assert health["status"] == "ok"
            with pytest.raises(httpx.HTTPError):
                await api.get(f"http://localhost:{port}/api/v1/health")


@pytest.mark.parametrize(
    ("certificate", "key", "client_ca", "message"),
    [
        pytest.param(
            "none.pem", "key.pem", None, r"^Certificate .*none\.pem: must be readable, got: No such file", id="no-cert"
        ),
        pytest.param(
            "cert.pem", "none.pem", None, r"^Certificate .*none\.pem: must be readable, got: No such file", id="no-key"
        ),
        pytest.param(
            "cert.pem", "key.pem", "none.pem", r"^Certificate .*none\.pem: must be readable", id="no-authority"
        ),
        pytest.param(
            "garbage.pem", "key.pem", None, r"^Certificates .*garbage\.pem, .*: must be PEM", id="garbage-cert"
        ),
        pytest.param(
            "cert.pem", "garbage.pem", None, r"garbage\.pem: must be PEM, with the key of the", id="garbage-key"
        ),
        pytest.param("cert.pem", "key.pem", "garbage.pem", r"garbage\.pem: must be PEM", id="garbage-authority"),
        pytest.param(
            "cert.pem", "other.pem", None, r"other\.pem: must be PEM, with the key of the certificate", id="other-key"
        ),
        pytest.param(
            "cert.pem", "locked.pem", None, r"locked\.pem: must be PEM, .* and no password", id="key-with-password"
        ),
    ],
)
async def test_serve_certificate_that_cannot_be_used_is_refused(
    tmp_path: Path,
    tls: TLS,
    certificate: str,
    key: str,
    client_ca: str | None,
    message: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = tls.certificate.parent
    bad = TLS(folder / certificate, folder / key, folder / client_ca if client_ca else None)
    assert re.search(message, await refusal(config(tmp_path, tls=bad)))
    assert capfd.readouterr().err == ""


# One coordinator at a time.


async def test_serve_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "file: must be writable, got: File exists." in await refusal(config(tmp_path / "file"))


async def test_serve_store_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    (tmp_path / "choral.sqlite").write_text("not a database" * 100)
    assert "must be a SQLite database" in await refusal(config(tmp_path), StoreError)


async def test_serve_store_of_another_coordinator_is_refused(tmp_path: Path) -> None:
    store = str(tmp_path / "shared.sqlite")
    async with serve(config(tmp_path / "one", store=store)):
        message = await refusal(config(tmp_path / "two", store=store), LeaseTakenError)
        assert re.search(r"shared\.sqlite: lease must be free or held by '\w+', got '\w+' for \d+\.\d s more", message)
    async with serve(config(tmp_path / "two", store=store)) as second:
        assert await second.store.runs() == []


def test_serve_loses_its_lease_and_ends_with_that_sentence_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("server.coordinator.LEASE_SECONDS", 0.5)

    async def serve_until_robbed() -> None:
        async with serve(config(tmp_path)) as coordinator:
            thief = await open_store(str(tmp_path / "choral.sqlite"))
            await coordinator.store.release_lease((tmp_path / "coordinator-id").read_text())
            await thief.acquire_lease("thief", 60)
            await thief.close()
            await asyncio.sleep(WAIT_SECONDS)

    # As a process does: whatever task is left is cancelled in the end.
    with pytest.raises(LeaseTakenError, match="got 'thief'"):
        asyncio.run(asyncio.wait_for(serve_until_robbed(), WAIT_SECONDS / 2))
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def test_second_process_on_a_folder_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    with Federation(tmp_path) as first, Federation(tmp_path) as second:
        served = first.start_coordinator()
        run_id = first.submit({"name": "waits", "learner": {"name": "mlp"}, "rounds": 1, "cohort": {"size": 1}})
        refused = second.start_coordinator(wait=False)
        assert refused.wait() == 1
        sentence = (
            f"Error: Folder {tmp_path / 'coordinator'}: must be used by one process at a time, "
            f"got another one beside process {served.pid}. Stop that one, or take another folder."
        )
        assert sentence in refused.output
        assert "Traceback" not in refused.output
        assert first.run(run_id)["state"] == "running"

        served.kill()
        taken_over = second.start_coordinator()
        assert second.run(run_id)["state"] in ("queued", "running")
        assert taken_over.end() == 0, taken_over.output
        assert "shutting down; runs go on at the next start" in taken_over.output
        assert "Traceback" not in taken_over.output


async def test_serve_again_takes_its_own_lease_over_at_once(tmp_path: Path) -> None:
    # As after kill -9: the lease of the process before has not run out.
    for _ in range(2):
        async with serve(config(tmp_path)) as coordinator:
            holder = (tmp_path / "coordinator-id").read_text()
            await coordinator.store.acquire_lease(holder, 600)
        store = await open_store(str(tmp_path / "choral.sqlite"))
        await store.acquire_lease(holder, 600)
        await store.close()


async def test_serve_error_of_the_caller_comes_out_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with serving(tmp_path):
            raise KeyError("mine")


async def come_back(address: str, has_joined: asyncio.Event) -> None:
    """Stay until the goodbye, and try to join again at once."""
    key = Ed25519PrivateKey.generate()
    async with joined(address, key) as session:
        has_joined.set()
        assert await session.end() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async with joined(address, key) as again:
                await again.end()
    # Those whom nobody listens to any more are told the same.
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_serve_end_is_not_held_up_by_a_client_that_comes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    has_joined, clock = asyncio.Event(), asyncio.get_running_loop().time
    async with asyncio.TaskGroup() as group:
        async with serving(tmp_path) as coordinator:
            group.create_task(come_back(coordinator.address, has_joined))
            await has_joined.wait()
            start = clock()
        assert clock() - start < SHUTDOWN_SECONDS
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
