"""What the REST API asks of the coordinator: what goes on now, and commands."""

import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from server.clients.sessions import Sessions
from server.monitoring.diary import Entry
from server.monitoring.now import ClientNow, Health, Now
from server.monitoring.pulse import Pulse
from server.records import ClientRecord, RunRecord
from server.runs import Runs
from wire import federation_pb2 as pb
from wire.spec import RunSpec


class Desk(Protocol):
    """Where the REST API reaches the coordinator. Each command raises what `Runs` raises, with nothing changed."""

    async def now(self) -> Now:
        """Return what goes on."""

    async def clients(self) -> Sequence[ClientRecord]:
        """Return every client that ever joined, by identity."""

    async def diary(self, run_id: str) -> Mapping[str, Entry]:
        """Return what the clients of a run's open round have done so far."""

    async def submit(self, spec: RunSpec) -> RunRecord:
        """Queue a run."""

    async def pause(self, run_id: str) -> RunRecord:
        """Pause a run at its last committed round."""

    async def resume(self, run_id: str) -> RunRecord:
        """Queue a paused run again."""

    async def stop(self, run_id: str) -> RunRecord:
        """End a run for good."""


class OwnDesk:
    """The desk of a coordinator that serves the REST API itself."""

    def __init__(self, runs: Runs, sessions: Sessions, pulse: Pulse) -> None:
        self._runs = runs
        self._sessions = sessions
        self._pulse = pulse
        self._started = time.monotonic()

    async def now(self) -> Now:
        """Return what goes on."""
        members = self._sessions.members()
        health = Health(
            uptime_seconds=time.monotonic() - self._started,
            client_count=sum(member.is_present for member in members),
            longest_stall_seconds=self._pulse.longest_stall_seconds,
            rss_bytes=self._pulse.rss_bytes,
            peak_rss_bytes=self._pulse.peak_rss_bytes,
        )
        clients = {key: _client_now(task_id, progress) for key, task_id, progress in self._sessions.doing()}
        return self._runs.now().model_copy(update={"clients": clients, "health": health})

    async def clients(self) -> Sequence[ClientRecord]:
        """Return every client that ever joined, by identity."""
        return self._sessions.clients()

    async def diary(self, run_id: str) -> Mapping[str, Entry]:
        """Return what the clients of a run's open round have done so far."""
        return self._sessions.diary.page(run_id)

    async def submit(self, spec: RunSpec) -> RunRecord:
        """Queue a run."""
        return await self._runs.submit(spec)

    async def pause(self, run_id: str) -> RunRecord:
        """Pause a run at its last committed round."""
        return await self._runs.pause(run_id)

    async def resume(self, run_id: str) -> RunRecord:
        """Queue a paused run again."""
        return await self._runs.resume(run_id)

    async def stop(self, run_id: str) -> RunRecord:
        """End a run for good."""
        return await self._runs.stop(run_id)


def _client_now(task_id: str, progress: pb.Progress | None) -> ClientNow:
    if progress is None:
        return ClientNow(task_id=task_id, phase="asked")
    phase = pb.Phase.Name(progress.phase).removeprefix("PHASE_").lower()
    return ClientNow(task_id=task_id, phase=phase, fraction=round(min(1.0, max(0.0, progress.fraction)), 2))
