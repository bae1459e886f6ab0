"""The ledger of a simulation: what it holds back is not told, what it tells is durable, and a model is there for it."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from server.checkpoints import checkpoint_path
from server.errors import StoreError
from server.model import Model, ModelShop
from server.records import RoundRecord, RoundState
from server.store import open_store
from simulation.ledger import Ledger
from tests.server.store.samples import make_event, make_round, make_run
from wire.spec import RunSpec, validate_spec

OPEN, COMMITTED = RoundState.OPEN, RoundState.COMMITTED


def make_spec() -> RunSpec:
    return validate_spec({"name": "x", "learner": {"name": "mlp"}, "rounds": 9, "cohort": {"size": 1}})


class Scene:
    """A ledger whose rounds a test commits, and what it tells."""

    def __init__(self, ledger: Ledger, folder: Path) -> None:
        self.ledger = ledger
        self.folder = folder
        self.model: Model = ModelShop(make_spec()).initial()
        self.checkpoints = ledger.checkpoints(folder)
        self.told: list[int] = []
        ledger.tell = self.note

    def note(self, record: RoundRecord) -> None:
        self.told.append(record.number)

    async def commit(self, *numbers: int) -> None:
        """Commit rounds as `Rounds` does."""
        for number in numbers:
            await self.ledger.put_round(make_round(number))
            run = make_run(round_number=number)
            self.checkpoints.write(run, number, self.model)
            await self.ledger.commit_round(run, make_round(number, state=COMMITTED), make_event(f"round {number}"))
            self.checkpoints.prune(number)

    async def durable(self) -> tuple[int, list[tuple[int, RoundState]], list[str]]:
        """Return what another process finds: the run's round, the state of each round, and the events."""
        store = await open_store(str(self.folder / "simulation.sqlite"))
        (run,) = await store.runs()
        rounds = [(record.number, record.state) for record in await store.rounds(run.run_id)]
        events = [event.kind for event in await store.events()]
        await store.close()
        return run.round_number, rounds, events

    @property
    def files(self) -> list[Path]:
        return sorted(self.folder.glob("round-*"))


@pytest.fixture
async def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    monkeypatch.setattr("simulation.ledger.COMMIT_SECONDS", 1e9)
    ledger = await Ledger.open(tmp_path / "simulation.sqlite", is_synced=False)
    await ledger.put_run(make_run())
    yield Scene(ledger, tmp_path)
    await ledger.close()


async def test_commit_soon_after_another_is_held_back_with_its_checkpoint_and_not_told(scene: Scene) -> None:
    await scene.commit(1, 2, 3)
    assert scene.told == [1]
    assert await scene.durable() == (1, [(1, COMMITTED)], ["round 1"])
    assert scene.files == [checkpoint_path(scene.folder, 1)]


async def test_flush_commits_everything_at_once_and_keeps_the_last_two_checkpoints(scene: Scene) -> None:
    await scene.commit(1, 2, 3)
    await scene.ledger.flush()
    assert scene.told == [1, 2, 3]
    events = ["round 1", "round 2", "round 3"]
    assert await scene.durable() == (3, [(1, COMMITTED), (2, COMMITTED), (3, COMMITTED)], events)
    await scene.commit(4, 5)
    await scene.ledger.flush()
    assert scene.files == [checkpoint_path(scene.folder, number) for number in (3, 5)]
    await scene.ledger.flush()
    assert scene.told == [1, 2, 3, 4, 5]


async def test_whatever_is_asked_comes_after_what_is_held_back(scene: Scene) -> None:
    await scene.commit(1, 2)
    assert [record.number for record in await scene.ledger.rounds("run-1")] == [1, 2]
    await scene.commit(3)
    await scene.ledger.put_run(make_run(round_number=3).with_(reason="over"), make_event("finished"))
    assert await scene.durable() == (
        3,
        [(number, COMMITTED) for number in (1, 2, 3)],
        ["round 1", "round 2", "round 3", "finished"],
    )
    assert (await scene.ledger.run("run-1")).reason == "over"


async def test_close_commits_what_is_held_back(scene: Scene) -> None:
    await scene.commit(1, 2)
    await scene.ledger.put_round(make_round(3).with_(model_sha256=""))
    await scene.ledger.close()
    assert await scene.durable() == (2, [(1, COMMITTED), (2, COMMITTED), (3, OPEN)], ["round 1", "round 2"])
    assert scene.told == [1, 2]


async def test_model_of_a_round_that_was_not_committed_takes_the_place_of_no_other(scene: Scene) -> None:
    await scene.commit(1, 2)
    # As Ctrl-C between the two leaves it.
    scene.checkpoints.write(make_run(round_number=2), 3, scene.model)
    await scene.ledger.close()
    assert (await scene.durable())[0] == 2
    assert scene.files == [checkpoint_path(scene.folder, number) for number in (1, 2)]


async def test_flush_that_fails_leaves_the_run_at_its_last_commit_with_its_model(scene: Scene) -> None:
    await scene.commit(1, 2, 3)
    with closing(sqlite3.connect(scene.folder / "simulation.sqlite")) as other:
        other.execute("CREATE TRIGGER break_events BEFORE INSERT ON events BEGIN SELECT RAISE(ABORT, 'broken'); END")
    with pytest.raises(StoreError, match=r"simulation\.sqlite: must be .* got: broken"):
        await scene.ledger.flush()
    assert scene.told == [1]
    assert await scene.durable() == (1, [(1, COMMITTED)], ["round 1"])
    assert checkpoint_path(scene.folder, 1) in scene.files


async def test_commit_long_after_another_is_durable_at_once(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulation.ledger.COMMIT_SECONDS", 0.0)
    await scene.commit(1, 2)
    assert scene.told == [1, 2]
    assert (await scene.durable())[0] == 2
