"""The cohort of a deployed run: clients behind gRPC sessions."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from privacy.secagg.coordinator import CoordinatorSession
from server.clients.sessions import Assignment, Reply, Sessions
from server.clients.transfers import Transfers
from server.cohort import Cohort, Exchange, Kind, Member, Order
from server.inbox import Ballot, Inbox
from server.masking.replies import Replies
from server.records import Moments
from server.signal import Signal
from wire import federation_pb2 as pb
from wire.evaluation import Evaluation
from wire.spec import RunSpec


class RemoteCohort(Cohort):
    """Pushes tasks over sessions; contributions come back by upload, results of evaluations over the session."""

    speaks_secagg = True

    def __init__(self, sessions: Sessions, transfers: Transfers) -> None:
        self._sessions = sessions
        self._transfers = transfers

    @property
    def changed(self) -> Signal:
        """Notified when a client comes, goes, settles or is released."""
        return self._sessions.changed

    def members(self) -> Sequence[Member]:
        """Return the clients that are present or were lately."""
        return self._sessions.members()

    def member(self, client_id: str) -> Member | None:
        """Return one client that is present or was lately."""
        return self._sessions.member(client_id)

    @contextlib.contextmanager
    def claim(self, client_ids: Sequence[str], run_id: str) -> Iterator[None]:
        """Keep clients for one run while the context is open."""
        self._sessions.claim(client_ids, run_id)
        try:
            yield
        finally:
            self._sessions.release(client_ids)
            self._sessions.diary.forget(run_id)

    def moments(self, run_id: str) -> dict[str, Moments]:
        """Return when the clients of a run's open round did what."""
        return self._sessions.diary.moments(run_id)

    async def train(self, order: Order, client_ids: Sequence[str], inbox: Inbox) -> None:
        """Push the training task, and take uploads until every client has settled."""
        task = _task(order, "train")
        grid = order.grid
        task.train.CopyFrom(pb.TrainTask(coordinate_bound=grid.coordinate_bound, weight_cap=grid.weight_cap))
        with self._transfers.publish(order.model):
            await self._receive(task, client_ids, inbox)

    async def draw(self, run_id: str, spec: RunSpec, client_id: str, inbox: Inbox) -> None:
        """Push the task for a first model, and take the upload."""
        task = pb.Task(task_id=f"{run_id}/first-model", run_id=run_id, spec_json=_spec_json(spec), cohort_size=1)
        task.first_model.SetInParent()
        await self._receive(task, [client_id], inbox)

    async def evaluate(self, order: Order, client_ids: Sequence[str], ballot: Ballot) -> None:
        """Push the evaluation task, and take results until every client has settled."""

        def take_reply(client_id: str, reply: Reply) -> None:
            if isinstance(reply, pb.TaskFailed):
                ballot.fail(client_id, _client_reason(reply), reply.detail)
                self._sessions.diary.fail(client_id, order.run_id, _client_reason(reply), reply.detail)
            elif isinstance(reply, pb.EvaluateResult):
                ballot.record(client_id, Evaluation(reply.example_count, dict(reply.metrics)))

        task = _task(order, "evaluate")
        task.evaluate.SetInParent()
        with self._transfers.publish(order.model), self._assigned(client_ids, task, take_reply):
            await _until_settled(ballot, task.task_id, self._sessions)

    @contextlib.contextmanager
    def session(
        self, order: Order, kind: Kind, session: CoordinatorSession, client_ids: Sequence[str]
    ) -> Iterator[Exchange]:
        """Hold a session of secure aggregation; whoever comes back within it is sent what it was asked last."""
        task = _task(order, kind)
        # Each session of a round is a task of its own.
        task.task_id = f"{order.run_id}/{order.round_number}/session-{session.offer.attempt}/{kind}"
        task.offer.CopyFrom(session.offer)
        getattr(task, kind).SetInParent()
        exchange = _RemoteExchange(self._sessions, self._transfers, task, session.session_id)
        with self._transfers.publish(order.model):
            try:
                yield exchange
            finally:
                for client_id in client_ids:
                    self._sessions.dismiss(client_id, task.task_id, "the session has ended")

    async def _receive(self, task: pb.Task, client_ids: Sequence[str], inbox: Inbox) -> None:
        """Push a task that is answered by an upload, until every client has settled."""

        def take_reply(client_id: str, reply: Reply) -> None:
            if isinstance(reply, pb.TaskFailed):
                inbox.refuse(client_id, _client_reason(reply), reply.detail)
                self._sessions.diary.refuse(client_id, task.run_id, _client_reason(reply), reply.detail)

        with self._transfers.receive(inbox), self._assigned(client_ids, task, take_reply):
            await _until_settled(inbox, task.task_id, self._sessions)

    @contextlib.contextmanager
    def _assigned(
        self, client_ids: Sequence[str], task: pb.Task, take_reply: Callable[[str, Reply], None]
    ) -> Iterator[None]:
        for client_id in client_ids:
            self._sessions.assign(client_id, Assignment.of(task, take_reply))
        try:
            yield
        finally:
            for client_id in client_ids:
                self._sessions.withdraw(client_id, task.task_id, "its round waits for it no longer")


