"""What a simulation has done so far, made durable a few times a second: rounds that take less come to the disk many at a time.

A simulation that is killed loses at most what it computed since. It computes that again, with the same result.
"""

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from server.checkpoints import Checkpoints
from server.model import Model
from server.records import EventRecord, RoundRecord, RoundState, RunRecord
from server.store.sqlite import SqliteStore, put_records

Value = TypeVar("Value")

COMMIT_SECONDS = 0.2
"""Least real time between two transactions."""


class Ledger(SqliteStore):
    """A store that holds rounds back for a moment, and the checkpoint of the last of them. Its work is done on the event loop.

    Whatever is read, and whatever is said of a run, comes after them.
    """

    tell: Callable[[RoundRecord], None] = staticmethod(lambda _: None)
    """Called with each round once it is committed and durable."""

    _checkpoints: "_HeldCheckpoints"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._held = _Held()
        self._next_commit = 0.0

    def checkpoints(self, folder: Path) -> Checkpoints:
        """Return what keeps the checkpoints of the run whose rounds these are."""
        self._checkpoints = _HeldCheckpoints(folder, is_synced=False)
        return self._checkpoints

    async def put_round(self, record: RoundRecord, *events: EventRecord) -> None:
        """Insert or replace a round that is open, and append events, with the next commit.

        A round whose model is made but not committed is not kept: its checkpoint is not either, and it is played again.
        """
        if record.model_sha256:
            return
        self._held = self._held.with_(None, record, events)

    async def commit_round(self, run: RunRecord, record: RoundRecord, *events: EventRecord) -> None:
        """Commit a round, or hold it back if the last commit was just now."""
        self._held = self._held.with_(run, record, events)
        self._checkpoints.adopt(run.round_number)
        if time.monotonic() >= self._next_commit:
            await self.flush()

    async def put_run(self, run: RunRecord, *events: EventRecord) -> None:
        """Insert or replace a run, and append events."""
        await self.flush()
        await super().put_run(run, *events)

    async def close(self) -> None:
        """Commit what is held back, and close the file."""
        try:
            await self.flush()
        finally:
            await super().close()

    async def flush(self) -> None:
        """Make durable what is held back. What cannot be is lost with the error."""
        held, self._held = self._held, _Held()
        if not held.rounds:
            return

        def put_all(connection: sqlite3.Connection) -> None:
            for record in held.rounds.values():
                put_records(connection, None, record, ())
            put_records(connection, held.run, None, held.events)

        # A model first: a run never stands at a round without one.
        with self._checkpoints.flushed(held.run):
            await self._write(put_all)
        self._next_commit = time.monotonic() + COMMIT_SECONDS
        for record in held.rounds.values():
            if record.state is RoundState.COMMITTED:
                self.tell(record)

    async def _rows(self, query: str, *parameters: object) -> list[Any]:
        await self.flush()
        return await super()._rows(query, *parameters)

    async def _on_thread(self, work: Callable[[], Value]) -> Value:
        with self._explained():
            return work()


@dataclass(frozen=True, slots=True)
class _Held:
    """What waits for the next commit: a value, so that whatever interrupts finds all of a round in it or nothing."""

    run: RunRecord | None = None
    rounds: Mapping[int, RoundRecord] = field(default_factory=dict)
    events: tuple[EventRecord, ...] = ()

    def with_(self, run: RunRecord | None, record: RoundRecord, events: Sequence[EventRecord]) -> "_Held":
        return _Held(run or self.run, {**self.rounds, record.number: record}, (*self.events, *events))


class _HeldCheckpoints(Checkpoints):
    """Checkpoints of which only that of the last round before each commit is written."""

    def __init__(self, folder: Path, is_synced: bool) -> None:
        super().__init__(folder, is_synced)
        self._models: dict[int, Model] = {}

    def write(self, run: RunRecord, round_number: int, model: Model) -> None:
        """Hold a model back: its round is not committed yet, so it takes the place of no other."""
        self._models[round_number] = model

    def adopt(self, round_number: int) -> None:
        """Forget the models of earlier rounds than this one, which is held back itself now."""
        self._models = {number: model for number, model in self._models.items() if number >= round_number}

    def prune(self, round_number: int) -> None:
        """Do nothing: there is nothing new to replace the old until `flushed`."""

    @contextlib.contextmanager
    def flushed(self, run: RunRecord | None) -> Iterator[None]:
        """Write the model of the run's last round, and delete what it replaces when the context has ended well."""
        if run is None:
            yield
            return
        super().write(run, run.round_number, self._models[run.round_number])
        yield
        super().prune(run.round_number)
