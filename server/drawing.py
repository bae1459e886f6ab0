"""Having the first model of a run drawn by a client: for a coordinator without torch.

The model follows from the run spec alone (law L8), so it does not matter who draws it, and nothing of anybody's data is in it. One client
is asked at a time. Who refuses, or brings what is no model, is not asked again; who drops off or is silent is, once the others have been.
"""

import asyncio
import logging
import time
from collections import Counter

from server.closing import Until, wait_until
from server.cohort import Cohort, Member
from server.errors import QuorumError, reason_name, reason_words
from server.first_model import FirstModel
from server.inbox import Binding, Inbox
from server.model import Model
from server.monitoring.observer import Observer
from server.monitoring.status import Status
from server.records import EventRecord, RunRecord
from server.store import Store
from server.tasks import task_group
from wire.errors import ChoralError
from wire.federation_pb2 import RefusalReason
from wire.memory import VectorPool

log = logging.getLogger(__name__)

_OF_THE_RUN = reason_name(RefusalReason.REFUSAL_REASON_CLIENT_ERROR)
"""Reason of a client that cannot do what the run spec asks for. Others are the client's own."""


class Drawing:
    """Asks clients for one run's first model. Made for it and used once."""

    def __init__(self, run: RunRecord, cohort: Cohort, store: Store, observer: Observer, status: Status) -> None:
        self._run = run
        self._rules = run.spec.cohort
        self._cohort = cohort
        self._store = store
        self._observer = observer
        self._status = status
        self._refusals: dict[str, str] = {}
        self._lost_counts: Counter[str] = Counter()
        self._problem = ""

    async def model(self) -> Model:
        """Return the first model. It is not stored yet.

        Raises:
            QuorumError: No client brought one. The run may be played again later.
            ChoralError: Every client that is present refuses, at least a quorum of them, and one because of the run spec: its sentence.
        """
        while True:
            client_id = await self._next_client()
            # Claimed without an await since the choice, so that no other run makes the same one.
            with self._cohort.claim([client_id], self._run.run_id):
                first = await self._ask(client_id)
            if first.model is not None:
                log.info("client %s has drawn the first model", client_id)
                return first.model

    async def _ask(self, client_id: str) -> FirstModel:
        """Ask one client, and note what came of it."""
        cohort, seconds, first = self._cohort, self._rules.deadline_seconds, FirstModel()
        binding = Binding(self._run.run_id, 0, b"", b"")
        inbox = Inbox(binding, [client_id], first, cohort.changed, VectorPool())
        async with task_group() as group:
            asking = group.create_task(cohort.draw(self._run.run_id, self._run.spec, client_id, inbox))
            with self._status.waiting("first models", lambda: inbox.count, 1, seconds):
                # No quorum: who has dropped off is waited for as long as one client of a round would be.
                await wait_until(inbox, Until(1, 0, seconds), cohort, self._rules)
            await inbox.close()
            asking.cancel()
        if not inbox.count:
            await self._note(client_id, inbox)
        return first

    async def _note(self, client_id: str, inbox: Inbox) -> None:
        """Note why a client has not brought the model."""
        self._observer.note_refusals(inbox.refusals)
        if client_id in inbox.unsettled:
            self._lost_counts[client_id] += 1
            detail = "dropped off or was silent"
        else:
            refusal = next(found for found in inbox.refusals if found.client_id == client_id)
            self._refusals[client_id] = detail = f"{reason_words(refusal.reason)}: {refusal.detail}"
            if refusal.reason == _OF_THE_RUN:
                self._problem = self._problem or refusal.detail
        log.warning("client %s: no first model, %s", client_id, detail)
        await self._store.append_event(
            EventRecord(
                time=time.time(),
                kind="first_model_missing",
                run_id=self._run.run_id,
                client_id=client_id,
                detail=detail,
            )
        )

    async def _next_client(self) -> str:
        """Wait until there is a client to ask, and return it: one that was not lost before, if there is one."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self._rules.wait_seconds
        with self._status.waiting("clients", lambda: len(self._candidates()), 1, self._rules.wait_seconds):
            while not (found := self._candidates()):
                has_quorum = len(self._refusals) >= self._rules.fewest
                if self._problem and has_quorum and not self._able():
                    raise ChoralError(f"First model: a client must be able to draw it, got: {self._problem}")
                if (seconds := give_up - loop.time()) <= 0:
                    refused = f" One said: {self._problem}" if self._problem else ""
                    raise QuorumError(
                        f"First model: a client must draw it within {self._rules.wait_seconds:g} s, got none.{refused}",
                        f"Start clients that can run {self._run.spec.learner.name!r}, then resume the run.",
                    )
                await self._cohort.changed.wait(seconds)
        return min(found, key=lambda client_id: (self._lost_counts[client_id], client_id))

    def _candidates(self) -> list[str]:
        return [
            member.client_id
            for member in self._able()
            if not member.claimed_by and self._lost_counts[member.client_id] <= self._rules.retries
        ]

    def _able(self) -> list[Member]:
        """Return who is present, has the learner and has not refused."""
        name = self._run.spec.learner.name
        return [
            member
            for member in self._cohort.members()
            if member.is_present
            and (member.learners is None or name in member.learners)
            and member.client_id not in self._refusals
        ]
