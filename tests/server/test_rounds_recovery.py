"""What a pause or a crash leaves of a run, and what becomes of it."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import Evaluation
from server.checkpoints import checkpoint_path
from server.cohort import Order
from server.errors import StoreError
from server.model import Model, write_checkpoint
from server.records import EventRecord, RoundRecord, RunRecord, RunState
from server.store import Store
from server.store.sqlite import SqliteStore
from tests.server.cohorts import (
    Act,
    Bring,
    Scene,
    ScriptedCohort,
    bring_drawn,
    bring_one,
    drawn,
    end_of,
    script,
    spec,
    when,
)


@pytest.mark.parametrize("client", ["a", "c"])
@pytest.mark.parametrize(
    "server",
    [
        pytest.param({"name": "sgd", "learning_rate": 0.5, "momentum": 0.9}, id="momentum"),
        pytest.param({"name": "adam", "learning_rate": 0.01}, id="adam"),
    ],
)
async def test_play_after_a_stop_ends_with_the_bits_of_the_undisturbed_run(
    store: Store, tmp_path: Path, server: dict[str, Any], client: str
) -> None:
    configured = spec(rounds=6, server={"optimizer": server})
    undisturbed = Scene(store, ScriptedCohort("abc", bring_drawn), tmp_path / "undisturbed", run_id="undisturbed")
    expected = await undisturbed.play(configured)

    asked = asyncio.Event()

    async def hang_in_round_four(order: Order, client_id: str) -> Act:
        if order.round_number == 4 and client_id == client:
            asked.set()
            return None
        return drawn(order.round_number, client_id)

    scene = Scene(store, ScriptedCohort("abc", hang_in_round_four), tmp_path / "stopped", run_id="stopped")
    task = asyncio.create_task(scene.play(configured))
    async with asyncio.timeout(20):
        await asked.wait()
    await end_of(task)
    assert (await store.run("stopped")).round_number == 3

    scene.cohort = ScriptedCohort("abc", bring_drawn)
    run = await scene.play(configured)
    assert run.model_sha256 == expected.model_sha256
    model, reference = scene.model(configured, 6), undisturbed.model(configured, 6)
    assert model.slots.keys() == reference.slots.keys() != set()
    assert all(np.array_equal(model.slots[name], reference.slots[name]) for name in reference.slots)
    for number in range(1, 7):
        mine, theirs = await store.round("stopped", number), await store.round("undisturbed", number)
        assert mine.model_sha256 == theirs.model_sha256
        assert mine.contributions == theirs.contributions


async def test_play_again_asks_the_clients_of_the_open_round_although_others_have_come(scene: Scene) -> None:
    cohort = scene.scripted
    cohort.train_script = script(a=Bring(1.0), b=Bring(1.0), c=None)
    task = asyncio.create_task(scene.play(spec()))
    await when(lambda: bool(cohort.trained), "the clients to be asked")
    await end_of(task)
    for client_id in "defgh":
        cohort.come(client_id)
    cohort.train_script = bring_one
    await scene.play(spec())
    assert [client_ids for _, client_ids in cohort.trained] == [("a", "b", "c")] * 2
    assert [order.attempt for order, _ in cohort.trained] == [0, 0]


async def test_play_stopped_while_the_checkpoint_is_written_leaves_no_writer_behind(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    task: asyncio.Task[RunRecord]
    is_written = False

    def cancel_then_write(path: Path, model: Model, header: dict[str, str], is_synced: bool) -> None:
        nonlocal is_written
        loop.call_soon_threadsafe(task.cancel)
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.05), loop).result(10)
        write_checkpoint(path, model, header, is_synced)
        is_written = True

    loop = asyncio.get_running_loop()
    monkeypatch.setattr("server.checkpoints.write_checkpoint", cancel_then_write)
    task = asyncio.create_task(scene.play(spec()))
    await asyncio.wait([task], timeout=20)
    assert task.cancelled()
    assert is_written
    assert (await scene.store.run("run")).round_number == 0


async def test_play_run_that_reached_its_metric_before_a_crash_ends_without_another_round(scene: Scene) -> None:
    async def improve(order: Order, client_id: str) -> Evaluation:
        return Evaluation(1, {"accuracy": 0.3 * order.round_number})

    scene.scripted.evaluate_script = improve
    goal = spec(rounds=9, evaluate={"every": 1}, stop_when={"metric": "accuracy", "at_least": 0.6})
    finished = await scene.play(goal)
    assert (finished.round_number, finished.reason) == (2, "accuracy reached 0.6 in round 2.")
    # As a crash between the commit of round 2 and the end of the run leaves it.
    await scene.store.put_run(finished.with_(state=RunState.RUNNING, reason="", ended_time=None))
    again = await scene.play(goal)
    assert (again.state, again.round_number, again.reason) == (RunState.FINISHED, 2, finished.reason)
    assert again.model_sha256 == finished.model_sha256
    assert len(await scene.store.rounds("run")) == 2


async def test_play_checkpoint_of_another_run_is_refused_and_left(scene: Scene, tmp_path: Path) -> None:
    two = spec(rounds=2)
    await scene.play(two)
    other = Scene(scene.store, ScriptedCohort("abc", bring_drawn), tmp_path / "other", run_id="other")
    await other.play(two)
    checkpoint_path(other.folder, 2).replace(checkpoint_path(scene.folder, 2))
    run = (await scene.store.run("run")).with_(state=RunState.RUNNING, spec=spec(rounds=3))
    await scene.store.put_run(run)
    with pytest.raises(StoreError, match=r"round-0000002\.safetensors: SHA-256 must be that of the run's last round, "):
        await scene.play(run.spec)
    assert await scene.store.run("run") == run


async def test_play_keeps_the_last_two_checkpoints(scene: Scene) -> None:
    await scene.play(spec(rounds=4))
    assert sorted(path.name for path in scene.folder.iterdir()) == [
        "round-0000003.safetensors",
        "round-0000004.safetensors",
    ]


async def test_play_error_of_the_cohort_is_raised_as_itself(scene: Scene) -> None:
    async def break_down(order: Order, client_id: str) -> Act:
        raise MemoryError("no room for client " + client_id)

    class Direct(ScriptedCohort):
        async def train(self, order: Order, client_ids: Any, inbox: Any) -> None:
            await break_down(order, client_ids[0])

    scene.cohort = Direct("abc")
    with pytest.raises(MemoryError, match="no room for client a"):
        await scene.play(spec())
    assert (await scene.store.run("run")).round_number == 0
    assert scene.scripted.claims == {}


class SlowStore(SqliteStore):
    """A store whose commits take until they are let through, as one on another machine may."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.began, self.may_end = asyncio.Event(), asyncio.Event()

    async def commit_round(self, run: RunRecord, record: RoundRecord, *events: EventRecord) -> None:
        self.began.set()
        await self.may_end.wait()
        await super().commit_round(run, record, *events)


async def test_play_cancelled_in_a_commit_ends_only_after_it(tmp_path: Path) -> None:
    store = await SlowStore.open(tmp_path / "store.sqlite")
    scene = Scene(store, ScriptedCohort("abc", bring_one), tmp_path / "run")
    task = asyncio.create_task(scene.play(spec()))
    async with asyncio.timeout(20):
        await store.began.wait()
        task.cancel()
        await asyncio.wait([task], timeout=0.1)
        assert not task.done()
        store.may_end.set()
        await asyncio.wait([task])
    # Whoever has paused the run writes after this, and is not overwritten.
    assert (await store.run("run")).round_number == 1
    await store.close()
