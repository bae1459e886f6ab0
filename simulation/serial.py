"""The serial engine: the cohort in one process, one client after another. The reference for every other engine (law L2).

Rounds, aggregation, evaluation and store are the server's own; training is the client's own.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from client.data import LocalData
from client.training import Assignment, Trainer
from models import Examples, TrainingStopped
from models.errors import DataError
from models.learner import Report
from server.cohort import Cohort, Member, Order
from server.inbox import Arrival, Ballot, Inbox
from server.records import RunRecord
from server.rounds import Site
from server.signal import Signal
from server.store import Store
from simulation.play import play
from wire.federation_pb2 import RefusalReason
from wire.spec import RunSpec

log = logging.getLogger(__name__)

Value = TypeVar("Value")


class SerialCohort(Cohort):
    """Clients that are always present, trained one after another in a thread of their own."""

    def __init__(self, spec: RunSpec, sites: Mapping[str, LocalData], device: torch.device | None = None) -> None:
        """Build the cohort.

        Args:
            spec: The run that it will work for.
            sites: Each client's data, by identity.
            device: Where to train; default: the CPU.

        Raises:
            DataError: Some client's data does not suit the learner.
        """
        self._sites = dict(sites)
        self._trainer = Trainer(spec.learner, device or torch.device("cpu"))
        self._changed = Signal()
        # One thread: a client that the round no longer waits for comes to its end before the next one begins.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="serial")
        for data in self._sites.values():
            self._trainer.check(data)

    @property
    def changed(self) -> Signal:
        """Notified when a client settles."""
        return self._changed

    def members(self) -> Sequence[Member]:
        """Return all clients."""
        return [Member(client_id, client_id, is_present=True, absent_since=0.0) for client_id in sorted(self._sites)]

    @contextlib.contextmanager
    def claim(self, client_ids: Sequence[str], run_id: str) -> Iterator[None]:
        """Do nothing: there is no other run."""
        yield

    async def train(self, order: Order, client_ids: Sequence[str], inbox: Inbox) -> None:
        """Train each client and bring its contribution to the inbox."""
        stop = threading.Event()

        def report(_: float) -> None:
            if stop.is_set():
                raise TrainingStopped("The round has closed.")

        try:
            for client_id in client_ids:
                try:
                    arrival = await self._in_thread(partial(self._train, order, client_id, inbox, report))
                except DataError as error:
                    inbox.refuse(client_id, RefusalReason.REFUSAL_REASON_CLIENT_DATA, str(error))
                except Exception as error:
                    # As a client would: its failure is not the round's.
                    log.exception("client %s: unexpected error", client_id)
                    inbox.refuse(client_id, RefusalReason.REFUSAL_REASON_CLIENT_ERROR, f"Unexpected {error!r}")
                else:
                    await inbox.admit(arrival)
        finally:
            stop.set()

    async def evaluate(self, order: Order, client_ids: Sequence[str], ballot: Ballot) -> None:
        """Evaluate on each client's held-out data and bring the result to the ballot."""
        for client_id in client_ids:
            evaluate = partial(self._trainer.evaluate, order.model.vector, self._sites[client_id])
            result = await self._in_thread(evaluate)
            ballot.record(client_id, result)

    def close(self) -> None:
        """End the thread, after what it is at."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, work: Callable[[], Value]) -> Value:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _train(self, order: Order, client_id: str, inbox: Inbox, report: Report) -> Arrival:
        assignment = Assignment(order.spec, order.round_number, client_id, order.model.vector)
        result = self._trainer.train(assignment, self._sites[client_id], report)
        return Arrival(
            client_id,
            inbox.binding,
            result.weight,
            result.example_count,
            result.metrics,
            result.train_seconds,
            result.vector,
        )


async def run_serially(
    spec: RunSpec, sites: Mapping[str, LocalData], store: Store, folder: Path, own_data: Examples | None = None
) -> RunRecord:
    """Run a federation with this engine and return the finished run.

    Args:
        spec: The run's spec, as it would be submitted.
        sites: Each client's data, by identity: with the identities of real clients, the models are theirs to the bit.
        store: Where rounds are recorded.
        folder: Where checkpoints go.
        own_data: Examples for `evaluate.on: coordinator`.

    Raises:
        DataError: Some site's data does not suit the learner.
        ChoralError: As `play`.
    """
    cohort = SerialCohort(spec, sites)
    try:
        return await play(spec, Site(store, cohort, folder, own_data))
    finally:
        cohort.close()
