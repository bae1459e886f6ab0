"""A store of its own for each test, and a scene to play rounds in."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from server.store import Store
from tests.server.cohorts import Scene, ScriptedCohort, opened


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with opened(tmp_path) as store:
        yield store


@pytest.fixture
def scene(store: Store, tmp_path: Path) -> Scene:
    """A scene with clients a, b and c that bring ones."""
    return Scene(store, ScriptedCohort("abc"), tmp_path / "run")
