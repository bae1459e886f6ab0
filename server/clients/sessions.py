"""Clients with an open Join stream: who is there, and what each was asked to do.

An assignment belongs to a client, not to a session: a client that drops off and comes back within its round is sent its task again.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from server.cohort import Member
from server.errors import StoreError
from server.monitoring.diary import Diary
from server.records import ClientRecord, EventRecord
from server.signal import Signal
from server.store import Store
from wire import federation_pb2 as pb
from wire.logs import about

log = logging.getLogger(__name__)

OUTBOX_SIZE = 64
"""Messages that may wait for one client. One that does not read for that long is as good as gone."""

Reply = pb.TaskFailed | pb.EvaluateResult | pb.Advertise | pb.Shares | pb.SurvivorAck | pb.Unmask


@dataclass(frozen=True, slots=True)
class Assignment:
    """What one client is asked for, in a task or a later message of its session of secure aggregation, and who takes its replies.

    Attributes:
        task: Its part of the run.
        message: What the client is sent, again whenever it comes back.
        take_reply: A function of client and reply.
        session_id: That of the session, if there is one: replies of others are ignored.
    """

    task: pb.Task
    message: pb.JoinResponse
    take_reply: Callable[[str, Reply], None]
    session_id: bytes = b""

    @property
    def task_id(self) -> str:
        """Name the task."""
        return self.task.task_id

    @classmethod
    def of(cls, task: pb.Task, take_reply: Callable[[str, Reply], None]) -> "Assignment":
        """Ask for a task."""
        return cls(task, pb.JoinResponse(task=task), take_reply)

    def is_answered_by(self, reply: Reply) -> bool:
        """Tell whether a reply is to this."""
        if isinstance(reply, pb.TaskFailed | pb.EvaluateResult):
            return reply.task_id == self.task_id or (self.session_id.hex() == reply.task_id != "")
        return reply.session_id == self.session_id != b""


@dataclass(eq=False)
class Session:
    """One open stream of one client."""

    client: ClientRecord
    token: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    outbox: "asyncio.Queue[pb.JoinResponse]" = field(default_factory=lambda: asyncio.Queue(OUTBOX_SIZE), repr=False)
    progress: pb.Progress | None = None
    is_downloading: bool = False

    def push(self, message: pb.JoinResponse) -> None:
        """Queue a message for the client. A full outbox ends the session."""
        try:
            self.outbox.put_nowait(message)
        except asyncio.QueueFull:
            self.end(pb.GOODBYE_REASON_SILENT, f"more than {OUTBOX_SIZE} messages wait to be read")

    def end(self, reason: pb.GoodbyeReason, detail: str) -> None:
        """Queue a goodbye as the next and last message."""
        while not self.outbox.empty():
            self.outbox.get_nowait()
        self.outbox.put_nowait(pb.JoinResponse(goodbye=pb.Goodbye(reason=reason, detail=detail)))


class Sessions:
    """The sessions of a coordinator, by client. Used from the event loop alone.

    Attributes:
        diary: When the clients of open rounds did what.
        is_ending: Whether goodbyes are said; no session must be opened any more.
    """

    def __init__(self, store: Store) -> None:
        self.changed = Signal()
        self.is_ending = False
        self._store = store
        self._sessions: dict[str, Session] = {}
        self._tokens: dict[bytes, Session] = {}
        self._clients: dict[str, ClientRecord] = {}
        self._absent_since: dict[str, float] = {}
        self._claims: dict[str, str] = {}
        self._assignments: dict[str, Assignment] = {}
        self._expelled: dict[str, str] = {}
        self.diary = Diary()

    async def restore(self) -> None:
        """Read the known clients. Those that were connected when an earlier process ended count as absent since now."""
        now = asyncio.get_running_loop().time()
        for client in await self._store.clients():
            self._clients[client.client_id] = client
            if client.is_connected:
                self._absent_since[client.client_id] = now

    async def open(self, session: Session) -> None:
        """Admit a client. A session of the same identity that is still open ends: the newer one wins.

        Raises:
            StoreError: The client could not be stored. The session is open all the same, and the caller closes it.
        """
        client = session.client
        self._expelled.pop(client.client_id, None)
        if (older := self._sessions.get(client.client_id)) is not None:
            log.warning(
                "client %s (%s): a newer session takes the place of the older one", client.client_id, client.name
            )
            older.end(pb.GOODBYE_REASON_SUPERSEDED, "a newer session with the same identity has taken this one's place")
            self._forget(older)
        known = self._clients.get(client.client_id)
        if known is not None:
            session.client = client = client.with_(first_seen_time=known.first_seen_time)
        self._clients[client.client_id] = client
        self._absent_since[client.client_id] = asyncio.get_running_loop().time()
        self._sessions[client.client_id] = self._tokens[session.token] = session
        await self._store.put_client(client)
        await self._store.append_event(_event("client_joined", client))
        log.info("client %s (%s): joined with %d examples", client.client_id, client.name, client.example_count)

    def start(self, session: Session) -> None:
        """Count a session as present, after its welcome, and send it what its client was asked before."""
        if self._sessions.get(session.client.client_id) is not session:
            return
        self._absent_since.pop(session.client.client_id, None)
        if (assignment := self._assignments.get(session.client.client_id)) is not None:
            session.push(assignment.message)
        self.changed.notify()

    async def close(self, session: Session, reason: str) -> None:
        """Note that a session has ended. One that was superseded changes nothing."""
        client_id = session.client.client_id
        if self._sessions.get(client_id) is not session:
            return
        self._forget(session)
        self._absent_since[client_id] = asyncio.get_running_loop().time()
        # At the coordinator's own end it is stored as connected: after a restart it is expected back, as after a crash.
        client = session.client.with_(is_connected=self.is_ending, last_seen_time=time.time())
        self._clients[client_id] = client
        log.info("client %s (%s): left, %s", client_id, client.name, reason)
        self.changed.notify()
        try:
            await self._store.put_client(client)
            await self._store.append_event(_event("client_left", client, reason))
        except StoreError as error:
            # Nobody waits for this any more, at the coordinator's own end least of all.
            log.warning("client %s (%s): that it left could not be stored: %s", client_id, client.name, error)

    def expel(self, client_id: str, detail: str) -> None:
        """End a client's session for good, answer in its place what it is asked, and count on it no more. A new session mends that."""
        if client_id in self._expelled:
            return
        self._expelled[client_id] = detail
        if (session := self._sessions.get(client_id)) is not None:
            with about(client_id=client_id):
                log.warning("%s", detail)
            self._tokens.pop(session.token, None)
            session.end(pb.GOODBYE_REASON_REVOKED, detail)
        if (assignment := self._assignments.pop(client_id, None)) is not None:
            _decline(client_id, assignment, detail)
        self.changed.notify()

    def by_token(self, token: bytes) -> Session | None:
        """Return the open session that was given `token`."""
        return self._tokens.get(token)

    def by_client(self, client_id: str) -> Session | None:
        """Return a client's open session."""
        return self._sessions.get(client_id)

    def clients(self) -> Sequence[ClientRecord]:
        """Return every client that ever joined, by identity."""
        return [self._clients[client_id] for client_id in sorted(self._clients)]

    def doing(self) -> Iterator[tuple[str, str, pb.Progress | None]]:
        """Yield each present client that has a task, the task, and how far it is."""
        for client_id, assignment in self._assignments.items():
            if (session := self._sessions.get(client_id)) is not None:
                yield client_id, assignment.task_id, session.progress

    def members(self) -> Sequence[Member]:
        """Return the clients that are present or were in this process's time, as selection sees them."""
        known = self._sessions.keys() | self._absent_since.keys()
        return [member for client_id in sorted(known) if (member := self.member(client_id))]

    def member(self, client_id: str) -> Member | None:
        """Return one client as `members` would, or None when it is not among them."""
        is_known = client_id in self._sessions or client_id in self._absent_since
        if not is_known or client_id in self._expelled:
            return None
        record = self._clients[client_id]
        return Member(
            client_id,
            record.name,
            client_id not in self._absent_since,
            self._absent_since.get(client_id, 0.0),
            self._claims.get(client_id, ""),
            frozenset(record.learners),
        )

    def claim(self, client_ids: Sequence[str], run_id: str) -> None:
        """Keep clients for one run."""
        self._claims.update(dict.fromkeys(client_ids, run_id))

    def release(self, client_ids: Sequence[str]) -> None:
        """Let other runs select clients again."""
        for client_id in client_ids:
            self._claims.pop(client_id, None)
        self.changed.notify()

    def assign(self, client_id: str, assignment: Assignment) -> None:
        """Give a client a task, now or as soon as it comes back. For one that was expelled, it is declined."""
        if (detail := self._expelled.get(client_id)) is not None:
            _decline(client_id, assignment, detail)
            return
        self._assignments[client_id] = assignment
        self.diary.ask(client_id, assignment.task_id)
        if (session := self._sessions.get(client_id)) is not None and client_id not in self._absent_since:
            session.push(assignment.message)

    def withdraw(self, client_id: str, task_id: str, reason: str = "") -> None:
        """Forget a task; with a reason, tell the client to stop working on it."""
        assignment = self._assignments.get(client_id)
        if assignment is None or assignment.task_id != task_id:
            return
        del self._assignments[client_id]
        self.diary.end(client_id, task_id)
        if (session := self._sessions.get(client_id)) is not None:
            session.progress = None
            if reason:
                session.push(pb.JoinResponse(cancel_task=pb.CancelTask(task_id=task_id, reason=reason)))

    def dismiss(self, client_id: str, task_id: str, reason: str) -> None:
        """Tell a client that its task is over, whether it is asked for anything at the moment or not."""
        if (assignment := self._assignments.get(client_id)) is not None and assignment.task_id == task_id:
            del self._assignments[client_id]
        self.diary.end(client_id, task_id)
        if (session := self._sessions.get(client_id)) is not None:
            session.progress = None
            session.push(pb.JoinResponse(cancel_task=pb.CancelTask(task_id=task_id, reason=reason)))

    def take_progress(self, session: Session, progress: pb.Progress) -> None:
        """Note how far a client is with its task. Word of another task, or of a phase that does not exist, is ignored."""
        assignment = self._assignments.get(session.client.client_id)
        if assignment is not None and assignment.task_id == progress.task_id and progress.phase in pb.Phase.values():
            session.progress = progress
            self.diary.enter(session.client.client_id, progress.task_id, progress.phase)

    def take_download(self, session: Session) -> None:
        """Note that a client has the model of its task."""
        if (assignment := self._assignments.get(session.client.client_id)) is not None:
            self.diary.download(session.client.client_id, assignment.task_id)

    def take_reply(self, session: Session, reply: Reply) -> None:
        """Hand a reply to whoever asked. A reply to a task that is not the client's is ignored: it crossed its cancellation."""
        client_id = session.client.client_id
        assignment = self._assignments.get(client_id)
        if assignment is None or not assignment.is_answered_by(reply):
            return
        if isinstance(reply, pb.TaskFailed):
            with about(run_id=assignment.task.run_id, round_number=assignment.task.round):
                log.warning("client %s: did not deliver: %s", client_id, reply.detail)
        assignment.take_reply(client_id, reply)

    def end_all(self) -> None:
        """Say goodbye to every client, because the coordinator shuts down. It is said once: those who come later are not let in."""
        self.is_ending = True
        for session in self._sessions.values():
            session.end(pb.GOODBYE_REASON_SHUTDOWN, "the coordinator shuts down")

    def _forget(self, session: Session) -> None:
        self._sessions.pop(session.client.client_id, None)
        self._tokens.pop(session.token, None)


def _decline(client_id: str, assignment: Assignment, detail: str) -> None:
    declined = pb.TaskFailed(task_id=assignment.task_id, reason=pb.REFUSAL_REASON_CLIENT_ERROR, detail=detail)
    assignment.take_reply(client_id, declined)


def _event(kind: str, client: ClientRecord, detail: str = "") -> EventRecord:
    return EventRecord(time=time.time(), kind=kind, client_id=client.client_id, detail=detail or client.name)
