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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from server.aggregation import WeightedMean
from server.checkpoints import Checkpoints
from server.closing import Until, wait_until
from server.cohort import Cohort, Order
from server.drawing import Drawing
from server.errors import QuorumError
from server.gathering import are_free, select
from server.inbox import Ballot, Binding, Inbox, accepted_metrics
from server.masking.masked import MaskedSum
from server.masking.part import Masking
from server.masking.session import Authority
from server.model import Model, ModelShop
from server.monitoring.observer import DEAF, Observer
from server.monitoring.status import Status
from server.plain import PlainShop, check_plain
from server.records import EventRecord, RoundRecord, RoundState, RunRecord, RunState
from server.store import Store
from server.tallies import REFUSED, as_training, refusal_counts, shortfall, spread, training_means
from server.tasks import task_group, to_its_end
from wire import RELEASE
from wire.errors import ChoralError
from wire.logs import about
from wire.tensors import HAS_TORCH

if TYPE_CHECKING:
    from models import Examples

log = logging.getLogger(__name__)

Shop = ModelShop | PlainShop


@dataclass(frozen=True, slots=True)
class Site:
    """What the rounds of a run need of the coordinator.

    Attributes:
        folder: Where the run's checkpoints lie.
        own_data: The coordinator's own examples, for `evaluate.on: coordinator`.
        checkpoints: Makes what keeps them there.
        authority: In whose name secure aggregation is held; None where it is not.
        observer: Is told of rounds and refusals.
    """

    store: Store
    cohort: Cohort
    folder: Path
    own_data: "Examples | None" = None
    checkpoints: Callable[[Path], Checkpoints] = Checkpoints
    authority: Authority | None = None
    observer: Observer = DEAF


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
        self._masking: Masking | None = None
        if self._spec.secure is not None and site.cohort.speaks_secagg:
            self._masking = Masking(site.cohort, site.store, site.authority, status, site.observer)
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
        if self._masking is not None:
            self._masking.check()
        self._status.enter("prepare", 0)
        shop, model = await (self._begin() if HAS_TORCH else self._begin_plain())
        # A crash may have come between the last commit and the end of the run.
        reason = self._reason_to_end(await self._last_metrics())
        left_open = await self._left_open()
        while not reason and self._run.round_number < self._spec.rounds:
            record, left_open = left_open or self._new_round(), None
            with about(round_number=record.number):
                model, metrics = await self._round(record, model, shop)
            reason = self._reason_to_end(metrics)
        self._status.enter("finished", 0)
        finished = self._run.with_(state=RunState.FINISHED, reason=reason, ended_time=time.time())
        await self._site.store.put_run(finished, self._event("run_finished", reason))
        return finished

    async def _begin(self) -> tuple[Shop, Model]:
        """Return what makes the run's models, and the last of them."""
        shop = await asyncio.to_thread(ModelShop, self._spec)
        initial = await asyncio.to_thread(shop.initial)
        if self._run.round_number == 0:
            return shop, initial
        return shop, await asyncio.to_thread(self._checkpoints.read, self._run, initial.layout)

    async def _begin_plain(self) -> tuple[Shop, Model]:
        """Do as `_begin` without torch: the first model is a client's, and is durable before a client is asked to train it."""
        check_plain(self._spec)
        if self._run.round_number:
            model = await asyncio.to_thread(self._checkpoints.read, self._run, None)
        elif (kept := await asyncio.to_thread(self._checkpoints.read_first)) is not None:
            model = kept
        else:
            self._status.enter("first model", 0)
            site = self._site
            model = await Drawing(self._run, site.cohort, site.store, site.observer, self._status).model()
            await to_its_end(asyncio.to_thread(self._checkpoints.write, self._run, 0, model))
        return PlainShop(model.layout), model

    async def _round(self, record: RoundRecord, model: Model, shop: Shop) -> tuple[Model, dict[str, float]]:
        """Play one round to its commit; start it over while it stays below its quorum."""
        self._phase_seconds = dict(record.phase_seconds)
        if record.model_sha256:
            # The sum is in the model already, as its checkpoint shows; only a masked one cannot be had again, and is kept so.
            kept = await asyncio.to_thread(self._checkpoints.read_next, self._run, record, model.layout)
            order = Order(self._run.run_id, record.number, record.attempt, self._spec, kept, len(record.selected))
            return await self._conclude_kept(record, order, shop)
        while True:
            was_opening = record.is_opening
            with contextlib.ExitStack() as claims:
                try:
                    record = await self._gather(record, claims)
                except QuorumError:
                    # The time that was spent waiting counts when the run is resumed.
                    record = record.with_(phase_seconds=dict(self._phase_seconds))
                    await self._site.store.put_round(record)
                    if was_opening:
                        return await self._lose(record, model)
                    raise
                order = Order(self._run.run_id, record.number, record.attempt, self._spec, model, len(record.selected))
                record, inbox, problem = await self._train(order, record, shop)
                record = record.with_(moments=self._site.cohort.moments(self._run.run_id))
                if inbox is not None and inbox.count >= self._spec.cohort.fewest:
                    return await self._finish_round(record, order, inbox, shop)
            is_last = record.attempt >= self._spec.cohort.retries
            if was_opening or (record.is_opening and is_last):
                return await self._lose(record, model)
            record = await self._start_over(record, problem)

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
            cohort, refused = self._site.cohort, {refusal.client_id for refusal in record.refusals}
            if record.selected and await are_free(
                record.selected, cohort, self._spec.cohort.wait_seconds, self._status
            ):
                claims.enter_context(cohort.claim(record.selected, self._run.run_id))
                return record
            selected = await select(self._spec, record.number, refused, cohort, self._status)
            # Claimed without an await since the choice, so that no other run makes the same one.
            claims.enter_context(cohort.claim(selected, self._run.run_id))
        record = record.with_(selected=sorted(selected), phase_seconds=dict(self._phase_seconds))
        await self._site.store.put_round(record)
        return record

    async def _train(self, order: Order, record: RoundRecord, shop: Shop) -> tuple[RoundRecord, Inbox | None, str]:
        """Ask the clients. Return the record with who was refused, the inbox, closed, with what they brought, and what it may lack."""
        self._status.enter("train", order.round_number)
        layout = shop.contribution_layout
        with self._timed("train"):
            if self._masking is not None:
                return await self._masking.train(order, record, layout.size)
            total = self._empty_sum(order, layout.size)
            binding = Binding(order.run_id, order.round_number, order.model.sha256, layout.sha256)
            inbox = Inbox(binding, record.selected, total, self._site.cohort.changed, shop.vectors)
            rules = self._spec.cohort
            async with task_group() as group:
                asking = group.create_task(self._site.cohort.train(order, record.selected, inbox))
                with self._status.waiting("updates", lambda: inbox.count, order.enough, rules.deadline_seconds):
                    until = Until(order.enough, rules.fewest, rules.deadline_seconds)
                    await wait_until(inbox, until, self._site.cohort, rules)
                await inbox.close()
                asking.cancel()
        record = record.with_(refusals=[*record.refusals, *inbox.refusals])
        self._site.observer.note_refusals(inbox.refusals)
        problem = shortfall(rules.fewest, inbox.count, len(record.selected), inbox.refusals, len(inbox.unsettled))
        return record, inbox, problem

    def _empty_sum(self, order: Order, size: int) -> WeightedMean:
        """Return the sum of the round before, cleared, if it suits."""
        if self._total is None or self._total.grid != order.grid:
            self._total = self._site.cohort.empty_sum(order.grid, size)
        else:
            self._total.clear()
        return self._total

    async def _start_over(self, record: RoundRecord, problem: str) -> RoundRecord:
        """Return the round's next attempt, or give up. Either is stored, so that a crash here changes nothing."""
        is_last = record.attempt >= self._spec.cohort.retries
        attempt = 0 if is_last else record.attempt + 1
        again = record.with_(selected=[], moments={}, attempt=attempt, phase_seconds=dict(self._phase_seconds))
        await self._site.store.put_round(again)
        if is_last:
            raise QuorumError(f"Round {record.number}: {problem}", "Mend the clients, then resume the run.")
        return again

    async def _lose(self, record: RoundRecord, model: Model) -> tuple[Model, dict[str, float]]:
        """Commit a round without a contribution: its sum was opened and lost, and clients open one sum of a round only."""
        self._status.enter("apply", record.number)
        record = record.with_(state=RoundState.COMMITTED, contributions=[], model_sha256=model.sha256.hex())
        record = record.with_(metrics=refusal_counts(record))
        text = (
            f"Round {record.number}: its sum was lost while it was being opened, and no client opens another one of the same round. "
            "The model stays as it was."
        )
        log.warning("%s", text)
        await self._commit(record, model, self._event("round_lost", text))
        return model, record.metrics

    async def _finish_round(
        self, record: RoundRecord, order: Order, inbox: Inbox, shop: Shop
    ) -> tuple[Model, dict[str, float]]:
        """Turn the sum into the next model, evaluate it, and commit the round."""
        self._status.enter("apply", record.number)
        with self._timed("apply"):
            total = inbox.take_total()
            model = await asyncio.to_thread(
                lambda: shop.next(order.model, total.mean(), total.weight_total, record.number)
            )
        contributions = [part for _, part in sorted(inbox.contributions.items())]
        record = record.with_(contributions=contributions, model_sha256=model.sha256.hex())
        if isinstance(total, MaskedSum):
            record = record.with_(
                example_count=total.head.example_count,
                metrics=as_training(dict(total.head.metrics)),
                phase_seconds=dict(self._phase_seconds),
            )
            # Before anything else happens: this sum cannot be had a second time.
            await to_its_end(asyncio.to_thread(self._checkpoints.write, self._run, record.number, model))
            await to_its_end(self._site.store.put_round(record))
        else:
            examples = sum(part.example_count for part in contributions)
            record = record.with_(example_count=examples, metrics=training_means(record))
        order = Order(order.run_id, record.number, order.attempt, self._spec, model, order.cohort_size)
        return await self._conclude(record, order, self._evaluators(record, order, inbox), shop)

    async def _conclude_kept(self, record: RoundRecord, order: Order, shop: Shop) -> tuple[Model, dict[str, float]]:
        """Evaluate and commit a model that was kept, with those who are in it, unless another run has some of them by now."""
        evaluators, cohort = [part.client_id for part in record.contributions], self._site.cohort
        if not await are_free(evaluators, cohort, self._spec.cohort.wait_seconds, self._status):
            evaluators = []
        with cohort.claim(evaluators, self._run.run_id):
            return await self._conclude(record, order, evaluators, shop)

    async def _conclude(
        self, record: RoundRecord, order: Order, evaluators: Sequence[str], shop: Shop
    ) -> tuple[Model, dict[str, float]]:
        """Evaluate the new model, which is that of `order`, and commit the round."""
        record, evaluation = await self._evaluate(record, order, evaluators, shop)
        metrics = record.metrics | evaluation | refusal_counts(record)
        record = record.with_(state=RoundState.COMMITTED, metrics=metrics)
        await self._commit(record, order.model, *self._warnings(record.number, metrics))
        return order.model, metrics

    def _evaluators(self, record: RoundRecord, order: Order, inbox: Inbox) -> list[str]:
        """Return who is asked to evaluate: nobody who was refused, or for whom the round has waited in vain already."""
        if self._masking is not None:
            return [part.client_id for part in record.contributions]
        left_out = {refusal.client_id for refusal in record.refusals}
        # A client may contribute although something else that it brought was refused, as after a crash.
        left_out -= inbox.contributions.keys()
        if inbox.count < order.enough:
            left_out |= inbox.unsettled
        return [client_id for client_id in record.selected if client_id not in left_out]

    async def _evaluate(
        self, record: RoundRecord, order: Order, client_ids: Sequence[str], shop: Shop
    ) -> tuple[RoundRecord, dict[str, float]]:
        """Return the metrics of the order's model on data that was not trained on, if this round is one to evaluate."""
        if not self._is_evaluated(record.number):
            return record, {}
        self._status.enter("evaluate", record.number)
        with self._timed("evaluate"):
            own_data = self._site.own_data
            if isinstance(shop, ModelShop) and own_data is not None and self._spec.evaluate.on == "coordinator":
                result = await asyncio.to_thread(shop.evaluate, order.model, own_data)
                return record, accepted_metrics(result.metrics)
            if self._masking is not None:
                return await self._masking.evaluate(order, record, client_ids)
            ballot, rules = Ballot(client_ids, self._site.cohort.changed), self._spec.cohort
            async with task_group() as group:
                asking = group.create_task(self._site.cohort.evaluate(order, client_ids, ballot))
                with self._status.waiting("evaluations", lambda: ballot.count, len(client_ids), rules.deadline_seconds):
                    until = Until(len(client_ids), rules.fewest, rules.deadline_seconds, is_needed=False)
                    await wait_until(ballot, until, self._site.cohort, rules)
                asking.cancel()
            values = spread(result.metrics for result in ballot.evaluations.values() if result.example_count)
            return record.with_(spread=values, evaluation_failures=ballot.failures()), ballot.means()

    def _is_evaluated(self, number: int) -> bool:
        every = self._spec.evaluate.every
        return every > 0 and (number % every == 0 or number == self._spec.rounds)

    def _warnings(self, number: int, metrics: Mapping[str, float]) -> list[EventRecord]:
        """Say, once, that the metric by which the run should stop is not among those of an evaluated round."""
        goal = self._spec.stop_when
        if goal is None or self._has_warned or goal.metric in metrics or not self._is_evaluated(number):
            return []
        self._has_warned = True
        known = ", ".join(sorted(name for name in metrics if not name.startswith(REFUSED))) or "none"
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
            if self._masking is None or not record.contributions:
                await to_its_end(asyncio.to_thread(self._checkpoints.write, self._run, record.number, model))
        now = time.time()
        metrics = {name: mean for name, mean in record.metrics.items() if not name.startswith(REFUSED)}
        known, sha256 = self._run.metrics | metrics, record.model_sha256
        run = self._run.with_(round_number=record.number, model_sha256=sha256, code_version=RELEASE, metrics=known)
        record = record.with_(ended_time=now, phase_seconds=self._phase_seconds)
        event = self._event("round_committed", f"round {record.number}")
        await to_its_end(self._site.store.commit_round(run, record, event, *events))
        self._run = run
        self._status.committed_number = record.number
        log.info(
            "run %s (%s): round %d committed with %d of %d contributions in %.1f s",
            run.run_id,
            run.spec.name,
            record.number,
            len(record.contributions),
            len(record.selected),
            now - record.started_time,
        )
        self._site.observer.note_round(record)
        await asyncio.to_thread(self._checkpoints.prune, record.number)

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
