"""The Ray engine: the workers of `simulation.worker` as Ray actors, on a cluster of the user's or one of its own.

The model is put once a round and the examples once in all, so that a node fetches them once however many of its actors read them. Results
equal the serial engine's to the bit, as long as all nodes compute alike and with the same number of threads.

Source: Moritz et al., "Ray: A Distributed Framework for Emerging AI Applications", OSDI 2018. https://arxiv.org/abs/1712.05889
"""

import logging
import os
import socket
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import ray
import torch
from ray.exceptions import (
    GetTimeoutError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    WorkerCrashedError,
)

from client.data import LocalData
from client.device import choose_device
from client.training import Result
from models import Evaluation, Examples, bases, own
from simulation.cohort import Refused
from simulation.crew import CrewCohort
from simulation.errors import SimulationError, WorkerLostError
from simulation.pool import Pool, PooledSites
from simulation.resources import Resources
from simulation.worker import Worker
from wire.memory import keep_freed_memory
from wire.spec import RunSpec
from wire.tensors import Vector

READY_SECONDS = 60.0
"""Longest wait until an actor is placed on a node and has imported torch."""

CONNECT_SECONDS = 10.0
"""Longest wait for a cluster's head to answer."""

SETTINGS = (own.VARIABLE, bases.FOLDER_VARIABLE)
"""Environment variables that actors need. Others, such as a token, are no business of a cluster's."""

_LOST = (RayActorError, WorkerCrashedError, OutOfMemoryError, ObjectLostError)


@dataclass(frozen=True, slots=True)
class Plan:
    """What every actor is made of.

    Attributes:
        spec: The run.
        kind: What the data was read from.
        ranges: Which examples are whose: for training, and held out.
        arrays: Inputs and targets for training, and inputs and targets held out: a reference to NumPy arrays.
        device: Where actors train: "auto", "cpu" or "cuda".
        threads: Threads of each for training on a CPU.
        cpus: CPUs that each one asks the cluster for.
        gpus: GPUs likewise.
        settings: Environment variables for those that a node has not set itself, such as the learners of the user's own.
    """

    spec: RunSpec
    kind: str
    ranges: tuple[Mapping[str, range], Mapping[str, range]]
    arrays: Any
    device: str
    threads: int
    cpus: int
    gpus: int
    settings: Mapping[str, str]