class _RemoteExchange(Exchange):
    """The exchanges of one session, with clients behind gRPC sessions."""

    def __init__(self, sessions: Sessions, transfers: Transfers, task: pb.Task, session_id: bytes) -> None:
        self._sessions = sessions
        self._transfers = transfers
        self._task = task
        self._session_id = session_id

    async def offer(self, client_ids: Sequence[str], replies: Replies) -> None:
        await self.ask(dict.fromkeys(client_ids, pb.JoinResponse(task=self._task)), replies)

    async def ask(self, messages: Mapping[str, pb.JoinResponse], replies: Replies) -> None:
        def take_reply(client_id: str, reply: Reply) -> None:
            if not isinstance(reply, pb.TaskFailed):
                replies.record(client_id, reply)
            elif reply.reason == pb.REFUSAL_REASON_UNSPECIFIED:
                replies.drop(client_id)
            else:
                replies.refuse(client_id, _client_reason(reply), reply.detail)
                self._note_refusal(client_id, reply)

        self._assign(messages, take_reply)
        await _until_settled(replies, self._task.task_id, self._sessions)

    async def collect(self, messages: Mapping[str, pb.JoinResponse], inbox: Inbox) -> None:
        def take_reply(client_id: str, reply: Reply) -> None:
            if isinstance(reply, pb.TaskFailed) and reply.reason == pb.REFUSAL_REASON_UNSPECIFIED:
                inbox.drop(client_id)
            elif isinstance(reply, pb.TaskFailed):
                inbox.refuse(client_id, _client_reason(reply), reply.detail)
                self._note_refusal(client_id, reply)

        with self._transfers.receive(inbox):
            self._assign(messages, take_reply)
            await _until_settled(inbox, self._task.task_id, self._sessions)

    def _note_refusal(self, client_id: str, reply: pb.TaskFailed) -> None:
        diary = self._sessions.diary
        note = diary.refuse if self._task.HasField("train") else diary.fail
        note(client_id, self._task.run_id, _client_reason(reply), reply.detail)

    def _assign(self, messages: Mapping[str, pb.JoinResponse], take_reply: Callable[[str, Reply], None]) -> None:
        for client_id, message in messages.items():
            self._sessions.assign(client_id, Assignment(self._task, message, take_reply, self._session_id))


async def _until_settled(replies: Inbox | Ballot | Replies, task_id: str, sessions: Sessions) -> None:
    asked = replies.unsettled
    while asked:
        try:
            await sessions.changed.wait()
        finally:
            # Also where the round closes, and ends this wait, in the moment in which the last one settles.
            unsettled = replies.unsettled
            for client_id in asked - unsettled:
                sessions.withdraw(client_id, task_id)
            asked = unsettled


def _task(order: Order, kind: str) -> pb.Task:
    model = order.model
    return pb.Task(
        task_id=f"{order.run_id}/{order.round_number}/{order.attempt}/{kind}",
        run_id=order.run_id,
        round=order.round_number,
        attempt=order.attempt,
        spec_json=_spec_json(order.spec),
        base=pb.ModelReference(
            sha256=model.sha256, layout_sha256=model.layout.sha256, total_bytes=model.layout.byte_count
        ),
        cohort_size=order.cohort_size,
    )


def _spec_json(spec: RunSpec) -> str:
    # How simulated clients behave is nothing to real ones.
    return spec.model_copy(update={"simulation": None}).canonical_json()


def _client_reason(reply: pb.TaskFailed) -> pb.RefusalReason:
    reported = (
        pb.REFUSAL_REASON_CLIENT_POLICY,
        pb.REFUSAL_REASON_CLIENT_DATA,
        pb.REFUSAL_REASON_CLIENT_ERROR,
    )
    return reply.reason if reply.reason in reported else pb.REFUSAL_REASON_CLIENT_ERROR
