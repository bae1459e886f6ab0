"""What the tests of the edge client share."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from client.training import Trainer
from server.coordinator import Coordinator
from tests.client.scripted import ScriptedCoordinator, scripted
from tests.client.sites import HeldTraining
from tests.loopback import serving


@pytest.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[Coordinator]:
    """Serve a real coordinator."""
    async with serving(tmp_path / "coordinator") as coordinator:
        yield coordinator


@pytest.fixture
async def script() -> AsyncIterator[ScriptedCoordinator]:
    """Serve a coordinator that does what the test tells it."""
    async with scripted() as coordinator:
        yield coordinator


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldTraining]:
    """Hold every training of this process in its middle, until the test opens it or ends."""
    held = HeldTraining()
    monkeypatch.setattr(Trainer, "train", held.install())
    yield held
    held.is_open.set()
