"""The engine of worker processes: one resident worker for each core or GPU; model, contributions and examples in shared memory.

Results equal the serial engine's to the bit, as long as both compute on the same kind of device with the same number of threads.
"""

import dataclasses
import multiprocessing
import os
import signal
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from client.data import LocalData
from client.device import choose_device
from client.training import Result
from models import Evaluation, Examples, TrainingStopped, build_learner
from simulation.cohort import Refused
from simulation.crew import CrewCohort
from simulation.errors import SimulationError, WorkerLostError
from simulation.pool import Pool, PooledSites
from simulation.resources import Resources
from simulation.shared import SharedTensor
from simulation.worker import Worker
from wire.memory import keep_freed_memory
from wire.spec import RunSpec
from wire.tensors import Layout, Vector

_CONTEXT = multiprocessing.get_context("forkserver")
_STARTING = threading.Lock()

SLOTS = 3
"""Contributions that a worker can leave: one is being added to the sum, the one before it may still be in somebody's hand."""


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """Asks for a client's contribution to a round, unless work is stopped more than `stops` times.

    Attributes:
        slot: Which of the worker's places for contributions it is left in.
    """

    client_id: str
    round_number: int
    stops: int
    slot: int


@dataclass(frozen=True, slots=True)
class EvaluateRequest:
    """Asks what clients measure of the published model."""

    client_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Common:
    """What all worker processes share.

    Attributes:
        spec: The run.
        kind: What the data was read from.
        ranges: Which examples are whose: for training, and held out.
        examples: Inputs and targets for training, and inputs and targets held out.
        model: The published model, float32 (parameters,).
        stops: How often work was stopped, int64 (1,).
    """

    spec: RunSpec
    kind: str
    ranges: tuple[Mapping[str, range], Mapping[str, range]]
    examples: tuple[SharedTensor, SharedTensor, SharedTensor, SharedTensor]
    model: SharedTensor
    stops: SharedTensor

    @property
    def sites(self) -> PooledSites:
        """Each client's data."""
        inputs, targets, held_out_inputs, held_out_targets = (part.tensor for part in self.examples)
        training = Pool(Examples(inputs, targets), self.ranges[0])
        return PooledSites(self.kind, training, Pool(Examples(held_out_inputs, held_out_targets), self.ranges[1]))


@dataclass(frozen=True, slots=True)
class Place:
    """What one worker process has to itself.

    Attributes:
        device: Where it trains.
        threads: Threads for training on a CPU.
        contributions: Where it leaves contributions, float32 (slots, parameters): in one while another is still added to the sum.
    """

    device: torch.device
    threads: int
    contributions: SharedTensor


