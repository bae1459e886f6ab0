"""The task that gives trackers what a coordinator's runs bring. It reads the store alone, so that no run waits for it."""

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from server.checkpoints import last_checkpoint
from server.errors import ConflictError, StoreError
from server.monitoring.trackers import Tracker, Tracking
from server.records import RoundState, RunRecord, RunState
from server.store import Store

log = logging.getLogger(__name__)

FOLLOW_SECONDS = 10.0
PAGE_ROUNDS = 200
SEEN_FILE = "tracked-event"
"""File with the number of the last event whose run all trackers have: what a crash cut off is made up for."""


class Follower:
    """Follows the store for trackers. One per coordinator."""

    def __init__(self, trackers: Sequence[Tracker], store: Store, folder: Path) -> None:
        """Follow for `trackers`. `folder` is the coordinator's."""
        self._trackings = [(Tracking(tracker), dict[str, int]()) for tracker in trackers]
        self._store = store
        self._folder = folder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trackers")
        self._behind: set[str] = set()

    async def serve(self) -> None:
        """Write until cancelled."""
        after: int | None = None
        try:
            while True:
                try:
                    after = await self._first() if after is None else after
                    events = await self._store.follow(after, FOLLOW_SECONDS)
                    self._behind |= {event.run_id for event in events if event.run_id}
                    after = events[-1].event_id if events else after
                    await self._catch_up()
                    if not self._behind:
                        await asyncio.to_thread(self._note, after)
                except (StoreError, OSError) as error:
                    log.warning("trackers wait for the store: %s", error)
                    await asyncio.sleep(FOLLOW_SECONDS)
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _first(self) -> int:
        """Return the event after which to begin: the present, where no earlier process has left word."""
        path = self._folder / SEEN_FILE
        text = await asyncio.to_thread(lambda: path.read_text(encoding="utf-8") if path.exists() else "")
        if text.strip().isdecimal():
            return int(text)
        last_id = await self._store.last_event_id()
        await asyncio.to_thread(self._note, last_id)
        return last_id

    def _note(self, event_id: int) -> None:
        (self._folder / SEEN_FILE).write_text(str(event_id), encoding="utf-8")

    async def _catch_up(self) -> None:
        """Write what there is of the runs that trackers lack something of."""
        for run_id in sorted(self._behind):
            run = await self._store.run(run_id)
            if all([await self._write(run, *tracking) for tracking in self._trackings]):
                self._behind.discard(run_id)

    async def _write(self, run: RunRecord, tracking: Tracking, written: dict[str, int]) -> bool:
        """Write one tracker the rounds that it lacks, and tell whether it has everything now."""
        loop, model = asyncio.get_running_loop(), self._model(run)
        while True:
            last = written.get(run.run_id, 0)
            found = await self._store.rounds(run.run_id, after=last, limit=PAGE_ROUNDS)
            rounds = [record for record in found if record.state is RoundState.COMMITTED]
            # The run was read before its rounds: one that has ended has no more than these.
            is_whole = len(found) < PAGE_ROUNDS
            shown = run if is_whole or not run.state.is_final else run.with_(state=RunState.RUNNING)
            if not await loop.run_in_executor(self._thread, tracking.write, shown, rounds, model):
                written.pop(run.run_id, None)
                return False
            if rounds:
                written[run.run_id] = rounds[-1].number
            if is_whole:
                return True

    def _model(self, run: RunRecord) -> Path | None:
        """Return the last model of a run that has ended."""
        try:
            return last_checkpoint(self._folder / "runs", run) if run.state.is_final else None
        except (ConflictError, StoreError):
            return None
