"""Stores of every kind, each empty and of its own."""

from collections.abc import AsyncIterator
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
