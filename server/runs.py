"""The runs of a coordinator: submitted, queued, played, paused, resumed, stopped. Every change of state is stored before it is reported."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from privacy.secagg.combinations import check_masking
from server.checkpoints import last_checkpoint
from server.errors import ConflictError, QuorumError, StoreError
from server.monitoring.now import Now, RunNow, playing
from server.monitoring.status import Status
from server.plain import check_plain
from server.records import EventRecord, RunRecord, RunState
from server.rounds import Rounds, Site
from server.tasks import task_group
from wire.errors import ChoralError
from wire.logs import about
from wire.spec import RunSpec
from wire.tensors import HAS_TORCH

log = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
"""Time until the queue is read again, when the store could not be."""


class Runs:
    """Queues runs and plays up to `concurrent_count` at a time, oldest first. One per coordinator; used from its event loop alone."""

    def __init__(self, site: Site, concurrent_count: int) -> None:
        """Prepare the queue. `site.folder` is the folder of all runs; each gets one of its own in it."""
        self._site = site
        self._concurrent_count = concurrent_count
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._statuses: dict[str, Status] = {}
        # Runs whose pause or failure could not be stored: not started again before somebody resumes them.
        self._held: dict[str, RunNow] = {}
        self._changed = asyncio.Event()
        self._commands = asyncio.Lock()

    async def serve(self) -> None:
        """Take up what an earlier process left queued or running, then play runs until cancelled."""
        try:
            async with task_group() as group:
                while True:
                    # Before the queue is read: what changes meanwhile is looked at in the next turn.
                    self._changed.clear()
                    seconds = await self._start_waiting(group)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(seconds):
                            await self._changed.wait()
        finally:
            self._tasks.clear()

    async def submit(self, spec: RunSpec) -> RunRecord:
        """Queue a run.

        Raises:
            SpecError: The zoo does not have what the spec asks for. Nothing was stored.
        """
        await asyncio.to_thread(check_run, spec)
        run = RunRecord(run_id=secrets.token_hex(6), spec=spec, state=RunState.QUEUED, submitted_time=time.time())
        await self._site.store.put_run(run, _event(run, "run_submitted", spec.name))
        self._changed.set()
        return run

    async def pause(self, run_id: str) -> RunRecord:
        """Pause a run at its last committed round; the round in progress is played again when it is resumed.

        Raises:
            NotFoundError: There is no such run.
            ConflictError: The run is neither queued nor running.
        """
        return await self._halt(run_id, RunState.PAUSED, (RunState.QUEUED, RunState.RUNNING), "Paused by the operator.")

    async def stop(self, run_id: str) -> RunRecord:
        """End a run for good, with the model of its last committed round. Raises as `pause`, when the run has ended already."""
        allowed = (RunState.QUEUED, RunState.RUNNING, RunState.PAUSED)
        return await self._halt(run_id, RunState.STOPPED, allowed, "Stopped by the operator.")

    async def resume(self, run_id: str) -> RunRecord:
        """Queue a paused run again. Raises as `pause`, when the run is not paused."""
        async with self._commands:
            run = await self._site.store.run(run_id)
            if run_id not in self._held:
                _check(run, "resumed", (RunState.PAUSED,))
            run = run.with_(state=RunState.QUEUED, reason="")
            await self._site.store.put_run(run, _event(run, "run_resumed"))
            self._held.pop(run_id, None)
        self._changed.set()
        return run

    def now(self) -> Now:
        """Return what the runs are doing."""
        now = time.time()
        playing_now = {run_id: playing(self._statuses[run_id], now) for run_id in self._tasks}
        return Now(runs=self._held | playing_now, has_place=len(self._tasks) < self._concurrent_count, is_served=True)

    def folder(self, run_id: str) -> Path:
        """Return where a run's checkpoints lie."""
        return self._site.folder / run_id

    def model_path(self, run: RunRecord) -> Path:
        """Return the checkpoint of a run's last committed round. Raises as `last_checkpoint`."""
        return last_checkpoint(self._site.folder, run)

    async def _start_waiting(self, group: asyncio.TaskGroup) -> float | None:
        """Start the runs that may start. Return when to try again, if the store cannot be read."""
        try:
            async with self._commands:
                for run in await self._startable():
                    status = self._statuses[run.run_id] = Status(run.round_number)
                    with about(run_id=run.run_id):
                        self._tasks[run.run_id] = group.create_task(self._play(run, status), name=f"run {run.run_id}")
        except StoreError as error:
            log.error("the queue cannot be read, trying again in %g s: %s", RETRY_SECONDS, error)
            return RETRY_SECONDS
        return None

    async def _startable(self) -> Sequence[RunRecord]:
        free = self._concurrent_count - len(self._tasks)
        waiting = [
            run
            for run in await self._site.store.runs()
            if run.state in (RunState.QUEUED, RunState.RUNNING)
            and run.run_id not in self._tasks.keys() | self._held.keys()
        ]
        # What an earlier process was playing goes before what only waits.
        waiting.sort(key=lambda run: run.state is not RunState.RUNNING)
        return waiting[: max(0, free)]

    async def _play(self, run: RunRecord, status: Status) -> None:
        try:
            run = run.with_(state=RunState.RUNNING, started_time=run.started_time or time.time())
            await self._site.store.put_run(run, _event(run, "run_started"))
            log.info("run %s (%s): started after round %d", run.run_id, run.spec.name, run.round_number)
            finished = await Rounds(run, replace(self._site, folder=self.folder(run.run_id)), status).play()
            log.info("run %s (%s): %s", run.run_id, run.spec.name, f"finished. {finished.reason}".strip())
        except (QuorumError, StoreError) as error:
            await self._end_or_hold(run, RunState.PAUSED, str(error))
        except ChoralError as error:
            await self._end_or_hold(run, RunState.FAILED, str(error))
        except Exception as error:
            log.exception("run %s: unexpected error", run.run_id)
            await self._end_or_hold(run, RunState.FAILED, f"Unexpected {type(error).__name__}: {error}")
        finally:
            self._tasks.pop(run.run_id, None)
            self._statuses.pop(run.run_id, None)
            self._changed.set()

    async def _halt(self, run_id: str, state: RunState, allowed: Sequence[RunState], reason: str) -> RunRecord:
        async with self._commands:
            _check(await self._site.store.run(run_id), state.value, allowed)
            if (task := self._tasks.get(run_id)) is not None:
                task.cancel()
                await asyncio.wait([task])
            run = await self._site.store.run(run_id)
            # The run may have ended by itself in the meantime.
            _check(run, state.value, allowed)
            run = await self._end(run, state, reason)
            self._held.pop(run_id, None)
            return run

    async def _end_or_hold(self, run: RunRecord, state: RunState, reason: str) -> None:
        try:
            await self._end(run, state, reason)
        except StoreError as error:
            number = self._statuses[run.run_id].committed_number
            text = f"{reason} This could not be stored: {error}"
            self._held[run.run_id] = RunNow(state=RunState.PAUSED, round_number=number, status=f"paused: {text}")
            log.error("run %s: %s", run.run_id, text)

    async def _end(self, run: RunRecord, state: RunState, reason: str) -> RunRecord:
        stored = await self._site.store.run(run.run_id)
        ended_time = time.time() if state.is_final else None
        run = stored.with_(state=state, reason=reason, ended_time=ended_time)
        with about(run_id=run.run_id):
            log.warning("run %s (%s): %s. %s", run.run_id, run.spec.name, state.value, reason)
        await self._site.store.put_run(run, _event(run, f"run_{state.value}", reason))
        return run


def check_run(spec: RunSpec) -> None:
    """Check what a sound spec asks of the zoo, or of a coordinator without it, and of secure aggregation. Raises `SpecError`."""
    if HAS_TORCH:
        # Here, because it imports torch.
        from models import check_spec

        check_spec(spec)
    else:
        check_plain(spec)
    check_masking(spec)


def _check(run: RunRecord, verb: str, allowed: Sequence[RunState]) -> None:
    if run.state not in allowed:
        names = " or ".join(state.value for state in allowed)
        raise ConflictError(f"Run {run.run_id}: state must be {names} to be {verb}, got {run.state.value}.")


def _event(run: RunRecord, kind: str, detail: str = "") -> EventRecord:
    return EventRecord(time=time.time(), kind=kind, run_id=run.run_id, detail=detail)
