"""What goes on in a coordinator at this moment, as its REST API shows it. Nothing of it is durable."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field

from server.monitoring.status import Status
from server.records import RunRecord, RunState
from wire.protocol import PROTOCOL_VERSION


class Value(BaseModel):
    """Something that is true for a moment."""

    model_config = ConfigDict(frozen=True, serialize_by_alias=True, validate_by_name=True)


class Waiting(Value):
    """What a run waits for."""

    purpose: str = Field(alias="for")
    """Such as "updates"."""
    have: int
    need: int
    """How many end the wait."""
    seconds_left: float | None
    until_time: float | None
    """When the wait ends by itself, UTC seconds since the epoch; null when it does not."""


class RunNow(Value):
    """What a run is doing."""

    state: RunState
    round_number: int
    """Last committed round; 0 before the first."""
    phase: str = ""
    """Of the round after the last committed one, such as "train"; empty where no round is played."""
    status: str
    """One line; of a wait it says for what, how much is missing and how long it may still take."""
    waiting: Waiting | None = None

    def is_like(self, other: "RunNow | None") -> bool:
        """Tell whether nothing but time has passed between this and another."""
        return other is not None and self._timeless() == other._timeless()

    def _timeless(self) -> tuple[object, ...]:
        if (wait := self.waiting) is None:
            return self.state, self.round_number, self.phase, self.status
        return self.state, self.round_number, self.phase, wait.purpose, wait.have, wait.need, wait.until_time


class ClientNow(Value):
    """What a client is doing."""

    task_id: str = ""
    phase: str = ""
    """Phase of its task, such as "training"; "asked" until it has told of one; empty when idle."""
    fraction: float = 0.0
    """Done part of that phase, 0 to 1."""

    def is_of(self, run_id: str) -> bool:
        """Tell whether it works for a run."""
        return self.task_id.startswith(f"{run_id}/")


class Health(Value):
    """The coordinator's health."""

    status: str = "ok"
    protocol_version: int = PROTOCOL_VERSION
    uptime_seconds: float
    client_count: int
    """Clients with an open session."""
    longest_stall_seconds: float
    """Longest time that the event loop was busy with one thing."""
    rss_bytes: int
    peak_rss_bytes: int


class Now(Value):
    """What goes on.

    A run that is neither played nor held is as the store has it; a client that is not named is idle.
    """

    runs: Mapping[str, RunNow] = {}
    clients: Mapping[str, ClientNow] = {}
    has_place: bool = False
    """Whether another run can be played at once."""
    is_served: bool = False
    """Whether a coordinator serves the store."""
    health: Health | None = None
    """The coordinator's, where one serves the store."""

    def run(self, run: RunRecord) -> RunNow:
        """Return what a run is doing. This may be older than the run: one that has ended or was paused since is as the store has it."""
        found = self.runs.get(run.run_id)
        if found is not None and run.state in (found.state, RunState.QUEUED, RunState.RUNNING):
            return found
        status = f"{run.state.value}: {run.reason}" if run.reason else run.state.value
        if run.state in (RunState.QUEUED, RunState.RUNNING) and not self.is_served:
            status = f"{run.state.value}: no coordinator is running"
        elif run.state is RunState.QUEUED:
            status = f"queued: {'about to start' if self.has_place else 'waiting for a run before it to end'}"
        return RunNow(state=run.state, round_number=run.round_number, status=status)

    def changes(self, before: "Now") -> "Now":
        """Return the runs and clients that are not what they were before; those that were named and are no more are left out."""
        runs = {key: run for key, run in self.runs.items() if not run.is_like(before.runs.get(key))}
        clients = {key: client for key, client in self.clients.items() if client != before.clients.get(key)}
        return self.model_copy(update={"runs": runs, "clients": clients})


def playing(status: Status, now: float) -> RunNow:
    """Return what a run that is played is doing, from its status at a time."""
    waiting = None
    if (wait := status.wait) is not None:
        left = None if wait.until_time is None else max(0.0, wait.until_time - now)
        waiting = Waiting(
            purpose=wait.purpose, have=wait.have(), need=wait.want, seconds_left=left, until_time=wait.until_time
        )
    is_between = 0 < status.round_number <= status.committed_number
    return RunNow(
        state=RunState.RUNNING,
        round_number=status.committed_number,
        phase="" if is_between else status.phase,
        status=status.sentence(),
        waiting=waiting,
    )
