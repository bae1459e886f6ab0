"""One session of secure aggregation over the clients of a round, from its offer to the opened sum.

Every exchange closes as a round does: when all have answered, when who is left is gone and enough have, or at its deadline. Whatever
ends a session early opens nothing; the round is then started over, in a session of its own.

Source: CSA-1 (docs/secure-aggregation.md), section "Coordinator".
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.errors import SecureAggregationError
from privacy.secagg.coordinator import CoordinatorSession
from privacy.secagg.members import Problem
from privacy.secagg.session import Purpose, SessionParameters, digest_of
from server.closing import Settling, Until, wait_until
from server.cohort import Cohort, Exchange, Kind, Order
from server.errors import reason_name
from server.inbox import DETAIL_LENGTH, Binding, Inbox
from server.masking.audit import Audit
from server.masking.masked import MaskedSum
from server.masking.replies import Replies
from server.monitoring.status import Status
from server.records import AuditRecord, RefusalRecord
from server.tallies import shortfall
from server.tasks import task_group
from wire import federation_pb2 as pb
from wire.federation_pb2 import RefusalReason
from wire.logs import about
from wire.memory import VectorPool

log = logging.getLogger(__name__)

COMPLAINTS = 2
"""Members that must complain of a member's shares before it is left out of the round's next session."""


@dataclass(frozen=True, slots=True)
class Authority:
    """In whose name a coordinator holds sessions.

    Attributes:
        federation: The federation's name.
        key: The coordinator's signing key.
        problem_with: Tells what speaks against a client.
    """

    federation: str
    key: Ed25519PrivateKey = field(repr=False)
    problem_with: Problem


@dataclass(frozen=True, slots=True)
class Setting:
    """Where a session is held."""

    authority: Authority
    cohort: Cohort
    status: Status
    vectors: VectorPool


class SecureSession:
    """Holds one session. Made for it and used once.

    Attributes:
        refusals: Clients that were refused in it.
        audits: What clients have signed of their masked vectors, once the sum is closed; nothing without audit.
        problem: Why nothing was opened; empty if the sum was.
        is_opening: Whether clients were asked for what opens the sum: they take part in no other session of the round.
    """

    def __init__(self, order: Order, kind: Kind, session_number: int, body_size: int, setting: Setting) -> None:
        """Prepare a session.

        Args:
            order: What clients are asked for.
            kind: What they do first.
            session_number: Sessions that the round has had before.
            body_size: Coordinates of a contribution; 0 for an evaluation.
            setting: Where it is held.

        Raises:
            SecureAggregationError: There is no session with such parameters.
        """
        assert order.spec.secure is not None
        model = order.model
        purpose = Purpose(
            setting.authority.federation,
            f"{order.run_id}/{kind}",
            order.round_number,
            session_number,
            order.cohort_size,
            body_size,
            digest_of(model.sha256, model.layout.sha256, order.spec),
            order.spec.cohort.fewest if kind == "train" else 0,
        )
        self.refusals: list[RefusalRecord] = []
        self.audits: list[AuditRecord] = []
        self.problem = ""
        self.is_opening = False
        self._order = order
        self._kind = kind
        self._setting = setting
        self._session = CoordinatorSession(
            SessionParameters(purpose, order.spec.secure), setting.authority.key, setting.authority.problem_with
        )
        self._total = MaskedSum(self._session.parameters)
        self._names: dict[str, str] = {}

    async def play(self, client_ids: Sequence[str], before_opening: Callable[[], Awaitable[None]]) -> Inbox | None:
        """Hold the session with these clients.

        Args:
            client_ids: Who is asked.
            before_opening: Awaited when the sum is closed, before any client is asked for what opens it.

        Returns:
            The inbox with the opened sum and whose vectors are in it; None when the session ended early, and `problem` says why.
        """
        self._names = {self._setting.cohort.identity_of(client_id): client_id for client_id in client_ids}
        try:
            with self._setting.cohort.session(self._order, self._kind, self._session, client_ids) as exchange:
                return await self._play(exchange, client_ids, before_opening)
        except SecureAggregationError as error:
            log.warning("round %d: %s", self._order.round_number, error)
            self.problem = str(error)
            return None
        finally:
            self._blame()

    async def _play(
        self, exchange: Exchange, client_ids: Sequence[str], before_opening: Callable[[], Awaitable[None]]
    ) -> Inbox:
        session, rules = self._session, self._order.spec.cohort
        is_training = self._kind == "train"
        adverts = self._replies(client_ids, pb.Advertise, session.take_advertisement)
        enough = self._order.enough if is_training else len(client_ids)
        until = Until(enough, self._quorum, rules.deadline_seconds, is_needed=is_training)
        await self._wait(
            "updates" if is_training else "evaluations", adverts, exchange.offer(client_ids, adverts), until
        )
        adverts.close()
        self._check_quorum(adverts)

        roster = pb.JoinResponse(roster=await asyncio.to_thread(session.freeze))
        await self._ask(exchange, "shares", dict.fromkeys(session.clients, roster), pb.Shares, session.take_shares)
        deliveries = await asyncio.to_thread(session.deliver)
        messages = self._named({key: pb.JoinResponse(delivery=found) for key, found in deliveries.items()})
        inbox = self._inbox(list(messages))
        audit = Audit(self._kind, session, self._setting.cohort.identity_of) if session.parameters.spec.audit else None
        inbox.vet = audit.vet if audit else None
        until = Until(len(messages), session.fewest, rules.deadline_seconds)
        await self._wait("masked vectors", inbox, exchange.collect(messages, inbox), until)
        await inbox.close()
        self.refusals += inbox.refusals
        self._check_quorum(inbox)

        in_sum = [self._setting.cohort.identity_of(client_id) for client_id in inbox.contributions]
        survivors = pb.JoinResponse(survivors=await asyncio.to_thread(session.close_sum, in_sum))
        self.audits = [audit.record(inbox.contributions)] if audit else []
        asked = dict.fromkeys(session.survivors, survivors)
        await self._ask(exchange, "acknowledgements", asked, pb.SurvivorAck, session.take_ack)
        bundles = await asyncio.to_thread(session.bundles)
        self.is_opening = True
        await before_opening()
        shown = {key: pb.JoinResponse(ack_bundle=bundle) for key, bundle in bundles.items()}
        await self._ask(exchange, "openings", shown, pb.Unmask, session.take_unmask)
        await asyncio.to_thread(self._total.open, session)
        return inbox

    @property
    def _quorum(self) -> int:
        """Fewest contributions that the round may close with; an evaluation may have any number."""
        return self._order.spec.cohort.fewest if self._kind == "train" else 0

    def _check_quorum(self, replies: Settling) -> None:
        """Check that the round may still close: a sum that is opened and not used cannot be had again.

        Raises:
            SecureAggregationError: Fewer are left than its quorum.
        """
        if replies.count < self._quorum:
            raise SecureAggregationError(
                shortfall(self._quorum, replies.count, len(self._names), self.refusals, len(replies.unsettled))
            )

    def _inbox(self, sharers: Sequence[str]) -> Inbox:
        order, setting = self._order, self._setting
        binding = Binding(order.run_id, order.round_number, order.model.sha256, self._session.session_id)
        return Inbox(binding, sharers, self._total, setting.cohort.changed, setting.vectors)

    def _replies(self, client_ids: Sequence[str], kind: type, take: Callable[[str, Any], None]) -> Replies:
        cohort = self._setting.cohort
        return Replies(
            client_ids,
            kind,
            lambda client_id, message: take(cohort.identity_of(client_id), message),
            self._refuse,
            cohort.changed,
        )

    def _named(self, messages: Mapping[str, pb.JoinResponse]) -> dict[str, pb.JoinResponse]:
        """Return messages by the clients' names here instead of their identities."""
        return {self._names[identity]: message for identity, message in messages.items()}

    async def _ask(
        self,
        exchange: Exchange,
        what: str,
        messages: Mapping[str, pb.JoinResponse],
        kind: type,
        take: Callable[[str, Any], None],
    ) -> None:
        assert self._order.spec.secure is not None
        messages = self._named(messages)
        replies = self._replies(list(messages), kind, take)
        # Fewer may open a sum than there must be in it, so that one is not given up while clients may still answer.
        stage_seconds = self._order.spec.secure.stage_seconds
        until = Until(len(messages), self._session.fewest, stage_seconds, is_needed=kind is pb.Shares)
        await self._wait(what, replies, exchange.ask(messages, replies), until)
        replies.close()

    async def _wait(self, what: str, replies: Settling, asking: Coroutine[Any, Any, None], until: Until) -> None:
        """Let an exchange go on until it closes."""
        setting = self._setting
        async with task_group() as group:
            task = group.create_task(asking)
            with setting.status.waiting(what, lambda: replies.count, until.enough, until.seconds):
                await wait_until(replies, until, setting.cohort, self._order.spec.cohort)
            task.cancel()

    def _refuse(self, client_id: str, reason: RefusalReason, detail: str) -> None:
        with about(client_id=client_id):
            log.warning("client %s: refused, %s", client_id, detail)
        record = RefusalRecord(client_id=client_id, reason=reason_name(reason), detail=detail[:DETAIL_LENGTH])
        self.refusals.append(record)

    def _blame(self) -> None:
        """Refuse members whose shares were wrong: the round's next session is held without them."""
        malformed = RefusalReason.REFUSAL_REASON_MALFORMED
        for identity, count in sorted(self._session.complaints.items()):
            if count >= COMPLAINTS:
                detail = f"shares must open for their holders, {count} could not open theirs"
                self._refuse(self._names[identity], malformed, detail)
        for identity in sorted(self._session.false_holders):
            detail = "what opens a sum must fit the others' shares and its giver's own commitment, it does not"
            self._refuse(self._names[identity], malformed, detail)
