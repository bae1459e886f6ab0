"""The rounds of one run: select, train, aggregate, apply, evaluate, commit. Deployed and simulated runs differ in their `Cohort` alone.

State is durable before it is announced: a round is stored open, with its clients, before they are asked; its model is a renamed file
before the round is committed in one transaction. (The store and the checkpoints of a simulation hold that back for a moment, and the news
with it.) A run that is taken up again, after a pause or a crash, asks the clients of its open round once more. They draw the same random
numbers, so they bring the same contributions, and the run ends with the model it would have had (law L3).

Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017, Algorithm 1;
Bonawitz et al., "Towards Federated Learning at Scale: System Design", MLSys 2019, section 2.2 (over-selection, quorum, deadline).
https://arxiv.org/abs/1602.05629  https://arxiv.org/abs/1902.01046
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from models import Examples
from server.aggregation import WeightedMean
from server.checkpoints import Checkpoints
from server.cohort import Cohort, Order
from server.errors import QuorumError
from server.inbox import Ballot, Binding, Inbox, accepted_metrics, weighted_means
from server.model import Model, ModelShop
from server.records import EventRecord, RoundRecord, RoundState, RunRecord, RunState
from server.selection import Choice, choose
from server.status import Status
from server.store import Store
from server.tasks import task_group, to_its_end
from wire.errors import ChoralError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Site:
    """What the rounds of a run need of the coordinator.

    Attributes:
        folder: Where the run's checkpoints lie.
        own_data: The coordinator's own examples, for `evaluate.on: coordinator`.
        checkpoints: Makes what keeps them there.
    """

    store: Store
    cohort: Cohort
    folder: Path
    own_data: Examples | None = None
    checkpoints: Callable[[Path], Checkpoints] = Checkpoints


class Rounds:
    """Plays a run from its last committed round to its end. One task owns it and is the only writer of the run's records."""

    def __init__(self, run: RunRecord, site: Site, status: Status) -> None:
        self._run = run
        self._spec = run.spec
        self._site = site
        self._checkpoints = site.checkpoints(site.folder)
        self._status = status
        self._phase_seconds: dict[str, float] = {}
        self._total: WeightedMean | None = None
        self._has_warned = False

    async def play(self) -> RunRecord:
        """Run rounds until the last or until the spec's metric is reached, and return the finished run.

        Cancelling it is safe at any moment: the run then stands at its last committed round.

        Raises:
            QuorumError: A round could not get enough contributions. The run may be played again later.
            StoreError: Something could not be stored. The run stands at its last committed round.
            ChoralError: The spec asks for what this coordinator does not have.
        """
        if self._spec.evaluate.on == "coordinator" and self._site.own_data is None:
            raise ChoralError(
                "Run spec: evaluate.on must be 'clients' on a coordinator without data of its own, got 'coordinator'."
            )
        self._status.enter("prepare", 0)
        shop = await asyncio.to_thread(ModelShop, self._spec)
        model = await asyncio.to_thread(self._last_model, shop)
        # A crash may have come between the last commit and the end of the run.
        reason = self._reason_to_end(await self._last_metrics())
        left_open = await self._left_open()
        while not reason and self._run.round_number < self._spec.rounds:
            record, left_open = left_open or self._new_round(), None
            model, metrics = await self._round(record, model, shop)
            reason = self._reason_to_end(metrics)
        self._status.enter("finished", 0)
        finished = self._run.with_(state=RunState.FINISHED, reason=reason, ended_time=time.time())
        await self._site.store.put_run(finished, self._event("run_finished", reason))
        return finished

    async def _round(self, record: RoundRecord, model: Model, shop: ModelShop) -> tuple[Model, dict[str, float]]:
        """Play one round to its commit; start it over while it stays below its quorum."""
        cohort, number = self._spec.cohort, record.number
        self._phase_seconds = dict(record.phase_seconds)
        while True:
            with contextlib.ExitStack() as claims:
                try:
                    record = await self._gather(record, claims)
                except QuorumError:
                    # The time that was spent waiting counts when the run is resumed.
                    await self._site.store.put_round(record.with_(phase_seconds=dict(self._phase_seconds)))
                    raise
                order = Order(self._run.run_id, number, record.attempt, self._spec, model, len(record.selected))
                inbox = await self._train(order, record.selected, shop)
                record = record.with_(refusals=[*record.refusals, *inbox.refusals])
                if len(inbox.contributions) >= cohort.fewest:
                    return await self._finish_round(record, order, inbox, shop)
            record = await self._start_over(record, inbox)

    async def _left_open(self) -> RoundRecord | None:
        """Return the round that a crash or pause left open."""
        return next(iter(await self._site.store.rounds(self._run.run_id, after=self._run.round_number, limit=1)), None)

    def _new_round(self) -> RoundRecord:
        number = self._run.round_number + 1
        return RoundRecord(run_id=self._run.run_id, number=number, state=RoundState.OPEN, started_time=time.time())

    async def _gather(self, record: RoundRecord, claims: contextlib.ExitStack) -> RoundRecord:
        """Claim the clients that an earlier attempt chose, or new ones, whose names are stored before they are asked."""
        self._status.enter("select", record.number)
        with self._timed("select"):
            if record.selected and await self._are_free(record.selected):
                claims.enter_context(self._site.cohort.claim(record.selected, self._run.run_id))
                return record
            selected = await self._select(record)
            # Claimed without an await since the choice, so that no other run makes the same one.
            claims.enter_context(self._site.cohort.claim(selected, self._run.run_id))
        record = record.with_(selected=sorted(selected), phase_seconds=dict(self._phase_seconds))
        await self._site.store.put_round(record)
        return record

    async def _are_free(self, client_ids: Sequence[str]) -> bool:
        """Wait until no other run has any of these clients; tell whether that came about."""
        loop, seconds = asyncio.get_running_loop(), self._spec.cohort.wait_seconds
        give_up = loop.time() + seconds

        def free_count() -> int:
            taken = {member.client_id for member in self._site.cohort.members() if member.claimed_by}
            return len(set(client_ids) - taken)

        with self._status.waiting("clients", free_count, len(client_ids), seconds):
            while free_count() < len(client_ids) and (now := loop.time()) < give_up:
                await self._site.cohort.changed.wait(give_up - now)
        return free_count() == len(client_ids)

    async def _select(self, record: RoundRecord) -> Sequence[str]:
        """Wait until enough clients are present, and choose among them.

        Who has just dropped off keeps its place; but among many some always have, so that once there are enough others, nobody is waited
        for longer than one client may take to come back.
        """
        loop, cohort = asyncio.get_running_loop(), self._spec.cohort
        refused = {refusal.client_id for refusal in record.refusals}
        back_by = give_up = loop.time() + cohort.wait_seconds

        def choice_now() -> Choice:
            members, now = self._site.cohort.members(), loop.time()
            if now >= back_by:
                members = [member for member in members if member.is_present]
            return choose(members, self._spec, record.number, now, refused)

        choice = choice_now()
        with self._status.waiting("clients", lambda: len(choice_now().present), choice.want, cohort.wait_seconds):
            while not choice.is_ready and (now := loop.time()) < give_up:
                if choice.has_others:
                    back_by = min(back_by, now + cohort.return_seconds)
                until = min(choice.back_by, back_by if now < back_by else give_up)
                await self._site.cohort.changed.wait(max(0.0, until - now))
                choice = choice_now()
        if not choice.is_ready and len(choice.present) < cohort.fewest:
            raise QuorumError(
                f"Round {record.number}: at least {cohort.fewest} clients must be present within {cohort.wait_seconds:g} s, "
                f"got {len(choice.present)}.",
                f"Start more clients that can run {self._spec.learner.name!r}, then resume the run.",
            )
        return choice.present

    async def _train(self, order: Order, selected: list[str], shop: ModelShop) -> Inbox:
        """Ask the clients and return the inbox, closed, with what they brought."""
        self._status.enter("train", order.round_number)
        layout = shop.contribution_layout
        binding = Binding(order.run_id, order.round_number, order.model.sha256, layout.sha256)
        inbox = Inbox(binding, selected, self._empty_sum(order, layout.size), self._site.cohort.changed, shop.vectors)
        enough = order.enough
        with self._timed("train"):
            async with task_group() as group:
                asking = group.create_task(self._site.cohort.train(order, selected, inbox))
                with self._status.waiting(
                    "updates", lambda: len(inbox.contributions), enough, self._spec.cohort.deadline_seconds
                ):
                    await self._until_closed(inbox, enough)
                await inbox.close()
                asking.cancel()
        return inbox

    def _empty_sum(self, order: Order, size: int) -> WeightedMean:
        """Return the sum of the round before, cleared, if it suits."""
        if self._total is None or self._total.grid != order.grid:
            self._total = self._site.cohort.empty_sum(order.grid, size)
        else:
            self._total.clear()
        return self._total

    async def _until_closed(self, inbox: Inbox | Ballot, enough: int) -> None:
        """Wait until the round may close: enough are in, nobody is left, the quorum is in and the rest is gone, or the deadline."""
        loop, cohort = asyncio.get_running_loop(), self._spec.cohort
        deadline = loop.time() + cohort.deadline_seconds
        while True:
            unsettled = inbox.unsettled
            # An evaluation has no quorum: who cannot evaluate does not cost the others' results.
            is_possible = isinstance(inbox, Ballot) or inbox.count + len(unsettled) >= cohort.fewest
            if inbox.count >= enough or not unsettled or not is_possible:
                return
            close_at = deadline
            if inbox.count >= cohort.fewest:
                close_at = min(deadline, self._back_by(unsettled))
            if (seconds := close_at - loop.time()) <= 0:
                return
            await self._site.cohort.changed.wait(seconds)

    def _back_by(self, client_ids: frozenset[str]) -> float:
        """Return when the last of these clients is given up if none comes back; infinite while one of them is present."""
        back_by = 0.0
        for client_id in client_ids:
            member = self._site.cohort.member(client_id)
            if member is not None and member.is_present:
                return float("inf")
            if member is not None:
                back_by = max(back_by, member.absent_since + self._spec.cohort.return_seconds)
        return back_by

    async def _start_over(self, record: RoundRecord, inbox: Inbox) -> RoundRecord:
        """Return the round's next attempt, or give up. Either is stored, so that a crash here changes nothing."""
        cohort = self._spec.cohort
        is_last = record.attempt >= cohort.retries
        attempt = 0 if is_last else record.attempt + 1
        again = record.with_(selected=[], attempt=attempt, phase_seconds=dict(self._phase_seconds))
        await self._site.store.put_round(again)
        if is_last:
            raise QuorumError(
                f"Round {record.number}: quorum must be {cohort.fewest} contributions, got {len(inbox.contributions)} of "
                f"{len(record.selected)} asked, {_summary(inbox)}.",
                "Mend the clients, then resume the run.",
            )
        return again

    async def _finish_round(
        self, record: RoundRecord, order: Order, inbox: Inbox, shop: ModelShop
    ) -> tuple[Model, dict[str, float]]:
        """Turn the sum into the next model, evaluate it, and commit the round."""
        self._status.enter("apply", record.number)
        with self._timed("apply"):
            total = inbox.take_total()
            model = await asyncio.to_thread(
                lambda: shop.next(order.model, total.mean(), total.weight_total, record.number)
            )
        parts = sorted(inbox.contributions.items())
        record = record.with_(
            state=RoundState.COMMITTED,
            contributions=[part for _, part in parts],
            model_sha256=model.sha256.hex(),
        )
        evaluation = await self._evaluate(order, model, self._evaluators(record, order, inbox), shop)
        metrics = _training_means(record) | evaluation | _refusal_counts(record)
        await self._commit(record.with_(metrics=metrics), model, *self._warnings(record.number, metrics))
        return model, metrics

    def _evaluators(self, record: RoundRecord, order: Order, inbox: Inbox) -> list[str]:
        """Return who is asked to evaluate: nobody who was refused, or for whom the round has waited in vain already."""
        left_out = {refusal.client_id for refusal in record.refusals}
        # A client may contribute although something else that it brought was refused, as after a crash.
        left_out -= inbox.contributions.keys()
        if inbox.count < order.enough:
            left_out |= inbox.unsettled
        return [client_id for client_id in record.selected if client_id not in left_out]

    async def _evaluate(
        self, order: Order, model: Model, client_ids: Sequence[str], shop: ModelShop
    ) -> dict[str, float]:
        """Return the metrics of the new model on data that was not trained on, if this round is one to evaluate."""
        number = order.round_number
        if not self._is_evaluated(number):
            return {}
        self._status.enter("evaluate", number)
        with self._timed("evaluate"):
            if self._site.own_data is not None and self._spec.evaluate.on == "coordinator":
                result = await asyncio.to_thread(shop.evaluate, model, self._site.own_data)
                return accepted_metrics(result.metrics)
            ballot = Ballot(client_ids, self._site.cohort.changed)
            order = Order(order.run_id, number, order.attempt, self._spec, model, order.cohort_size)
            async with task_group() as group:
                asking = group.create_task(self._site.cohort.evaluate(order, client_ids, ballot))
                with self._status.waiting(
                    "evaluations", lambda: ballot.count, len(client_ids), self._spec.cohort.deadline_seconds
                ):
                    await self._until_closed(ballot, len(client_ids))
                asking.cancel()
            return ballot.means()

    def _is_evaluated(self, number: int) -> bool:
        every = self._spec.evaluate.every
        return every > 0 and (number % every == 0 or number == self._spec.rounds)

    def _warnings(self, number: int, metrics: Mapping[str, float]) -> list[EventRecord]:
        """Say, once, that the metric by which the run should stop is not among those of an evaluated round."""
        goal = self._spec.stop_when
        if goal is None or self._has_warned or goal.metric in metrics or not self._is_evaluated(number):
            return []
        self._has_warned = True
        known = ", ".join(sorted(name for name in metrics if not name.startswith("refused_"))) or "none"
        text = (
            f"Round {number}: stop_when.metric must be among the metrics that there are, {known}, got {goal.metric!r}. "
            "Without it the run goes on to its last round."
        )
        log.warning("%s", text)
        return [self._event("metric_missing", text)]

    async def _commit(self, record: RoundRecord, model: Model, *events: EventRecord) -> None:
        """Make the round durable: first its checkpoint, then one store transaction."""
        self._status.enter("commit", record.number)
        with self._timed("commit"):
            await to_its_end(asyncio.to_thread(self._checkpoints.write, self._run, record.number, model))
        now = time.time()
        run = self._run.with_(round_number=record.number, model_sha256=record.model_sha256)
        record = record.with_(ended_time=now, phase_seconds=self._phase_seconds)
        event = self._event("round_committed", f"round {record.number}")
        await to_its_end(self._site.store.commit_round(run, record, event, *events))
        self._run = run
        await asyncio.to_thread(self._checkpoints.prune, record.number)

    def _last_model(self, shop: ModelShop) -> Model:
        initial = shop.initial()
        return self._checkpoints.read(self._run, initial.layout) if self._run.round_number else initial

    async def _last_metrics(self) -> Mapping[str, float]:
        if self._run.round_number == 0:
            return {}
        return (await self._site.store.round(self._run.run_id, self._run.round_number)).metrics

    def _reason_to_end(self, metrics: Mapping[str, float]) -> str:
        """Return why the run is over before its last round, or nothing."""
        goal = self._spec.stop_when
        if goal is None or not goal.is_reached(dict(metrics)):
            return ""
        return f"{goal.metric} reached {metrics[goal.metric]:.4g} in round {self._run.round_number}."

    def _event(self, kind: str, detail: str) -> EventRecord:
        return EventRecord(time=time.time(), kind=kind, run_id=self._run.run_id, detail=detail)

    @contextlib.contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        clock = asyncio.get_running_loop().time
        start = clock()
        try:
            yield
        finally:
            self._phase_seconds[phase] = self._phase_seconds.get(phase, 0.0) + clock() - start


def _training_means(record: RoundRecord) -> dict[str, float]:
    """Return the means of what training measured, each named "train_...": a client's word is never taken for an evaluation."""
    means = weighted_means([(part.example_count, part.metrics) for part in record.contributions])
    return {f"train_{name.removeprefix('train_')}": mean for name, mean in means.items()}


def _refusal_counts(record: RoundRecord) -> dict[str, float]:
    """Return how many contributions were refused for each reason, such as "refused_not_finite"."""
    counts = Counter(f"refused_{refusal.reason}" for refusal in record.refusals)
    return {name: float(count) for name, count in sorted(counts.items())}


def _summary(inbox: Inbox) -> str:
    reasons = Counter(refusal.reason for refusal in inbox.refusals)
    reasons["no_answer"] = len(inbox.unsettled)
    return ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()) if count) or "none refused"
