"""Runs whose clients, store or disk fail: each pauses or ends with the reason, and loses nothing."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from server.cohort import Order
from server.errors import StoreError
from server.records import EventRecord, RoundRecord, RunRecord, RunState
from server.store import Store
from server.store.sqlite import SqliteStore
from tests.federation import finished
from tests.server.cohorts import (
    Act,
    Bring,
    Decline,
    ScriptedCohort,
    bring_drawn,
    bring_one,
    drawn,
    spec,
    when,
)
from tests.server.playing import Hanging, playing, state_of, undisturbed


async def test_round_without_a_quorum_pauses_the_run_with_the_reason(store: Store, tmp_path: Path) -> None:
    async def decline(order: Order, client_id: str) -> Act:
        return Decline() if order.round_number == 2 else Bring(1.0)

    cohort = ScriptedCohort("abc", decline)
    async with playing(store, cohort, tmp_path) as runs:
        run_id = (await runs.submit(spec(rounds=2))).run_id
        paused = await state_of(store, run_id, RunState.PAUSED)
        assert paused.round_number == 1
        assert paused.reason.startswith("Round 2: quorum must be 3 contributions, got 0 of 3 asked, ")
        cohort.train_script = bring_one
        await runs.resume(run_id)
        await state_of(store, run_id, RunState.FINISHED)


async def test_unexpected_error_fails_the_run_with_the_reason_and_the_next_one_plays(
    store: Store, tmp_path: Path
) -> None:
    class Broken(ScriptedCohort):
        async def train(self, order: Order, client_ids: Any, inbox: Any) -> None:
            if order.round_number == 2:
                raise MemoryError("no room")
            await super().train(order, client_ids, inbox)

    async with playing(store, Broken("abc"), tmp_path) as runs:
        bad, good = await runs.submit(spec(rounds=2)), await runs.submit(spec(rounds=1))
        failed = await state_of(store, bad.run_id, RunState.FAILED)
        assert (failed.reason, failed.round_number) == ("Unexpected MemoryError: no room", 1)
        assert failed.ended_time is not None
        await state_of(store, good.run_id, RunState.FINISHED)


async def test_spec_that_this_coordinator_cannot_play_fails_with_the_reason(store: Store, tmp_path: Path) -> None:
    async with playing(store, ScriptedCohort("abc"), tmp_path) as runs:
        run = await runs.submit(spec(evaluate={"every": 1, "on": "coordinator"}))
        failed = await state_of(store, run.run_id, RunState.FAILED)
    assert failed.reason.startswith("Run spec: evaluate.on must be 'clients' on a coordinator without data of its own")


async def test_folder_that_cannot_be_written_pauses_the_run_and_loses_nothing(store: Store, tmp_path: Path) -> None:
    configured = spec(rounds=4, server={"optimizer": {"name": "adam", "learning_rate": 0.01}})
    folder = tmp_path / "runs"

    async def take_folder_away(order: Order, client_id: str) -> Act:
        run_folder = folder / order.run_id
        if order.round_number == 3 and run_folder.is_dir():
            run_folder.rename(tmp_path / "away")
            run_folder.write_text("in the way")
        return drawn(order.round_number, client_id)

    async with playing(store, cohort := ScriptedCohort("abc", take_folder_away), tmp_path) as runs:
        run_id = (await runs.submit(configured)).run_id
        paused = await state_of(store, run_id, RunState.PAUSED)
        assert paused.round_number == 2
        assert "round-0000003.safetensors: must be writable, got: [Errno 17] File exists" in paused.reason
        (folder / run_id).unlink()
        (tmp_path / "away").rename(folder / run_id)
        cohort.train_script = bring_drawn
        await runs.resume(run_id)
        finished = await state_of(store, run_id, RunState.FINISHED)
    assert finished.model_sha256 == (await undisturbed(configured, tmp_path)).model_sha256


class BrokenStore(SqliteStore):
    """A store that can be read but not written, or neither, while it is told so."""

    can_read = True
    can_write = True

    def _check(self, is_well: bool) -> None:
        if not is_well:
            raise StoreError("Store: must be well, it is not.")

    async def runs(self) -> Sequence[RunRecord]:
        self._check(self.can_read)
        return await super().runs()

    async def put_run(self, run: RunRecord, *events: EventRecord) -> None:
        self._check(self.can_write)
        await super().put_run(run, *events)

    async def commit_round(self, run: RunRecord, record: RoundRecord, *events: EventRecord) -> None:
        self._check(self.can_write)
        await super().commit_round(run, record, *events)


async def test_store_that_cannot_be_written_holds_the_run_until_it_is_resumed(tmp_path: Path) -> None:
    store = await BrokenStore.open(tmp_path / "broken.sqlite")
    assert isinstance(store, BrokenStore)
    configured = spec(rounds=3, server={"optimizer": {"name": "adam", "learning_rate": 0.01}})

    async def break_store(order: Order, client_id: str) -> Act:
        store.can_write = store.can_write and order.round_number != 2
        return drawn(order.round_number, client_id)

    async with playing(store, cohort := ScriptedCohort("abc", break_store), tmp_path) as runs:
        run = await runs.submit(configured)
        held = "paused: Store: must be well, it is not. This could not be stored: Store: must be well, it is not."
        await when(lambda: runs.now().run(run).status == held, "the run to be held")
        assert (await store.run(run.run_id)).state is RunState.RUNNING
        with pytest.raises(StoreError):
            await runs.resume(run.run_id)
        assert runs.now().run(run).status == held
        store.can_write, cohort.train_script = True, bring_drawn
        await runs.submit(spec())  # wakes the queue, which leaves the held run alone
        assert runs.now().run(run).status == held
        await runs.resume(run.run_id)
        finished = await state_of(store, run.run_id, RunState.FINISHED)
    await store.close()
    assert finished.model_sha256 == (await undisturbed(configured, tmp_path)).model_sha256


async def test_stop_of_a_held_run_is_its_end(tmp_path: Path) -> None:
    store = await BrokenStore.open(tmp_path / "broken.sqlite")
    assert isinstance(store, BrokenStore)

    async def break_store(order: Order, client_id: str) -> Act:
        store.can_write = False
        return Bring(1.0)

    async with playing(store, ScriptedCohort("abc", break_store), tmp_path) as runs:
        run = await runs.submit(spec())
        await when(lambda: runs.now().run(run).status.startswith("paused: "), "the run to be held")
        store.can_write = True
        stopped = await runs.stop(run.run_id)
        assert runs.now().run(stopped).status == "stopped: Stopped by the operator."
    await store.close()


async def test_store_that_cannot_be_read_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.runs.RETRY_SECONDS", 0.05)
    store = await BrokenStore.open(tmp_path / "broken.sqlite")
    assert isinstance(store, BrokenStore)
    cohort = ScriptedCohort("abc", hanging := Hanging(1))
    async with playing(store, cohort, tmp_path) as runs:
        first = await runs.submit(spec())
        await when(lambda: bool(cohort.trained), "the first run to ask its clients")
        store.can_read = False
        second = await runs.submit(spec())
        hanging.may_go_on.set()
        await state_of(store, first.run_id, RunState.FINISHED)
        await when(lambda: runs.now().run(second).status == "queued: about to start", "the place to be free")
        store.can_read = True
        await state_of(store, second.run_id, RunState.FINISHED)
    await store.close()


@pytest.mark.parametrize(
    ("limit", "hidden", "reason"),
    [
        pytest.param(300_000, 30_000, "round-0000003.safetensors: must be writable, got: ", id="checkpoint"),
        pytest.param(20_000, 100, "choral.sqlite: must be a SQLite database that can be read and written", id="store"),
    ],
)
def test_full_disk_pauses_the_run_and_loses_nothing(tmp_path: Path, limit: int, hidden: int, reason: str) -> None:
    command = ["-m", "tests.server.full_disk", str(tmp_path), str(limit), str(hidden)]
    code, output = finished(command, tmp_path / "log")
    assert code == 0, output
    status, number, left, ended, undisturbed = json.loads(output.splitlines()[-1])
    assert status.startswith("paused: ")
    assert reason in status
    assert number == 2
    assert {"round-0000001.safetensors", "round-0000002.safetensors"} <= set(left)
    assert not [name for name in left if name.endswith(".tmp")]
    assert ended == undisturbed