class RayCohort(CrewCohort):
    """Clients that Ray actors train."""

    def __init__(self, spec: RunSpec, sites: Mapping[str, LocalData], resources: Resources | None = None) -> None:
        """Connect to Ray and start the actors.

        A process that is connected already stays so. Else it joins the cluster of `resources.ray_address`, or makes one of its own, which
        ends with the cohort.

        Args:
            spec: The run that it will work for.
            sites: Each client's data, by identity.
            resources: How many actors, where, and with how many threads.

        Raises:
            DataError: Some client's data does not suit the learner, or is not of the others' shape.
            SimulationError: The spec's trace of clients cannot be used, the cluster cannot be reached, or has no room for the actors.
        """
        self._is_ours = False
        self._model: list[Any] = []
        super().__init__(spec, sites, lambda: self._take_seats(spec, sites, resources or Resources()))

    def close(self) -> None:
        """End the actors, and the cluster if it was made for them; another one stays as it is."""
        super().close()
        self._disconnect()

    def _publish(self, vector: Vector) -> None:
        self._model[:] = [ray.put(vector)]

    def _stop(self) -> None:
        """Do nothing: an actor ends what it is at."""

    def _take_seats(self, spec: RunSpec, sites: Mapping[str, LocalData], resources: Resources) -> Sequence["RaySeat"]:
        device, threads = resources.device, resources.threads or 1
        self._is_ours = not ray.is_initialized()
        try:
            if self._is_ours:
                _connect(resources.ray_address, resources.workers, threads)
            pooled = PooledSites.copied(sites, lambda shape, dtype: torch.empty(shape, dtype=dtype))
            amounts = ray.cluster_resources()
            gpu_count = 0 if device == "cpu" else int(amounts.get("GPU", 0))
            count = resources.workers or gpu_count or max(1, int(amounts.get("CPU", 1)) // threads)
            plan = Plan(
                spec,
                pooled.kind,
                (pooled.training.ranges, pooled.held_out.ranges),
                ray.put(_arrays(pooled)),
                device if gpu_count else "cpu",
                threads,
                0 if gpu_count else threads,
                1 if gpu_count else 0,
                {name: os.environ[name] for name in SETTINGS if name in os.environ},
            )
            return _seated(plan, self._model, count)
        except BaseException:
            self._disconnect()
            raise

    def _disconnect(self) -> None:
        if self._is_ours:
            ray.shutdown()


class RaySeat:
    """The place of one actor.

    Attributes:
        actor: Ray's handle of it.
    """

    def __init__(self, plan: Plan, model: list[Any]) -> None:
        self._plan = plan
        self._model = model
        self.actor = self._start()

    def train(self, client_id: str, round_number: int) -> Result | Refused:
        """Train a client."""
        found: Result | Refused = self._get(self.actor.train.remote(client_id, round_number, self._model[0]))
        return found

    def evaluate(self, client_ids: Sequence[str]) -> list[Evaluation | Refused]:
        """Measure the published model."""
        found: list[Evaluation | Refused] = self._get(self.actor.evaluate.remote(list(client_ids), self._model[0]))
        return found

    def await_ready(self) -> None:
        """Wait until the actor has a place on a node. Raises `SimulationError`."""
        try:
            ray.get(self.actor.process_id.remote(), timeout=READY_SECONDS)
        except GetTimeoutError as error:
            raise SimulationError(
                f"Ray: every actor must get {self._plan.cpus} CPUs and {self._plan.gpus} GPUs within {READY_SECONDS:g} s, got none; "
                f"free are {_amounts(ray.available_resources())} of {_amounts(ray.cluster_resources())}. Ask for fewer workers."
            ) from error
        except RayError as error:
            # The last line of a traceback of theirs.
            said = str(error).rstrip().splitlines()[-1].strip()
            raise SimulationError(f"Ray: actors must start, got: {said}") from error

    def replace(self) -> None:
        """Start another actor, on whatever node Ray chooses."""
        self.close()
        self.actor = self._start()
        self.await_ready()

    def interrupt(self) -> None:
        """End the actor: what it is at cannot be stopped."""
        self.close()

    def close(self) -> None:
        """End the actor."""
        ray.kill(self.actor, no_restart=True)

    def _start(self) -> Any:
        kind = ray.remote(_Actor).options(num_cpus=self._plan.cpus, num_gpus=self._plan.gpus)
        return kind.remote(self._plan, self._plan.arrays)

    def _get(self, reference: Any) -> Any:
        try:
            return ray.get(reference)
        except _LOST as error:
            raise WorkerLostError(f"Ray actor died: {str(error).splitlines()[0]}") from error


class _Actor:
    """A worker on some node."""

    def __init__(self, plan: Plan, arrays: Sequence[Any]) -> None:
        # What Ray hands in lies in its shared memory, to be read only; nobody here writes to it.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        os.environ.update({name: value for name, value in plan.settings.items() if name not in os.environ})
        torch.set_num_threads(plan.threads)
        keep_freed_memory()
        inputs, targets, held_out_inputs, held_out_targets = map(torch.from_numpy, arrays)
        training = Pool(Examples(inputs, targets), plan.ranges[0])
        held_out = Pool(Examples(held_out_inputs, held_out_targets), plan.ranges[1])
        device = choose_device(plan.device)
        self._worker = Worker(plan.spec, PooledSites(plan.kind, training, held_out), device)

    def process_id(self) -> int:
        """Return the process's id."""
        return os.getpid()

    def train(self, client_id: str, round_number: int, vector: Vector) -> Result | Refused:
        """Train a client from a model."""
        return self._worker.train(client_id, round_number, vector, lambda _: None)

    def evaluate(self, client_ids: Sequence[str], vector: Vector) -> list[Evaluation | Refused]:
        """Measure a model on the held-out data of clients."""
        return [self._worker.evaluate(client_id, vector) for client_id in client_ids]


def _connect(address: str | None, workers: int | None, threads: int) -> None:
    made: dict[str, Any] = {}
    # An actor without a GPU is told where to train; Ray need not hide the GPUs from it, and warn that it will not.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address is None:
        # Nothing of a cluster of our own leaves this machine.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        made = {"num_cpus": workers * threads if workers else None, "include_dashboard": False}
    try:
        if address and ":" in address:
            # Ray itself would go on trying for two minutes.
            parts = urlsplit(address if "://" in address else f"//{address}")
            socket.create_connection((parts.hostname, parts.port), CONNECT_SECONDS).close()
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **made)
    except (OSError, RayError, ValueError, RuntimeError) as error:
        raise SimulationError(f"Ray cluster {address or 'of its own'}: must be reachable, got: {error}") from error


def _seated(plan: Plan, model: list[Any], count: int) -> list[RaySeat]:
    """Start all actors at the same time, and wait until they are ready."""
    seats = [RaySeat(plan, model) for _ in range(count)]
    try:
        for seat in seats:
            seat.await_ready()
    except SimulationError:
        for seat in seats:
            seat.close()
        raise
    return seats


def _arrays(pooled: PooledSites) -> list[Any]:
    parts = (pooled.training.data, pooled.held_out.data)
    return [tensor.numpy() for part in parts for tensor in (part.inputs, part.targets)]


def _amounts(resources: Mapping[str, float]) -> str:
    return f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"
