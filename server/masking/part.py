"""The masked part of a round: its contributions, and then its evaluation, each in a session of secure aggregation of its own."""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from server.cohort import Cohort, Kind, Order
from server.inbox import Inbox, failures_of
from server.masking.masked import MaskedSum
from server.masking.session import Authority, SecureSession, Setting
from server.monitoring.observer import Observer
from server.monitoring.status import Status
from server.records import EventRecord, RoundRecord
from server.store import Store
from wire.errors import ChoralError
from wire.memory import VectorPool

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Masking:
    """Holds the sessions of a run's rounds."""

    cohort: Cohort
    store: Store
    authority: Authority | None
    status: Status
    observer: Observer

    def check(self) -> None:
        """Check that sessions can be held. Raises `ChoralError` for a coordinator without a roster."""
        if self.authority is None:
            raise ChoralError(
                "Run spec: privacy.secure_aggregation must have a coordinator with a roster, this one has none. "
                "Start it with --roster."
            )

    async def train(
        self, order: Order, record: RoundRecord, contribution_size: int
    ) -> tuple[RoundRecord, Inbox | None, str]:
        """Ask the clients. Return the record with who was refused, the inbox with the opened sum, if there is one, and what it may lack."""
        session, record = await self._session(order, "train", record, contribution_size)

        async def note_opening() -> None:
            await self.store.put_round(_audited(record, session).with_(is_opening=True))

        inbox = await self._play(session, "train", record.selected, note_opening)
        is_opening = record.is_opening or session.is_opening
        record = record.with_(refusals=[*record.refusals, *session.refusals], is_opening=is_opening)
        return _audited(record, session), inbox, session.problem

    async def evaluate(
        self, order: Order, record: RoundRecord, client_ids: Sequence[str]
    ) -> tuple[RoundRecord, dict[str, float]]:
        """Return the metrics of the order's model. A session that opens nothing costs the round its evaluation, not its model."""
        session, record = await self._session(order, "evaluate", record, 0)

        async def note_audits() -> None:
            """Let clients open: an evaluation that is lost is not held again."""
            if session.audits:
                await self.store.put_round(_audited(record, session))

        inbox = await self._play(session, "evaluate", client_ids, note_audits)
        silent = (
            set()
            if inbox is None
            else {*client_ids} - {*inbox.contributions} - {one.client_id for one in session.refusals}
        )
        record = _audited(record, session).with_(evaluation_failures=failures_of(session.refusals, silent))
        if inbox is None:
            text = f"Round {record.number}: not evaluated. {session.problem}"
            log.warning("%s", text)
            event = EventRecord(time=time.time(), kind="evaluation_lost", run_id=order.run_id, detail=text)
            await self.store.append_event(event)
            return record, {}
        total = inbox.take_total()
        assert isinstance(total, MaskedSum)
        return record, dict(total.head.metrics)

    async def _play(
        self,
        session: SecureSession,
        kind: Kind,
        client_ids: Sequence[str],
        before_opening: Callable[[], Awaitable[None]],
    ) -> Inbox | None:
        inbox = await session.play(client_ids, before_opening)
        self.observer.note_refusals(session.refusals)
        if inbox is None:
            self.observer.note_lost_session(kind)
        return inbox

    async def _session(
        self, order: Order, kind: Kind, record: RoundRecord, body_size: int
    ) -> tuple[SecureSession, RoundRecord]:
        """Prepare a session, which is counted before any client hears of it: no two of a round have the same number."""
        assert self.authority is not None
        number = record.session_count
        record = record.with_(session_count=number + 1)
        await self.store.put_round(record)
        # Masked vectors are a little longer than models: their memory serves no model afterwards, and is given back.
        setting = Setting(self.authority, self.cohort, self.status, VectorPool())
        return SecureSession(order, kind, number, body_size, setting), record


def _audited(record: RoundRecord, session: SecureSession) -> RoundRecord:
    """Return a round's record with what clients signed in a session."""
    return record.with_(audits=[*record.audits, *session.audits])
