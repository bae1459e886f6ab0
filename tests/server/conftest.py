"""A store of its own for each test, a Redis server, a scene to play rounds in, and a caller of a coordinator's REST API."""

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from server.coordinator import Coordinator
from server.store import Store
from tests.server.cohorts import Scene, ScriptedCohort, opened
from tests.server.rest import calling
from tests.server.store.redis_server import RedisServer


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with opened(tmp_path) as store:
        yield store


@pytest.fixture
def scene(store: Store, tmp_path: Path) -> Scene:
    """A scene with clients a, b and c that bring ones."""
    return Scene(store, ScriptedCohort("abc"), tmp_path / "run")


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


@pytest.fixture
async def api(coordinator: Coordinator) -> AsyncIterator[httpx.AsyncClient]:
    """Calls the coordinator of the test's own file."""
    async with calling(coordinator) as api:
        yield api
