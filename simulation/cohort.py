"""What all engines share: clients that come, go, work and fall out on the simulation's clock.

An engine computes what clients bring, in the order in which they are to arrive; here each result waits for its moment. Who will arrive
when is drawn before anything is trained, so only what a round can use is trained.
"""

import asyncio
import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from client.data import LocalData
from client.training import Result, check_weighing
from models import Evaluation, build_learner
from server.cohort import Cohort, Member, Order
from server.inbox import Arrival, Ballot, Binding, Inbox
from server.masking.replies import Replies
from server.masking.session import Authority
from server.signal import Signal
from simulation.attendance import Attendance
from simulation.clock import next_tick
from simulation.population import Population
from wire.federation_pb2 import RefusalReason
from wire.seeds import derive_seed
from wire.spec import RunSpec

LOOK_SECONDS = 1.0
"""Those who wait for clients look again in whole multiples of this, or later, when the next client comes or goes."""


@dataclass(frozen=True, slots=True)
class Refused:
    """What a client says when it has nothing to bring."""

    client_id: str
    reason: RefusalReason
    detail: str


Outcome = Arrival | Refused


def outcome_of(client_id: str, binding: Binding, found: Result | Refused) -> Outcome:
    """Return what a client brings to a round as the inbox takes it."""
    if isinstance(found, Refused):
        return found
    return Arrival(
        client_id,
        binding,
        found.weight,
        found.example_count,
        found.metrics,
        found.train_seconds,
        found.vector,
    )


