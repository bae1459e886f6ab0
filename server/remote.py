"""The cohort of a deployed run: clients behind gRPC sessions."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

from models import Evaluation
from server.cohort import Cohort, Member, Order
from server.inbox import Ballot, Inbox
from server.sessions import Assignment, Reply, Sessions
from server.signal import Signal
from server.transfers import Transfers
from wire import federation_pb2 as pb


class RemoteCohort(Cohort):
    """Pushes tasks over sessions; contributions come back by upload, results of evaluations over the session."""

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

    async def train(self, order: Order, client_ids: Sequence[str], inbox: Inbox) -> None:
        """Push the training task, and take uploads until every client has settled."""

        def take_reply(client_id: str, reply: Reply) -> None:
            if isinstance(reply, pb.TaskFailed):
                inbox.refuse(client_id, _client_reason(reply), reply.detail)

        task = _task(order, "train")
        grid = order.grid
        task.train.CopyFrom(pb.TrainTask(coordinate_bound=grid.coordinate_bound, weight_cap=grid.weight_cap))
        with (
            self._transfers.publish(order.model),
            self._transfers.receive(inbox),
            self._assigned(client_ids, task, take_reply),
        ):
            await self._until_settled(inbox, task.task_id)

    async def evaluate(self, order: Order, client_ids: Sequence[str], ballot: Ballot) -> None:
        """Push the evaluation task, and take results until every client has settled."""

        def take_reply(client_id: str, reply: Reply) -> None:
            if isinstance(reply, pb.TaskFailed):
                ballot.fail(client_id, reply.detail)
            else:
                ballot.record(client_id, Evaluation(reply.example_count, dict(reply.metrics)))

        task = _task(order, "evaluate")
        task.evaluate.SetInParent()
        with self._transfers.publish(order.model), self._assigned(client_ids, task, take_reply):
            await self._until_settled(ballot, task.task_id)

    @contextlib.contextmanager
    def _assigned(
        self, client_ids: Sequence[str], task: pb.Task, take_reply: Callable[[str, Reply], None]
    ) -> Iterator[None]:
        for client_id in client_ids:
            self._sessions.assign(client_id, Assignment(task, take_reply))
        try:
            yield
        finally:
            for client_id in client_ids:
                self._sessions.withdraw(client_id, task.task_id, "the round has closed")

    async def _until_settled(self, replies: Inbox | Ballot, task_id: str) -> None:
        asked = unsettled = replies.unsettled
        while unsettled:
            await self.changed.wait()
            unsettled = replies.unsettled
            for client_id in asked - unsettled:
                self._sessions.withdraw(client_id, task_id)
            asked = unsettled


def _task(order: Order, kind: str) -> pb.Task:
    model = order.model
    return pb.Task(
        task_id=f"{order.run_id}/{order.round_number}/{order.attempt}/{kind}",
        run_id=order.run_id,
        round=order.round_number,
        attempt=order.attempt,
        # How simulated clients behave is nothing to real ones.
        spec_json=order.spec.model_copy(update={"simulation": None}).canonical_json(),
        base=pb.ModelReference(
            sha256=model.sha256, layout_sha256=model.layout.sha256, total_bytes=model.layout.byte_count
        ),
        cohort_size=order.cohort_size,
    )


def _client_reason(reply: pb.TaskFailed) -> pb.RefusalReason:
    reported = (
        pb.REFUSAL_REASON_CLIENT_POLICY,
        pb.REFUSAL_REASON_CLIENT_DATA,
        pb.REFUSAL_REASON_CLIENT_ERROR,
    )
    return reply.reason if reply.reason in reported else pb.REFUSAL_REASON_CLIENT_ERROR
