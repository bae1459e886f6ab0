"""The vectorized engine: the clients of a round trained as one model with an axis of clients, one block after another.

Clients take the steps that they would take on their own: the same batches from the same generators. The results agree with the serial
engine's to float32's accuracy, not to the bit, because sums are made in another order. Where a maximum is all but a tie, as a max pool's
over an empty background, rounding decides which one learns; torch's own kernels differ from one another there by more. What dropout draws
is the serial engine's on a CPU; on a GPU, whose generator draws otherwise, it is each client's own but not that.
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import torch

from client.data import LocalData
from client.training import weight_by_quality
from models import DataError, Evaluation, TrainingStopped
from server.aggregation import WeightedMean
from server.cohort import Order
from server.inbox import Arrival, Binding
from simulation.cohort import Outcome, Refused, SimulatedCohort
from simulation.device_mean import DeviceMean
from simulation.memory import most_clients
from simulation.plan import Round, blocks_of, draw_plan
from simulation.pool import PooledSites
from simulation.reasons import gradient_learner, reason_against
from simulation.resources import Resources
from simulation.stacked import StackedLearner
from wire.errors import SpecError
from wire.federation_pb2 import RefusalReason
from wire.grid import Grid
from wire.spec import RunSpec
from wire.tensors import Layout, State

log = logging.getLogger(__name__)

Value = TypeVar("Value")


class VectorizedCohort(SimulatedCohort):
    """Clients that are trained many at a time."""

    def __init__(self, spec: RunSpec, sites: Mapping[str, LocalData], resources: Resources | None = None) -> None:
        """Build the cohort; the data of all clients is copied to the device once.

        Args:
            spec: The run that it will work for.
            sites: Each client's data, by identity.
            resources: Where to train, and how many clients at a time.

        Raises:
            SpecError: The learner or the optimizer cannot be vectorized.
            DataError: Some client's data does not suit the learner, or is not of the others' shape.
        """
        if reason := reason_against(spec):
            raise SpecError(f"Run spec: the vectorized engine cannot train it: {reason}. Take the serial engine.")
        super().__init__(spec, sites)
        resources = resources or Resources()
        self._device = resources.one_device()
        learner = gradient_learner(spec, self._device)
        pooled = PooledSites.copied(sites, lambda shape, dtype: torch.empty(shape, dtype=dtype, device=self._device))
        self._training, self._held_out = pooled.training, pooled.held_out
        self._stacked = StackedLearner(learner, self._device)
        self._layout = Layout.of(learner.init(0))
        example = self._training.data.inputs[:1]
        self._block = resources.block or most_clients(learner, example, spec.local, self._device)
        # One thread: a block that the round no longer waits for comes to its end before the next one begins.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vectorized")

    async def _outcomes(
        self, order: Order, client_ids: Sequence[str], binding: Binding
    ) -> AsyncGenerator[Outcome, None]:
        stop = threading.Event()

        def report() -> None:
            if stop.is_set():
                raise TrainingStopped("The round has closed.")

        try:
            held_out: Mapping[str, Evaluation] = {}
            if order.spec.weight_by == "quality":
                held_out = await self._in_thread(partial(self._evaluate, order, client_ids))
            weights, refusals = self._weights(order.spec, client_ids, held_out)
            for refusal in refusals:
                yield refusal
            for names in blocks_of(list(weights), self._block):
                block = {client_id: weights[client_id] for client_id in names}
                try:
                    outcomes = await self._in_thread(partial(self._train, order, block, binding, report))
                except Exception as error:
                    # As clients would: their failure is not the round's.
                    log.exception("clients %s: unexpected error", ", ".join(names))
                    reason = RefusalReason.REFUSAL_REASON_CLIENT_ERROR
                    outcomes = {name: Refused(name, reason, f"Unexpected {error!r}") for name in names}
                for name in names:
                    yield outcomes[name]
        finally:
            stop.set()

    async def _evaluations(
        self, order: Order, client_ids: Sequence[str]
    ) -> AsyncGenerator[tuple[str, Evaluation], None]:
        for result in (await self._in_thread(partial(self._evaluate, order, client_ids))).items():
            yield result

    def empty_sum(self, grid: Grid, size: int) -> WeightedMean:
        """Return an empty sum on the device."""
        return WeightedMean(grid, size) if self._device.type == "cpu" else DeviceMean(grid, size, self._device)

    def close(self) -> None:
        """End the thread, after what it is at."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, work: Callable[[], Value]) -> Value:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _weights(
        self, spec: RunSpec, client_ids: Sequence[str], held_out: Mapping[str, Evaluation]
    ) -> tuple[dict[str, int], list[Refused]]:
        """Return the weight of each client that can take part, in this order, and what the others say."""
        weights, refusals = {}, []
        for client_id in client_ids:
            count = len(self._training.ranges[client_id])
            try:
                if not count:
                    raise DataError("Training data: batches must have at least 1 examples, got 0.")
                weights[client_id] = (
                    weight_by_quality(spec, count, held_out[client_id])
                    if spec.weight_by == "quality"
                    else min(count, spec.limits.weight_cap)
                )
            except DataError as error:
                refusals.append(Refused(client_id, RefusalReason.REFUSAL_REASON_CLIENT_DATA, str(error)))
        return weights, refusals

    def _train(
        self, order: Order, weights: Mapping[str, int], binding: Binding, report: Callable[[], None]
    ) -> dict[str, Outcome]:
        begin, local = time.perf_counter(), order.spec.local
        plan = draw_plan(list(weights), self._training.ranges, local, Round(order.spec.seed, order.round_number))
        trained = self._stacked.fit(self._state(order), self._training.data, plan, local, report)
        # On a GPU they stay there, where `empty_sum` adds them up.
        changes: Any = trained.changes.numpy() if self._device.type == "cpu" else trained.changes
        losses = trained.losses.tolist()
        seconds = (time.perf_counter() - begin) / len(weights)
        return {
            client_id: Arrival(
                client_id,
                binding,
                weights[client_id],
                int(plan.sizes[place]),
                {"train_loss": losses[place]} if local.epochs else {},
                seconds,
                changes[place],
            )
            for place, client_id in enumerate(plan.client_ids)
        }

    def _evaluate(self, order: Order, client_ids: Sequence[str]) -> dict[str, Evaluation]:
        ranges = [self._held_out.ranges[client_id] for client_id in client_ids]
        counts = torch.tensor([len(own) for own in ranges])
        if not counts.sum():
            return {client_id: Evaluation(0, {}) for client_id in client_ids}
        rows = torch.cat([torch.arange(own.start, own.stop) for own in ranges]).to(self._device)
        owners = torch.repeat_interleave(torch.arange(len(ranges)), counts).to(self._device)
        means: dict[str, list[float]] = {}
        for name, values in self._stacked.measure(self._state(order), self._held_out.data.select(rows)).items():
            sums = torch.zeros(len(ranges), dtype=torch.float64, device=self._device).index_add_(0, owners, values)
            means[name] = (sums.cpu() / counts).tolist()
        return {
            client_id: Evaluation(len(own), {name: mean[place] for name, mean in means.items()} if own else {})
            for place, (client_id, own) in enumerate(zip(client_ids, ranges, strict=True))
        }

    def _state(self, order: Order) -> State:
        return {name: tensor.to(self._device) for name, tensor in self._layout.views(order.model.vector).items()}