class ProcessesCohort(CrewCohort):
    """Clients that worker processes train."""

    def __init__(self, spec: RunSpec, sites: Mapping[str, LocalData], resources: Resources | None = None) -> None:
        """Start the workers; the data of all clients is copied to shared memory once.

        Args:
            spec: The run that it will work for.
            sites: Each client's data, by identity.
            resources: How many workers, where, and with how many threads.

        Raises:
            DataError: Some client's data does not suit the learner, or is not of the others' shape.
            SimulationError: The spec's trace of clients cannot be used, or no worker can be started.
        """
        self._shared: list[SharedTensor] = []
        super().__init__(spec, sites, lambda: self._take_seats(spec, sites, resources or Resources()))

    def close(self) -> None:
        """End the workers, and give their memory back."""
        super().close()
        self._give_back()

    def _publish(self, vector: Vector) -> None:
        np.copyto(self._common.model.tensor.numpy(), vector)

    def _stop(self) -> None:
        self._common.stops.tensor.add_(1)

    def _take_seats(
        self, spec: RunSpec, sites: Mapping[str, LocalData], resources: Resources
    ) -> Sequence["_ProcessSeat"]:
        try:
            pooled = PooledSites.copied(sites, self._allocate)
            inputs, targets, held_out_inputs, held_out_targets = self._shared
            learner = build_learner(spec.learner, "meta")
            model = self._share((Layout.of(learner.init(0)).size,), torch.float32)
            self._common = Common(
                spec,
                pooled.kind,
                (pooled.training.ranges, pooled.held_out.ranges),
                (inputs, targets, held_out_inputs, held_out_targets),
                model,
                self._share((1,), torch.int64),
            )
            places = [
                Place(
                    device,
                    resources.threads or 1,
                    self._share((SLOTS, learner.contribution_layout.size), torch.float32),
                )
                for device in resources.devices()
            ]
            return [_ProcessSeat(self._common, place) for place in places]
        except BaseException:
            self._give_back()
            raise

    def _allocate(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return self._share(shape, dtype).tensor

    def _share(self, shape: tuple[int, ...], dtype: torch.dtype) -> SharedTensor:
        self._shared.append(SharedTensor.zeros(shape, dtype))
        return self._shared[-1]

    def _give_back(self) -> None:
        while self._shared:
            self._shared.pop().close()


class _ProcessSeat:
    def __init__(self, common: Common, place: Place) -> None:
        self._common = common
        self._place = place
        self._free_slots = list(range(SLOTS))
        self._start()

    def train(self, client_id: str, round_number: int) -> Result | Refused:
        """Train a client, and return its contribution, which others will not be left on top of while anybody holds it."""
        slot = self._free_slots.pop()
        try:
            found = self._ask(TrainRequest(client_id, round_number, int(self._common.stops.tensor), slot))
        except WorkerLostError:
            self._free_slots.append(slot)
            raise
        if isinstance(found, Result):
            return dataclasses.replace(found, vector=self._taken(slot))
        self._free_slots.append(slot)
        if isinstance(found, TrainingStopped):
            raise found
        assert isinstance(found, Refused)
        return found

    def _taken(self, slot: int) -> Vector:
        """Return what lies in a slot: as it is there if the next contribution has another one, else a copy."""
        shared = self._place.contributions.tensor[slot].numpy()
        if not self._free_slots:
            self._free_slots.append(slot)
            return shared.copy()
        vector = np.frombuffer(shared.data, dtype=np.float32)
        weakref.finalize(vector, self._free_slots.append, slot).atexit = False
        return vector

    def evaluate(self, client_ids: Sequence[str]) -> list[Evaluation | Refused]:
        """Measure the published model."""
        found = self._ask(EvaluateRequest(tuple(client_ids)))
        assert isinstance(found, list)
        return found

    def replace(self) -> None:
        """Start another process."""
        self.close()
        self._start()

    def interrupt(self) -> None:
        """Do nothing: a stop ends what the worker is at after its next step."""

    def close(self) -> None:
        """End the process, which ends by itself once it is asked for nothing more."""
        self._pipe.close()
        self._process.join()

    def _start(self) -> None:
        ours, theirs = _CONTEXT.Pipe()
        # The process that forks workers has the environment of its own start, which may be long ago.
        settings = {name: value for name, value in os.environ.items() if name.startswith("CHORAL_")}
        process = _CONTEXT.Process(target=_work, args=(self._common, self._place, theirs, settings), daemon=True)
        with _STARTING, _without_main(), theirs:
            try:
                process.start()
            except (OSError, EOFError) as error:
                raise SimulationError(f"Worker process: must start, got: {error}.") from error
        self._process, self._pipe = process, ours

    def _ask(self, request: TrainRequest | EvaluateRequest) -> object:
        try:
            self._pipe.send(request)
            return self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join()
            raise WorkerLostError(
                f"Worker process {self._process.pid} died, exit status {self._process.exitcode}."
            ) from error


def _work(common: Common, place: Place, pipe: "Connection[object, object]", settings: Mapping[str, str]) -> None:
    """Answer requests until the other end is closed: the life of a worker process. `settings` are environment variables."""
    os.environ.update(settings)
    # Ctrl-C goes to the whole group of processes; the one that started this one says when to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(place.threads)
    keep_freed_memory()
    # Chosen here too: a GPU computes alike in the processes that say so.
    worker = Worker(common.spec, common.sites, choose_device(str(place.device)))
    while True:
        try:
            pipe.send(_answer(pipe.recv(), worker, common, place))
        except (EOFError, ConnectionError):
            return


def _answer(request: object, worker: Worker, common: Common, place: Place) -> object:
    model = common.model.tensor.numpy()
    if isinstance(request, EvaluateRequest):
        return [worker.evaluate(client_id, model) for client_id in request.client_ids]
    assert isinstance(request, TrainRequest)

    def report(_: float) -> None:
        if int(common.stops.tensor) > request.stops:
            raise TrainingStopped("The round has closed.")

    try:
        found = worker.train(request.client_id, request.round_number, model, report)
    except TrainingStopped as stopped:
        return stopped
    if isinstance(found, Result):
        np.copyto(place.contributions.tensor[request.slot].numpy(), found.vector)
        return dataclasses.replace(found, vector=np.empty(0, dtype=np.float32))
    return found


@contextmanager
def _without_main() -> Iterator[None]:
    """Keep a new process from running the script that started this one: it needs nothing of it, and few scripts expect it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


_CONTEXT.set_forkserver_preload(["simulation.worker"])