class SimulatedCohort(Cohort, ABC):
    """Clients without a network. Without `simulation` in the spec they are always present, and take no time.

    Attributes:
        authority: In whose name secure aggregation is held, by an engine that plays it.
    """

    authority: Authority | None = None

    def __init__(self, spec: RunSpec, sites: Mapping[str, LocalData]) -> None:
        """Note the clients, and check their data.

        Args:
            spec: The run that the cohort will work for.
            sites: Each client's data, by identity.

        Raises:
            DataError: Some client's data does not suit the learner.
            SimulationError: The spec's trace of clients cannot be used.
        """
        learner = build_learner(spec.learner, "meta")
        for data in sites.values():
            learner.check(data.training)
            if len(data.held_out):
                learner.check(data.held_out)
            if spec.secure is not None:
                check_weighing(spec, len(data.training), len(data.held_out))
        self._contribution_bytes = learner.contribution_layout.byte_count
        self._training_counts = {client_id: len(data.training) for client_id, data in sorted(sites.items())}
        self._held_out_counts = {client_id: len(data.held_out) for client_id, data in sites.items()}
        behaviour = spec.simulation
        client_ids = list(self._training_counts)
        self._population = Population(behaviour, client_ids, spec.seed) if behaviour else None
        self._attendance = Attendance(self._population, client_ids) if self._population else None
        self._always_there = {
            client_id: Member(client_id, client_id, is_present=True, absent_since=0.0) for client_id in client_ids
        }
        self._members = tuple(self._always_there.values())
        self._fallen_out: dict[str, float] = {}
        self._next_look: asyncio.TimerHandle | None = None
        self._changed = Signal()

    @property
    def changed(self) -> Signal:
        """Notified when a client settles, comes or goes."""
        return self._changed

    def members(self) -> Sequence[Member]:
        """Return all clients."""
        if self._attendance is None:
            return self._members
        now = asyncio.get_running_loop().time()
        self._look_again(self._attendance.next_turn(now))
        return self._attendance.members(now, self._fallen_out)

    def member(self, client_id: str) -> Member | None:
        """Return one client as `members` would, or None when there is no such client."""
        if self._attendance is None or client_id not in self._always_there:
            return self._always_there.get(client_id)
        return self._attendance.member(client_id, asyncio.get_running_loop().time(), self._fallen_out)

    @contextlib.contextmanager
    def claim(self, client_ids: Sequence[str], run_id: str) -> Iterator[None]:
        """Let those who fall out while the context is open come back at its end; there is no other run."""
        try:
            yield
        finally:
            self._fallen_out.clear()

    async def train(self, order: Order, client_ids: Sequence[str], inbox: Inbox) -> None:
        """Train the clients whose contributions will come, and bring each one to the inbox in its moment."""
        arrivals = self.arrivals(order, client_ids, inbox.binding, lambda: inbox.count)
        with self.followed(client_ids):
            async with contextlib.aclosing(arrivals) as outcomes:
                async for outcome in outcomes:
                    if isinstance(outcome, Refused):
                        inbox.refuse(outcome.client_id, outcome.reason, outcome.detail)
                    else:
                        await inbox.admit(outcome)
            await self.until_settled(inbox)

    async def evaluate(self, order: Order, client_ids: Sequence[str], ballot: Ballot) -> None:
        """Evaluate on each client's held-out data and bring each result to the ballot in its moment."""
        with self.followed(client_ids):
            async with contextlib.aclosing(self.measurements(order, client_ids)) as evaluations:
                async for client_id, found in evaluations:
                    if isinstance(found, Refused):
                        ballot.fail(client_id, found.reason, found.detail)
                    else:
                        ballot.record(client_id, found)
            await self.until_settled(ballot)

    def arrivals(
        self, order: Order, client_ids: Sequence[str], binding: Binding, count: Callable[[], int]
    ) -> AsyncGenerator[Outcome, None]:
        """Yield what clients bring, each in its moment; train no more than the round needs, of which it has `count`.

        Who falls out, and when, is known from this call on: what follows the clients must begin after it.
        """
        return self._arrivals(order, self._training_due(order, client_ids), binding, count)

    async def _arrivals(
        self, order: Order, due: Mapping[str, float], binding: Binding, count: Callable[[], int]
    ) -> AsyncGenerator[Outcome, None]:
        waiting = list(due)
        while waiting and (missing := order.enough - count()) > 0:
            wave, waiting = waiting[:missing], waiting[missing:]
            async with contextlib.aclosing(self._outcomes(order, wave, binding)) as outcomes:
                async for outcome in outcomes:
                    await _until(due[outcome.client_id])
                    yield outcome

    async def measurements(
        self, order: Order, client_ids: Sequence[str]
    ) -> AsyncGenerator[tuple[str, Evaluation | Refused], None]:
        """Yield what clients measure, each in its moment."""
        due = self._evaluation_due(order, client_ids)
        async with contextlib.aclosing(self._evaluations(order, list(due))) as evaluations:
            async for client_id, found in evaluations:
                await _until(due[client_id])
                yield client_id, found

    @abstractmethod
    def _outcomes(self, order: Order, client_ids: Sequence[str], binding: Binding) -> AsyncGenerator[Outcome, None]:
        """Yield what each client brings, in this order. Closed early, it ends what is being computed soon."""

    @abstractmethod
    def _evaluations(
        self, order: Order, client_ids: Sequence[str]
    ) -> AsyncGenerator[tuple[str, Evaluation | Refused], None]:
        """Yield what each client measures of `order.model`, in this order."""

    def close(self) -> None:
        """Give back what the engine holds."""

    async def until_settled(self, replies: Inbox | Ballot | Replies) -> None:
        """Wait for those who never answer, until the caller has waited enough."""
        while replies.unsettled:
            await self._changed.wait()

    def _training_due(self, order: Order, client_ids: Sequence[str]) -> dict[str, float]:
        """Return when each contribution arrives, earliest first; without those that never arrive, or too late."""
        now, model = asyncio.get_running_loop().time(), order.model
        spec, population = order.spec, self._population
        if population is None:
            return self._all_at_once(order, client_ids, now)
        due: dict[str, float] = {}
        for client_id in client_ids:
            seconds = population.train_seconds(
                client_id,
                order.round_number,
                order.attempt,
                self._training_counts[client_id],
                spec.local.epochs,
                model.vector.nbytes + self._contribution_bytes,
            )
            begin = population.next_presence(client_id, now)
            falls = population.dropout_seconds(client_id, order.round_number, order.attempt, seconds)
            if falls is not None:
                self._fallen_out[client_id] = begin + falls
            else:
                due[client_id] = population.next_presence(client_id, begin + seconds)
        return _earliest_first(due, now + spec.cohort.deadline_seconds)

    def _all_at_once(self, order: Order, client_ids: Sequence[str], now: float) -> dict[str, float]:
        """Return who comes first when nobody takes any time: a draw, in which the largest of those the round needs are trained first."""
        drawn = list(client_ids)
        if order.enough < len(drawn):
            seed, number = order.spec.seed, order.round_number
            drawn.sort(key=lambda client_id: derive_seed(seed, "arrive", number, client_id))
        needed = sorted(drawn[: order.enough], key=lambda client_id: (-self._training_counts[client_id], client_id))
        return dict.fromkeys([*needed, *drawn[order.enough :]], now)

    def _evaluation_due(self, order: Order, client_ids: Sequence[str]) -> dict[str, float]:
        now, population = asyncio.get_running_loop().time(), self._population
        if population is None:
            return dict.fromkeys(client_ids, now)
        due = {}
        for client_id in client_ids:
            count, size = self._held_out_counts[client_id], order.model.vector.nbytes
            seconds = population.evaluate_seconds(client_id, order.round_number, count, size)
            moment = population.next_presence(client_id, population.next_presence(client_id, now) + seconds)
            if moment < self._fallen_out.get(client_id, math.inf):
                due[client_id] = moment
        return _earliest_first(due, now + order.spec.cohort.deadline_seconds)

    @contextlib.contextmanager
    def followed(self, client_ids: Sequence[str]) -> Iterator[None]:
        """Notify whenever one of these clients comes, goes or falls out, while the context is open."""
        if self._population is None:
            yield
            return
        loop, timers = asyncio.get_running_loop(), {}

        def follow(client_id: str) -> None:
            assert self._population is not None
            now = loop.time()
            ends = [self._population.presence(client_id, now).until, self._fallen_out.get(client_id, math.inf)]
            if ahead := [end for end in ends if now < end < math.inf]:
                timers[client_id] = loop.call_at(min(ahead), turn, client_id)

        def turn(client_id: str) -> None:
            self._changed.notify()
            follow(client_id)

        for client_id in client_ids:
            follow(client_id)
        try:
            yield
        finally:
            for timer in timers.values():
                timer.cancel()

    def _look_again(self, turn: float) -> None:
        """Notify at `turn`, when the next client comes or goes. That follows from the time alone, not from who has looked before."""
        loop = asyncio.get_running_loop()
        if self._next_look is not None:
            self._next_look.cancel()
        if turn < math.inf:
            soonest = (loop.time() // LOOK_SECONDS + 1) * LOOK_SECONDS
            self._next_look = loop.call_at(max(turn, soonest), self._changed.notify)


def _earliest_first(due: Mapping[str, float], deadline: float) -> dict[str, float]:
    in_order = sorted(due.items(), key=lambda item: (item[1], item[0]))
    latest = next_tick(deadline)
    return {client_id: moment for client_id, moment in in_order if moment < math.inf and next_tick(moment) < latest}


async def _until(moment: float) -> None:
    """Wait for a moment on the loop's clock."""
    if (seconds := moment - asyncio.get_running_loop().time()) > 0:
        await asyncio.sleep(seconds)
