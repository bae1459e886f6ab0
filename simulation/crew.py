"""Engines with several workers: who trains whom, and what happens when a worker dies. Processes and Ray differ in their `Seat`.

A free worker takes the next client, the largest first, so that they end at about the same time. A worker that dies is replaced, and its
client is trained again, with the same draws; a client under which worker after worker dies is given up.

Source: Graham, "Bounds on Multiprocessing Timing Anomalies", SIAM Journal on Applied Mathematics 17(2), 1969 (largest first).
https://doi.org/10.1137/0117039
"""

import asyncio
import contextlib
import logging
import threading
from abc import abstractmethod
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol, TypeVar

from client.data import LocalData
from client.training import Result
from models import Evaluation
from server.cohort import Order
from server.inbox import Binding
from simulation.cohort import Outcome, Refused, SimulatedCohort, outcome_of
from simulation.errors import WorkerLostError
from simulation.plan import blocks_of
from wire.federation_pb2 import RefusalReason
from wire.spec import RunSpec
from wire.tensors import Vector

log = logging.getLogger(__name__)

Value = TypeVar("Value")

DEATHS = 3
"""Workers that may die under one client in a round before it is given up."""

AHEAD_BYTES = 256 << 20
"""Contributions that may wait for one that is to arrive before them."""


class Seat(Protocol):
    """The place of one worker. Its calls block, and come from one thread at a time."""

    def train(self, client_id: str, round_number: int) -> Result | Refused:
        """Train a client, starting from the published model.

        Raises:
            TrainingStopped: The round has closed.
            WorkerLostError: The worker died.
        """

    def evaluate(self, client_ids: Sequence[str]) -> list[Evaluation | Refused]:
        """Measure the published model on the held-out data of clients. Raises `WorkerLostError`."""

    def replace(self) -> None:
        """Put a new worker in the place of one that died. Raises `SimulationError` when none can be had."""

    def interrupt(self) -> None:
        """Let a call that another thread is in come to its end soon."""

    def close(self) -> None:
        """End the worker."""


class CrewCohort(SimulatedCohort):
    """Clients that several workers train."""

    def __init__(self, spec: RunSpec, sites: Mapping[str, LocalData], take_seats: Callable[[], Sequence[Seat]]) -> None:
        """Build the cohort, with seats that are taken once the data has been checked, and closed in the end.

        Raises:
            DataError: Some client's data does not suit the learner.
            SimulationError: The spec's trace of clients cannot be used, or a worker cannot be started.
        """
        super().__init__(spec, sites)
        self._seats = seats = take_seats()
        self._free: asyncio.Queue[Seat] = asyncio.Queue()
        for seat in seats:
            self._free.put_nowait(seat)
        self._is_closing = threading.Event()
        self._threads = ThreadPoolExecutor(len(seats), thread_name_prefix="seat")

    @abstractmethod
    def _publish(self, vector: Vector) -> None:
        """Let the workers, of whom none is at work, have a model, float32 (parameters,)."""

    @abstractmethod
    def _stop(self) -> None:
        """Tell the workers that nobody waits for what they are at."""

    async def _outcomes(
        self, order: Order, client_ids: Sequence[str], binding: Binding
    ) -> AsyncGenerator[Outcome, None]:
        await self._hand_out(order)
        trainings = [partial(self._train, client_id, order.round_number) for client_id in client_ids]
        try:
            async with contextlib.aclosing(self._in_order(trainings, order.model.vector.nbytes)) as results:
                async for client_id, found in results:
                    yield outcome_of(client_id, binding, found)
        finally:
            self._stop()

    async def _evaluations(
        self, order: Order, client_ids: Sequence[str]
    ) -> AsyncGenerator[tuple[str, Evaluation | Refused], None]:
        await self._hand_out(order)
        parts = blocks_of(client_ids, max(1, len(client_ids) // (4 * len(self._seats))))
        async with contextlib.aclosing(self._in_order([partial(self._evaluate, part) for part in parts], 1)) as results:
            async for part in results:
                for result in part:
                    yield result

    def close(self) -> None:
        """End the workers, and what they are at."""
        self._is_closing.set()
        self._stop()
        for seat in self._seats:
            seat.interrupt()
        self._threads.shutdown(wait=True)
        for seat in self._seats:
            seat.close()

    async def _hand_out(self, order: Order) -> None:
        """Publish the model once nobody works on another one."""
        free: list[Seat] = []
        try:
            while len(free) < len(self._seats):
                free.append(await self._free.get())
            self._publish(order.model.vector)
        finally:
            for seat in free:
                self._free.put_nowait(seat)

    async def _in_order(self, works: Sequence[Callable[[Seat], Value]], byte_count: int) -> AsyncGenerator[Value, None]:
        """Do each work on a free seat, and yield the results, of so many bytes each, in the order of the works."""
        most = max(2 * len(self._seats), AHEAD_BYTES // byte_count)
        tasks: deque[asyncio.Task[Value]] = deque()
        try:
            for work in works:
                tasks.append(asyncio.create_task(self._seated(work)))
                if len(tasks) == most:
                    yield await tasks.popleft()
            while tasks:
                yield await tasks.popleft()
        finally:
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    async def _seated(self, work: Callable[[Seat], Value]) -> Value:
        """Do a work on the next free seat, which is free again when it is done, even if nobody waits for that any more."""
        seat = await self._free.get()
        doing = asyncio.get_running_loop().run_in_executor(self._threads, work, seat)
        doing.add_done_callback(partial(self._vacate, seat))
        return await asyncio.shield(doing)

    def _vacate(self, seat: Seat, done: asyncio.Future[Value]) -> None:
        self._free.put_nowait(seat)
        if not done.cancelled():
            done.exception()  # it has been told where somebody waits

    def _train(self, client_id: str, round_number: int, seat: Seat) -> tuple[str, Result | Refused]:
        """Train a client on a seat, on one worker after another if they die."""
        try:
            return client_id, self._persistently(seat, lambda: seat.train(client_id, round_number), client_id)
        except WorkerLostError as error:
            return client_id, _given_up(client_id, error)

    def _evaluate(self, client_ids: Sequence[str], seat: Seat) -> list[tuple[str, Evaluation | Refused]]:
        """Evaluate on a seat, client by client if workers die."""
        try:
            found = self._persistently(seat, lambda: seat.evaluate(client_ids), ", ".join(client_ids))
            return list(zip(client_ids, found, strict=True))
        except WorkerLostError as error:
            if len(client_ids) == 1:
                return [(client_ids[0], _given_up(client_ids[0], error))]
            return [result for client_id in client_ids for result in self._evaluate([client_id], seat)]

    def _persistently(self, seat: Seat, work: Callable[[], Value], subject: str) -> Value:
        deaths = 0
        while True:
            try:
                return work()
            except WorkerLostError as error:
                if self._is_closing.is_set():
                    raise
                deaths += 1
                log.warning("%s: %s A new worker takes its place.", subject, error)
                seat.replace()
                if deaths == DEATHS:
                    raise


def _given_up(client_id: str, error: WorkerLostError) -> Refused:
    detail = f"{DEATHS} workers must not die under one client, the last one: {error}"
    return Refused(client_id, RefusalReason.REFUSAL_REASON_CLIENT_ERROR, detail)
