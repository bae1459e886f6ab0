"""Strangers and huge bodies are turned away before a body is read, over real HTTP."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from server.access.gate import BODY_BYTES
from server.api import runs as run_api
from server.coordinator import Coordinator
from tests.loopback import WAIT_SECONDS, serving
from tests.server.rest import DOCUMENT, calling, new_token, problem
from wire.spec import RunSpec, validate_spec

UNAUTHORIZED = "A valid bearer token must be given, got none or another one."


@pytest.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[Coordinator]:
    async with serving(tmp_path) as coordinator:
        yield coordinator


@pytest.fixture
async def token(coordinator: Coordinator) -> str:
    """The one token of the coordinator: an operator's."""
    return await new_token(coordinator)


@contextlib.asynccontextmanager
async def posting(
    coordinator: Coordinator, *headers: str, path: str = "/runs"
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Send the head of a POST and leave its body to the caller."""
    host, _, port = coordinator.http_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    lines = [f"POST /api/v1{path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *headers, "", ""]
    writer.write("\r\n".join(lines).encode())
    try:
        yield reader, writer
    finally:
        writer.close()


async def answer(reader: asyncio.StreamReader) -> httpx.Response:
    """Read one response whose length its header tells."""
    async with asyncio.timeout(WAIT_SECONDS):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().splitlines()
        headers = dict(line.split(": ", 1) for line in head[1:])
        body = await reader.readexactly(int(headers["content-length"]))
    return httpx.Response(int(head[0].split()[1]), headers=headers, content=body)


@pytest.mark.usefixtures("token")
@pytest.mark.parametrize("given", [(), ("Authorization: Bearer wrong",), ("Authorization: Basic b3Blbg==",)])
@pytest.mark.parametrize(
    "length", ["Content-Length: 1000", "Content-Length: 99999999999", "Transfer-Encoding: chunked"]
)
async def test_stranger_is_refused_before_a_byte_of_the_body_has_come(
    coordinator: Coordinator, given: tuple[str, ...], length: str
) -> None:
    async with posting(coordinator, length, *given) as (reader, _):
        response = await answer(reader)
    assert problem(response, 401) == UNAUTHORIZED
    assert response.headers["www-authenticate"] == "Bearer"


async def test_every_path_of_the_api_but_the_open_ones_asks_for_the_token(coordinator: Coordinator, token: str) -> None:
    async with calling(coordinator) as stranger:
        for path in ("/runs", "/runs/x", "/clients", "/me", "/nothing", "/health/", "//health", "/%72uns"):
            response = await stranger.get(path)
            assert problem(response, 401) == UNAUTHORIZED
            assert response.headers["www-authenticate"] == "Bearer"
        for path in ("/health", "/spec/schema", "../../", "../../openapi.json"):
            assert (await stranger.get(path)).status_code == 200
    async with calling(coordinator) as api:
        headers = {"Authorization": f"bearer  {token}"}
        assert (await api.get("/runs", headers=headers)).status_code == 200


async def test_body_that_is_announced_too_large_is_refused_before_it_comes(
    coordinator: Coordinator, token: str
) -> None:
    headers = (f"Authorization: Bearer {token}", f"Content-Length: {BODY_BYTES + 1}")
    async with posting(coordinator, *headers) as (reader, _):
        sentence = problem(await answer(reader), 413)
    assert sentence == f"Body: must have at most {BODY_BYTES} bytes, got {BODY_BYTES + 1} bytes."


async def test_chunks_are_counted_and_refused_while_more_would_come(coordinator: Coordinator, token: str) -> None:
    headers = (f"Authorization: Bearer {token}", "Transfer-Encoding: chunked")
    async with posting(coordinator, *headers) as (reader, writer):
        piece = b" " * (BODY_BYTES // 4)
        for _ in range(5):
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        sentence = problem(await answer(reader), 413)
    assert sentence == f"Body: must have at most {BODY_BYTES} bytes, got more."
    assert await coordinator.store.runs() == []


@pytest.mark.parametrize("is_chunked", [False, True], ids=["announced", "chunked"])
async def test_largest_body_is_read_and_judged_as_a_spec(
    coordinator: Coordinator, token: str, is_chunked: bool
) -> None:
    head = b'{"name": "'
    body = head + b"x" * (BODY_BYTES - len(head) - 2) + b'"}'
    assert len(body) == BODY_BYTES

    async def pieces() -> AsyncIterator[bytes]:
        yield body

    async with calling(coordinator, token) as api:
        headers = {"content-type": "application/json"}
        response = await api.post("/runs", content=pieces() if is_chunked else body, headers=headers)
    assert "Run spec: name " in problem(response, 422)


async def test_spec_is_checked_off_the_event_loop(
    coordinator: Coordinator, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []

    def noted(document: object) -> RunSpec:
        threads.append(threading.current_thread())
        return validate_spec(document)

    monkeypatch.setattr(run_api, "validate_spec", noted)
    async with calling(coordinator, token) as api:
        assert (await api.post("/runs", json=DOCUMENT)).status_code == 201
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()
