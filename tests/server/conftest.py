"""A store of its own for each test, a scene to play rounds in, and a caller of a coordinator's REST API."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from server.coordinator import Coordinator
from server.store import Store
from tests.server.cohorts import Scene, ScriptedCohort, opened
from tests.server.rest import calling


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with opened(tmp_path) as store:
        yield store


@pytest.fixture
def scene(store: Store, tmp_path: Path) -> Scene:
    """A scene with clients a, b and c that bring ones."""
    return Scene(store, ScriptedCohort("abc"), tmp_path / "run")


@pytest.fixture
async def api(coordinator: Coordinator) -> AsyncIterator[httpx.AsyncClient]:
    """Calls the coordinator of the test's own file."""
    async with calling(coordinator) as api:
        yield api
