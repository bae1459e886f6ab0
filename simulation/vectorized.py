"""The vectorized engine: the clients of a round trained as one model with an axis of clients, one block after another.

Clients take the steps that they would take on their own: the same batches from the same generators. The results agree with the serial
engine's to float32's accuracy, not to the bit, because sums are made in another order. Where a maximum is all but a tie, as a max pool's
over an empty background, rounding decides which one learns; torch's own kernels differ from one another there by more. What dropout draws
is the serial engine's on a CPU; on a GPU, whose generator draws otherwise, it is each client's own but not that.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from client.data import LocalData
from client.training import weight_by_quality
from models import DataError, Evaluation, Examples, TrainingStopped
from server.cohort import Cohort, Member, Order
from server.inbox import Arrival, Ballot, Binding, Inbox
from server.signal import Signal
from simulation.memory import most_clients
from simulation.plan import Round, blocks_of, draw_plan
from simulation.reasons import gradient_learner, reason_against
from simulation.stacked import StackedLearner
from wire.errors import SpecError
from wire.federation_pb2 import RefusalReason
from wire.spec import RunSpec
from wire.tensors import Layout, State

log = logging.getLogger(__name__)

Value = TypeVar("Value")


class VectorizedCohort(Cohort):
    """Clients that are always present, trained many at a time."""

    def __init__(
        self,
        spec: RunSpec,
        sites: Mapping[str, LocalData],
        device: torch.device | None = None,
        block: int | None = None,
    ) -> None:
        """Build the cohort; the data of all clients is copied to the device once.

        Args:
            spec: The run that it will work for.
            sites: Each client's data, by identity.
            device: Where to train; default: the CPU.
            block: Most clients that are trained at a time; default: as many as fit into a part of the device's memory.

        Raises:
            SpecError: The learner or the optimizer cannot be vectorized.
            DataError: Some client's data does not suit the learner, or is not of the others' shape.
        """
        if reason := reason_against(spec):
            raise SpecError(f"Run spec: the vectorized engine cannot train it: {reason}. Take the serial engine.")
        self._device = device or torch.device("cpu")
        learner = gradient_learner(spec, self._device)
        for data in sites.values():
            learner.check(data.training)
            if len(data.held_out):
                learner.check(data.held_out)
        self._training = _Pool({name: data.training for name, data in sites.items()}, self._device)
        self._held_out = _Pool({name: data.held_out for name, data in sites.items()}, self._device)
        self._stacked = StackedLearner(learner, self._device)
        self._layout = Layout.of(learner.init(0))
        self._block = block or most_clients(learner, self._training.data.inputs[:1], spec.local, self._device)
        self._changed = Signal()
        # One thread: a block that the round no longer waits for comes to its end before the next one begins.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vectorized")

    @property
    def changed(self) -> Signal:
        """Notified when a client settles."""
        return self._changed

    def members(self) -> Sequence[Member]:
        """Return all clients."""
        return [Member(name, name, is_present=True, absent_since=0.0) for name in sorted(self._training.ranges)]

    @contextlib.contextmanager
    def claim(self, client_ids: Sequence[str], run_id: str) -> Iterator[None]:
        """Do nothing: there is no other run."""
        yield

    async def train(self, order: Order, client_ids: Sequence[str], inbox: Inbox) -> None:
        """Train the clients block by block and bring their contributions to the inbox."""
        stop = threading.Event()

        def report() -> None:
            if stop.is_set():
                raise TrainingStopped("The round has closed.")

        try:
            weights, refusals = await self._in_thread(partial(self._weights, order, client_ids))
            for client_id, error in refusals.items():
                inbox.refuse(client_id, RefusalReason.REFUSAL_REASON_CLIENT_DATA, str(error))
            sizes = {client_id: len(self._training.ranges[client_id]) for client_id in weights}
            for names in blocks_of(sizes, order.spec.local, self._block):
                block = {client_id: weights[client_id] for client_id in names}
                try:
                    arrivals = await self._in_thread(partial(self._train, order, block, inbox.binding, report))
                except Exception as error:
                    # As clients would: their failure is not the round's.
                    log.exception("clients %s: unexpected error", ", ".join(names))
                    for client_id in names:
                        inbox.refuse(client_id, RefusalReason.REFUSAL_REASON_CLIENT_ERROR, f"Unexpected {error!r}")
                    continue
                for arrival in arrivals:
                    await inbox.admit(arrival)
        finally:
            stop.set()

    async def evaluate(self, order: Order, client_ids: Sequence[str], ballot: Ballot) -> None:
        """Evaluate on the held-out data of all clients in one pass and bring each one's result to the ballot."""
        results = await self._in_thread(partial(self._evaluate, order, client_ids))
        for client_id, result in results.items():
            ballot.record(client_id, result)

    def close(self) -> None:
        """End the thread, after what it is at."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, work: Callable[[], Value]) -> Value:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _weights(self, order: Order, client_ids: Sequence[str]) -> tuple[dict[str, int], dict[str, DataError]]:
        """Return the weight of each client, or why it cannot take part."""
        spec, weights, refusals = order.spec, {}, {}
        held_out = self._evaluate(order, client_ids) if spec.weight_by == "quality" else {}
        for client_id in client_ids:
            count = len(self._training.ranges[client_id])
            try:
                if not count:
                    raise DataError("Training data: batches must have at least 1 examples, got 0.")
                is_by_quality = spec.weight_by == "quality"
                weights[client_id] = (
                    weight_by_quality(spec, count, held_out[client_id])
                    if is_by_quality
                    else min(count, spec.limits.weight_cap)
                )
            except DataError as error:
                refusals[client_id] = error
        return weights, refusals

    def _train(
        self, order: Order, weights: Mapping[str, int], binding: Binding, report: Callable[[], None]
    ) -> list[Arrival]:
        begin, local = time.perf_counter(), order.spec.local
        plan = draw_plan(list(weights), self._training.ranges, local, Round(order.spec.seed, order.round_number))
        trained = self._stacked.fit(self._state(order), self._training.data, plan, local, report)
        changes, losses = trained.changes.cpu().numpy(), trained.losses.tolist()
        seconds = (time.perf_counter() - begin) / len(weights)
        return [
            Arrival(
                client_id,
                binding,
                weight,
                int(plan.sizes[place]),
                {"train_loss": losses[place]} if local.epochs else {},
                seconds,
                changes[place],
            )
            for place, (client_id, weight) in enumerate(weights.items())
        ]

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


class _Pool:
    """The examples of all clients, one after another on the device, and where each one's lie."""

    def __init__(self, parts: Mapping[str, Examples], device: torch.device) -> None:
        self.ranges: dict[str, range] = {}
        start, shape = 0, None
        for client_id, part in parts.items():
            self.ranges[client_id] = range(start, start + len(part))
            start += len(part)
            if len(part):
                shape = shape or part.example_shape
                if part.example_shape != shape:
                    raise DataError(
                        f"Vectorized engine: examples of all clients must have one shape, {shape}, got "
                        f"{part.example_shape} at {client_id}. Take the serial engine."
                    )
        some = [part for part in parts.values() if len(part)] or list(parts.values())[:1]
        self.data = Examples(_joined([part.inputs for part in some]), _joined([part.targets for part in some])).to(
            device
        )


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(tensors)) if tensors else torch.zeros(0)
