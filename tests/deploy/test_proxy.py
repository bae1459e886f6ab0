"""The reverse proxy of docs/operations.md: the real nginx before a real coordinator."""

import asyncio
import contextlib
import re
import shutil
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from client.connection import Endpoint
from server.access.attempts import MOST_FAILURES
from server.coordinator import Coordinator
from server.records import EventRecord
from server.web import TLS
from tests.client.certificates import Authority
from tests.client.sites import digits_spec, make_agent, played, running
from tests.deploy.manifests import ROOT
from tests.federation import free_port
from tests.loopback import WAIT_SECONDS, serving, until
from tests.server.rest import new_token, problem
from tests.server.stream import following

PROXY = "127.0.0.2"
"""Where the proxy comes from: not the address that is believed without being asked."""

AROUND = """
daemon off; master_process off; pid {folder}/pid; error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    proxy_bind {proxy};
    {server}
}}
"""

STREAM = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
AROUND_STREAM = (
    "daemon off; master_process off; pid {folder}/pid; error_log stderr; load_module {module}; events {{}}\n{stream}"
)


def documented() -> list[str]:
    """Return the configurations of docs/operations.md: of HTTP, and of clients' connections."""
    return re.findall(r"```nginx\n(.*?)```", (ROOT / "docs/operations.md").read_text(encoding="utf-8"), re.S)


def changed(text: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def configuration(folder: Path, coordinator: Coordinator, authority: Authority) -> tuple[str, str]:
    """Return the documented configuration with the test's addresses and files, and the address that it listens on."""
    server, _ = documented()
    address = f"127.0.0.1:{free_port()}"
    certificate, key = authority.sign_server()
    changes = {
        "listen 443": f"listen {address}",
        "/etc/nginx/choral.pem": str(certificate),
        "/etc/nginx/choral-key.pem": str(key),
        "/etc/nginx/authority.pem": str(authority.path),
        "coordinator.example.org:8080": coordinator.http_address.replace("127.0.0.1", "localhost"),
    }
    return AROUND.format(folder=folder, proxy=PROXY, server=changed(server, changes)), address


@contextlib.asynccontextmanager
async def proxied(folder: Path) -> AsyncIterator[tuple[Coordinator, str, ssl.SSLContext]]:
    """Serve a coordinator over TLS behind nginx: the coordinator, the proxy's address and what trusts it."""
    if shutil.which("nginx") is None:
        pytest.skip("nginx is not installed: apt-get install nginx-light")
    authority = Authority(folder / "authority", "Choral's tests")
    async with serving(folder / "coordinator", tls=TLS(*authority.sign_server())) as coordinator:
        text, address = configuration(folder, coordinator, authority)
        async with nginx(folder, text, address):
            yield coordinator, f"https://{address}/api/v1", ssl.create_default_context(cafile=str(authority.path))


@contextlib.asynccontextmanager
async def nginx(folder: Path, text: str, address: str) -> AsyncIterator[None]:
    """Run nginx with a configuration, once it listens."""
    (folder / "nginx.conf").write_text(text, encoding="utf-8")
    process = await asyncio.create_subprocess_exec("nginx", "-c", folder / "nginx.conf", stderr=asyncio.subprocess.PIPE)
    try:
        await listening(process, address)
        yield
    finally:
        process.terminate()
        async with asyncio.timeout(WAIT_SECONDS):
            await process.communicate()


async def listening(process: asyncio.subprocess.Process, address: str) -> None:
    async def is_open() -> bool:
        assert process.returncode is None, (await process.communicate())[1]
        with contextlib.suppress(ConnectionRefusedError):
            _, writer = await asyncio.open_connection(*address.split(":"))
            writer.close()
            return True
        return False

    await until(is_open, "nginx to listen")


def user(url: str, trusted: ssl.SSLContext, address: str, token: str) -> httpx.AsyncClient:
    """Return a user of the REST API at an address of their own."""
    transport = httpx.AsyncHTTPTransport(verify=trusted, local_address=address)
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.AsyncClient(base_url=url, transport=transport, headers=headers, timeout=WAIT_SECONDS)


@pytest.mark.parametrize(
    ("allowed", "others"),
    [pytest.param(PROXY, 200, id="believed"), pytest.param("127.0.0.1", 429, id="not-believed")],
)
async def test_wrong_tokens_lock_out_their_sender_alone_once_the_proxy_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: str, others: int
) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", allowed)
    async with proxied(tmp_path) as (coordinator, url, trusted):
        token = await new_token(coordinator)
        async with user(url, trusted, "127.0.0.3", "wrong") as guest, user(url, trusted, "127.0.0.4", token) as owner:
            for _ in range(MOST_FAILURES):
                problem(await guest.get("/runs"), 401)
            sentence = problem(await guest.get("/runs", headers={"X-Forwarded-For": "127.0.0.9"}), 429)
            assert sentence.startswith(f"Address {'127.0.0.3' if allowed == PROXY else PROXY}: ")
            assert (await owner.get("/runs")).status_code == others


async def test_events_pass_the_proxy_as_they_come(tmp_path: Path) -> None:
    async with proxied(tmp_path) as (coordinator, url, trusted):
        token = await new_token(coordinator)
        async with user(url, trusted, "127.0.0.3", token) as api, following(api) as stream:
            await coordinator.store.append_event(EventRecord(time=1.0, kind="told", detail="at once"))
            assert (await stream.event()).data["detail"] == "at once"


@pytest.mark.skipif(
    shutil.which("nginx") is None or not STREAM.exists(),
    reason="nginx or its module is not installed: apt-get install nginx-light libnginx-mod-stream",
)
async def test_a_client_with_a_certificate_works_through_the_proxy(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority", "Choral's tests")
    tls = TLS(*authority.sign_server(), client_ca=authority.path)
    async with serving(tmp_path / "coordinator", tls=tls) as coordinator:
        address = f"127.0.0.1:{free_port()}"
        changes = {"listen 7070": f"listen {address}", "coordinator.example.org:7070": coordinator.address}
        stream = changed(documented()[1], changes)
        agent = make_agent(tmp_path / "site", Endpoint(address, authority.path, *authority.sign_client()))
        text = AROUND_STREAM.format(folder=tmp_path, module=STREAM, stream=stream)
        async with nginx(tmp_path, text, address), running(agent):
            [record] = await played(coordinator, digits_spec())
    assert [part.client_id for part in record.contributions] == [agent.client_id]
