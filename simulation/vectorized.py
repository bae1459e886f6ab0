"""The vectorized engine: the clients of a round trained as one model with an axis of clients, one block after another.

Clients take the steps that they would take on their own: the same batches from the same generators. The results agree with the serial
engine's to float32's accuracy, not to the bit, because sums are made in another order. Where a maximum is all but a tie, as a max pool's
over an empty background, rounding decides which one learns; torch's own kernels differ from one another there by more. What dropout draws
is the serial engine's on a CPU; on a GPU, whose generator draws otherwise, it is each client's own but not that.
"""

import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from client.data import LocalData
from client.training import check_weighing, weight_by_quality
from models import DataError, Evaluation
from server.aggregation import WeightedMean
from server.cohort import Order
from server.inbox import Arrival, Binding
from simulation.block_size import most_clients
from simulation.cohort import Outcome, Refused, SimulatedCohort
from simulation.device_mean import DeviceMean
from simulation.errors import UnsuitedEngineError
from simulation.plan import Round, blocks_of, draw_plan
from simulation.pool import PooledSites
from simulation.reasons import gradient_learner, reason_against
from simulation.resources import Resources
from simulation.stacked import StackedLearner
from simulation.trial import reason_by_trial
from simulation.work import Work
from wire.federation_pb2 import RefusalReason
from wire.grid import Grid
from wire.spec import RunSpec
from wire.tensors import Layout, State

log = logging.getLogger(__name__)


