"""Runs with a real store: queued, played, paused, resumed and stopped."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from server.errors import ConflictError, NotFoundError, StoreError
from server.records import EventRecord, RunRecord, RunState
from server.rounds import Site
from server.runs import Runs
from server.store import Store
from server.store.sqlite import SqliteStore
from tests.server.cohorts import (
    ScriptedCohort,
    bring_drawn,
    spec,
    when,
)
from tests.server.playing import Hanging, asked, playing, state_of, undisturbed
from wire.errors import SpecError


async def test_submit_is_stored_then_played_to_its_end(store: Store, tmp_path: Path) -> None:
    async with playing(store, ScriptedCohort("abc"), tmp_path) as runs:
        submitted = await runs.submit(spec(rounds=2))
        assert submitted.state is RunState.QUEUED
        run = await state_of(store, submitted.run_id, RunState.FINISHED)
        await when(lambda: runs.now().run(run).status == "finished", "the run's task to end")
    assert run.round_number == 2
    assert run.started_time is not None
    assert run.ended_time is not None
    assert [event.kind for event in await store.events(run.run_id)] == [
        "run_submitted",
        "run_started",
        "round_committed",
        "round_committed",
        "run_finished",
    ]
    assert runs.model_path(run) == tmp_path / "runs" / run.run_id / "round-0000002.safetensors"


async def test_submit_of_what_the_zoo_does_not_have_stores_nothing(store: Store, tmp_path: Path) -> None:
    runs = Runs(Site(store, ScriptedCohort("abc"), tmp_path), 1)
    with pytest.raises(SpecError, match=r"Learner: name must be one of .*, got 'mpl'"):
        await runs.submit(spec(learner={"name": "mpl"}))
    assert await store.runs() == []
    assert await store.events() == []


async def test_serve_plays_the_queue_in_the_order_of_submission(store: Store, tmp_path: Path) -> None:
    cohort = ScriptedCohort("abc", hanging := Hanging(1))
    async with playing(store, cohort, tmp_path) as runs:
        submitted = [await runs.submit(spec()) for _ in range(3)]
        await when(lambda: bool(cohort.trained), "the first run to ask its clients")
        assert [runs.now().run(run).status for run in submitted[1:]] == [
            "queued: waiting for a run before it to end"
        ] * 2
        hanging.may_go_on.set()
        for run in submitted:
            await state_of(store, run.run_id, RunState.FINISHED)
    assert asked(cohort) == [(run.run_id, 1) for run in submitted]


async def test_serve_plays_two_runs_at_a_time_with_disjoint_cohorts(store: Store, tmp_path: Path) -> None:
    cohort = ScriptedCohort("abcdefg", hanging := Hanging(2))
    async with playing(store, cohort, tmp_path, concurrent_count=2) as runs:
        submitted = [await runs.submit(spec(rounds=3)) for _ in range(3)]
        waiting = "round 2: train: waiting for 3 of 3 updates, 20 s left"
        await when(lambda: {(run.run_id, 2) for run in submitted[:2]} <= {*asked(cohort)}, "both second rounds")
        assert [runs.now().run(run).status for run in submitted[:2]] == [waiting] * 2
        assert runs.now().run(submitted[2]).status.startswith("queued: ")
        one, two = ({*client_ids} for order, client_ids in cohort.trained if order.round_number == 2)
        assert len(one) == len(two) == 3
        assert one.isdisjoint(two)
        assert set(cohort.claims) == one | two
        hanging.may_go_on.set()
        for run in submitted:
            await state_of(store, run.run_id, RunState.FINISHED)
    assert {run_id for run_id, _ in asked(cohort)} == {run.run_id for run in submitted}


async def test_serve_takes_up_what_ran_before_what_waited(store: Store, tmp_path: Path) -> None:
    states = {"waited": RunState.QUEUED, "paused": RunState.PAUSED, "ran": RunState.RUNNING, "late": RunState.QUEUED}
    for run_id, state in states.items():
        await store.put_run(RunRecord(run_id=run_id, spec=spec(), state=state, submitted_time=1.0))
    cohort = ScriptedCohort("abc")
    async with playing(store, cohort, tmp_path):
        await state_of(store, "late", RunState.FINISHED)
    assert [run_id for run_id, _ in asked(cohort)] == ["ran", "waited", "late"]
    assert (await store.run("paused")).state is RunState.PAUSED


async def test_serve_again_ends_with_the_bits_of_the_undisturbed_run(store: Store, tmp_path: Path) -> None:
    configured = spec(rounds=4, server={"optimizer": {"name": "adam", "learning_rate": 0.01}})
    cohort = ScriptedCohort("abc", Hanging(3))
    async with playing(store, cohort, tmp_path) as runs:
        run_id = (await runs.submit(configured)).run_id
        await when(lambda: (run_id, 3) in asked(cohort), "the third round")
    assert (await store.run(run_id)).state is RunState.RUNNING
    async with playing(store, ScriptedCohort("abc", bring_drawn), tmp_path):
        run = await state_of(store, run_id, RunState.FINISHED)
    assert run.model_sha256 == (await undisturbed(configured, tmp_path)).model_sha256


class GatedStore(SqliteStore):
    """A store whose list of runs can be held up after it was read."""

    gate: asyncio.Event

    async def runs(self) -> Sequence[RunRecord]:
        found = await super().runs()
        await self.gate.wait()
        return found


async def test_serve_sees_a_run_that_ends_while_the_queue_is_read(tmp_path: Path) -> None:
    store = await GatedStore.open(tmp_path / "gated.sqlite")
    assert isinstance(store, GatedStore)
    store.gate = asyncio.Event()
    store.gate.set()
    cohort = ScriptedCohort("abc", hanging := Hanging(1))
    async with playing(store, cohort, tmp_path) as runs:
        first = await runs.submit(spec())
        await when(lambda: bool(cohort.trained), "the first run to ask its clients")
        store.gate.clear()
        # Now the queue is read while the first run still takes the only place.
        second = await runs.submit(spec())
        hanging.may_go_on.set()
        await state_of(store, first.run_id, RunState.FINISHED)
        await when(lambda: runs.now().run(second).status == "queued: about to start", "the first run's task to end")
        store.gate.set()
        await state_of(store, second.run_id, RunState.FINISHED)
    await store.close()


async def test_pause_is_at_once_and_resume_goes_on_from_the_last_commit(store: Store, tmp_path: Path) -> None:
    configured = spec(rounds=4, server={"optimizer": {"name": "sgd", "learning_rate": 0.5, "momentum": 0.9}})
    cohort = ScriptedCohort("abc", Hanging(3))
    async with playing(store, cohort, tmp_path) as runs:
        run_id = (await runs.submit(configured)).run_id
        await when(lambda: (run_id, 3) in asked(cohort), "the third round")
        async with asyncio.timeout(5):
            paused = await runs.pause(run_id)
        assert (paused.state, paused.round_number, paused.reason) == (RunState.PAUSED, 2, "Paused by the operator.")
        assert await store.run(run_id) == paused
        assert runs.now().run(paused).status == "paused: Paused by the operator."
        assert cohort.claims == {}

        cohort.train_script = bring_drawn
        resumed = await runs.resume(run_id)
        assert (resumed.state, resumed.reason) == (RunState.QUEUED, "")
        finished = await state_of(store, run_id, RunState.FINISHED)
    assert [number for _, number in asked(cohort)] == [1, 2, 3, 3, 4]
    assert finished.model_sha256 == (await undisturbed(configured, tmp_path)).model_sha256
    kinds = [event.kind for event in await store.events(run_id)]
    assert kinds[-6:] == ["run_paused", "run_resumed", "run_started", *["round_committed"] * 2, "run_finished"]


async def test_pause_of_a_queued_run_lets_the_next_one_go_first(store: Store, tmp_path: Path) -> None:
    cohort = ScriptedCohort("abc", hanging := Hanging(1))
    async with playing(store, cohort, tmp_path) as runs:
        first, second, third = [await runs.submit(spec()) for _ in range(3)]
        await when(lambda: bool(cohort.trained), "the first run to ask its clients")
        await runs.pause(second.run_id)
        hanging.may_go_on.set()
        await state_of(store, third.run_id, RunState.FINISHED)
        assert (await store.run(second.run_id)).state is RunState.PAUSED
        await runs.resume(second.run_id)
        await state_of(store, second.run_id, RunState.FINISHED)
    assert [run_id for run_id, _ in asked(cohort)] == [first.run_id, third.run_id, second.run_id]


class LateStore(SqliteStore):
    """A store that writes the end of a run only when its caller no longer waits: a thread that has begun is not cancelled."""

    async def put_run(self, run: RunRecord, *events: EventRecord) -> None:
        try:
            if run.state is RunState.FINISHED:
                await asyncio.Event().wait()
        finally:
            await super().put_run(run, *events)


async def test_pause_of_a_run_that_finishes_meanwhile_is_a_conflict(tmp_path: Path) -> None:
    store = await LateStore.open(tmp_path / "late.sqlite")
    async with playing(store, ScriptedCohort("abc"), tmp_path) as runs:
        run = await runs.submit(spec())
        await when(lambda: runs.now().run(run).status == "finished", "the run to be about to finish")
        assert (await store.run(run.run_id)).state is RunState.RUNNING
        with pytest.raises(ConflictError, match="state must be queued or running to be paused, got finished"):
            await runs.pause(run.run_id)
        assert (await store.run(run.run_id)).state is RunState.FINISHED
    await store.close()


async def test_stop_ends_a_run_with_its_last_committed_model(store: Store, tmp_path: Path) -> None:
    cohort = ScriptedCohort("abc", Hanging(2))
    async with playing(store, cohort, tmp_path) as runs:
        run_id = (await runs.submit(spec(rounds=3))).run_id
        await when(lambda: (run_id, 2) in asked(cohort), "the second round")
        stopped = await runs.stop(run_id)
        assert (stopped.state, stopped.round_number) == (RunState.STOPPED, 1)
        assert stopped.ended_time is not None
        assert runs.now().run(stopped).status == "stopped: Stopped by the operator."
        assert runs.model_path(stopped).name == "round-0000001.safetensors"
        following = await runs.submit(spec())
        await state_of(store, following.run_id, RunState.FINISHED)
    assert await store.run(run_id) == stopped


@pytest.mark.parametrize(
    ("command", "state", "message"),
    [
        pytest.param("pause", "paused", "queued or running to be paused, got paused", id="pause-paused"),
        pytest.param("pause", "finished", "queued or running to be paused, got finished", id="pause-finished"),
        pytest.param("stop", "failed", "queued or running or paused to be stopped, got failed", id="stop-failed"),
        pytest.param("stop", "stopped", "queued or running or paused to be stopped, got stopped", id="stop-stopped"),
        pytest.param("resume", "queued", "paused to be resumed, got queued", id="resume-queued"),
        pytest.param("resume", "running", "paused to be resumed, got running", id="resume-running"),
        pytest.param("resume", "stopped", "paused to be resumed, got stopped", id="resume-stopped"),
    ],
)
async def test_command_that_the_state_does_not_allow_changes_nothing(
    store: Store, tmp_path: Path, command: str, state: str, message: str
) -> None:
    run = RunRecord(run_id="r1", spec=spec(), state=RunState(state), submitted_time=1.0)
    await store.put_run(run)
    runs = Runs(Site(store, ScriptedCohort("abc"), tmp_path), 1)
    with pytest.raises(ConflictError, match=rf"^Run r1: state must be {message}\.$"):
        await getattr(runs, command)("r1")
    assert await store.run("r1") == run
    assert await store.events() == []


async def test_command_on_no_run_raises(store: Store, tmp_path: Path) -> None:
    runs = Runs(Site(store, ScriptedCohort("abc"), tmp_path), 1)
    for command in (runs.pause, runs.resume, runs.stop):
        with pytest.raises(NotFoundError, match="Run 'nope': must be in the store, got no such run"):
            await command("nope")


async def test_model_path_without_a_committed_round_raises(store: Store, tmp_path: Path) -> None:
    runs = Runs(Site(store, ScriptedCohort("abc"), tmp_path), 1)
    run = RunRecord(run_id="r1", spec=spec(), state=RunState.QUEUED, submitted_time=1.0)
    with pytest.raises(
        ConflictError, match="Run r1: at least one round must be committed before it has a model, got none"
    ):
        runs.model_path(run)
    with pytest.raises(StoreError, match=r"r1/round-0000003\.safetensors: must be a file, got none"):
        runs.model_path(run.with_(round_number=3))
