"""Stores of every kind, each empty and of its own."""

import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from server.store import Store, open_store
from tests.server.store.redis_server import RedisServer


@dataclass
class Backend:
    """Where a store lives, and the server behind it if it has one."""

    address: str
    server: RedisServer | None = None

    def crash(self) -> None:
        """Kill what serves the store, and start it again."""
        if self.server is not None:
            self.server.kill()
            self.server.start()


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed: apt-get install redis-server")
    server = RedisServer(tmp_path)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(params=["sqlite", "redis"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    if request.param == "sqlite":
        return Backend(str(tmp_path / "choral.db"))
    server: RedisServer = request.getfixturevalue("redis_server")
    return Backend(server.url, server)


@pytest.fixture
async def store(backend: Backend) -> AsyncIterator[Store]:
    opened = await open_store(backend.address)
    yield opened
    await opened.close()