class VectorizedCohort(SimulatedCohort):
    """Clients that are trained many at a time."""

    def __init__(self, spec: RunSpec, sites: Mapping[str, LocalData], resources: Resources | None = None) -> None:
        """Build the cohort; the data of all clients is copied to the device once.

        Args:
            spec: The run that it will work for.
            sites: Each client's data, by identity.
            resources: Where to train, and how many clients at a time.

        Raises:
            UnsuitedEngineError: The learner or the optimizer cannot be vectorized.
            DataError: Some client's data does not suit the learner, or is not of the others' shape.
        """
        resources = resources or Resources()
        self._device = resources.one_device()
        if reason := reason_against(spec, self._device):
            raise UnsuitedEngineError("vectorized", reason)
        super().__init__(spec, sites)
        learner = gradient_learner(spec, self._device)
        pooled = PooledSites.copied(sites, lambda shape, dtype: torch.empty(shape, dtype=dtype, device=self._device))
        self._training, self._held_out = pooled.training, pooled.held_out
        if reason := reason_by_trial(spec, self._training.data):
            raise UnsuitedEngineError("vectorized", reason)
        self._stacked = StackedLearner(learner, self._device)
        self._layout = Layout.of(learner.init(0))
        example = self._training.data.inputs[:1]
        self._block = resources.block or most_clients(learner, example, self._widest(spec), self._device)

    async def _outcomes(
        self, order: Order, client_ids: Sequence[str], binding: Binding
    ) -> AsyncGenerator[Outcome, None]:
        work = Work()
        for names in blocks_of(client_ids, self._block):
            try:
                outcomes = await work.do(partial(self._train, order, names, binding, work.check))
            except Exception as error:
                log.exception("clients %s: unexpected error", ", ".join(names))
                outcomes = dict(_failed(names, error))
            for name in names:
                yield outcomes[name]

    async def _evaluations(
        self, order: Order, client_ids: Sequence[str]
    ) -> AsyncGenerator[tuple[str, Evaluation | Refused], None]:
        found: Mapping[str, Evaluation | Refused]
        try:
            work = Work()
            found = await work.do(partial(self._evaluate, order, client_ids, work.check))
        except Exception as error:
            log.exception("clients %s: unexpected error", ", ".join(client_ids))
            found = _failed(client_ids, error)
        for result in found.items():
            yield result

    def empty_sum(self, grid: Grid, size: int) -> WeightedMean:
        """Return an empty sum on the device."""
        return WeightedMean(grid, size) if self._device.type == "cpu" else DeviceMean(grid, size, self._device)

    def _ready(self, spec: RunSpec, client_ids: Sequence[str]) -> tuple[list[str], dict[str, Outcome]]:
        """Return who can take part, and what the others say."""
        ready: list[str] = []
        refusals: dict[str, Outcome] = {}
        for client_id in client_ids:
            try:
                if not self._training.ranges[client_id]:
                    raise DataError("Training data: batches must have at least 1 examples, got 0.")
                counts = len(self._training.ranges[client_id]), len(self._held_out.ranges[client_id])
                check_weighing(spec, *counts)
            except DataError as error:
                refusals[client_id] = Refused(client_id, RefusalReason.REFUSAL_REASON_CLIENT_DATA, str(error))
            else:
                ready.append(client_id)
        return ready, refusals

    def _train(
        self, order: Order, client_ids: Sequence[str], binding: Binding, report: Callable[[], None]
    ) -> dict[str, Outcome]:
        """Return what each client brings, or says."""
        report()
        begin, local = time.perf_counter(), order.spec.local_in(order.round_number)
        ready, outcomes = self._ready(order.spec, client_ids)
        if not ready:
            return outcomes
        plan = draw_plan(ready, self._training.ranges, local, Round(order.spec.seed, order.round_number))
        trained = self._stacked.fit(self._state(order), self._training.data, plan, local, report)
        weights = self._weights(order, plan.client_ids, trained.changes, report)
        # On a GPU they stay there, where `empty_sum` adds them up.
        changes: Any = trained.changes.numpy() if self._device.type == "cpu" else trained.changes
        losses = trained.losses.tolist()
        seconds = (time.perf_counter() - begin) / len(ready)
        for place, client_id in enumerate(plan.client_ids):
            metrics = {"train_loss": losses[place]} if local.epochs else {}
            size, change = int(plan.sizes[place]), changes[place]
            outcomes[client_id] = Arrival(client_id, binding, weights[place], size, metrics, seconds, change)
        return outcomes

    def _weights(
        self, order: Order, client_ids: Sequence[str], changes: torch.Tensor, report: Callable[[], None]
    ) -> list[int]:
        """Return the weight of each client, whose model has moved by its row of `changes`, (clients, parameters)."""
        spec, counts = order.spec, [len(self._training.ranges[client_id]) for client_id in client_ids]
        if spec.weight_by == "examples":
            return [min(count, spec.weight_cap) for count in counts]
        state, weights = self._state(order), []
        for client_id, count, change in zip(client_ids, counts, changes, strict=True):
            own = self._held_out.ranges[client_id]
            held_out = self._held_out.data.select(torch.arange(own.start, own.stop, device=self._device))
            trained = {
                entry.name: state[entry.name] + change[entry.offset : entry.offset + entry.size].view(entry.shape)
                for entry in self._layout.entries
            }
            loss = self._stacked.measure(trained, held_out, report)["loss"].mean()
            weights.append(weight_by_quality(spec, count, float(loss)))
        return weights

    def _evaluate(self, order: Order, client_ids: Sequence[str], report: Callable[[], None]) -> dict[str, Evaluation]:
        ranges = [self._held_out.ranges[client_id] for client_id in client_ids]
        counts = torch.tensor([len(own) for own in ranges])
        if not counts.sum():
            return {client_id: Evaluation(0, {}) for client_id in client_ids}
        rows = torch.cat([torch.arange(own.start, own.stop) for own in ranges]).to(self._device)
        owners = torch.repeat_interleave(torch.arange(len(ranges)), counts).to(self._device)
        means: dict[str, list[float]] = {}
        measured = self._stacked.measure(self._state(order), self._held_out.data.select(rows), report)
        for name, values in measured.items():
            sums = torch.zeros(len(ranges), dtype=torch.float64, device=self._device).index_add_(0, owners, values)
            means[name] = (sums.cpu() / counts).tolist()
        return {
            client_id: Evaluation(len(own), {name: mean[place] for name, mean in means.items()} if own else {})
            for place, (client_id, own) in enumerate(zip(client_ids, ranges, strict=True))
        }

    def _widest(self, spec: RunSpec) -> int:
        """Return the examples in the largest batch of any client."""
        return min(spec.local.batch_size, max(len(own) for own in self._training.ranges.values()))

    def _state(self, order: Order) -> State:
        return {name: tensor.to(self._device) for name, tensor in self._layout.views(order.model.vector).items()}


def _failed(client_ids: Sequence[str], error: Exception) -> dict[str, Refused]:
    """Return what clients say to an error, as each would on its own: their failure is not the round's."""
    reason, detail = RefusalReason.REFUSAL_REASON_CLIENT_ERROR, f"Unexpected {error!r}"
    return {client_id: Refused(client_id, reason, detail) for client_id in client_ids}
