"""Whole federations of a learner under check: in a plain loop, simulated, and deployed over gRPC in this process."""

import asyncio
import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tenacity import AsyncRetrying, retry_if_result, stop_after_delay, wait_fixed
from torch import Tensor

from choral.conformance.case import Case, Nonconforming
from client.agent import Agent, AgentConfig
from client.connection import Endpoint
from client.data import LocalData
from client.policy import Policy
from models import Examples, ServerOptimizer
from server.aggregation import WeightedMean
from server.checkpoints import checkpoint_path
from server.coordinator import Coordinator, CoordinatorConfig, serve
from server.model import read_checkpoint
from server.records import RunRecord, RunState
from server.rounds import Site
from server.store import open_store
from simulation.play import RUN_ID, play
from simulation.resources import Resources
from simulation.serial import SerialCohort
from wire.grid import Grid
from wire.seeds import derive_generator, derive_seed
from wire.spec import CohortSpec, EvaluateSpec, RunSpec
from wire.tensors import Layout, Vector

WAIT_SECONDS = 120.0
"""Longest wait for a deployed run of two small rounds."""


def spec_of(case: Case, client_count: int, rounds: int) -> RunSpec:
    """Return the case's spec for so many clients, all of them in each round."""
    cohort = CohortSpec(size=client_count, deadline_seconds=WAIT_SECONDS, wait_seconds=WAIT_SECONDS)
    changes = {"rounds": rounds, "cohort": cohort, "stop_when": None, "evaluate": EvaluateSpec(), "simulation": None}
    return case.spec.model_copy(update=changes)


def client_ids(count: int) -> list[str]:
    """Return identities of simulated clients."""
    return [f"client-{place}" for place in range(count)]


def site_of(data: Examples) -> LocalData:
    """Return a client that trains on all of its examples, and evaluates on the first few of the same: no result is reported of it."""
    return LocalData("memory", data, data.select(torch.arange(min(len(data), 16), device=data.inputs.device)))


def central_state(case: Case, client_id: str, rounds: int) -> Mapping[str, Tensor]:
    """Train in a plain loop over `fit` and `apply`, with a client's draws and the rounding to the grid of a round of one."""
    learner, spec = case.learner(), spec_of(case, 1, rounds)
    state = learner.init(derive_seed(spec.seed, "init"))
    layout, slots = Layout.of(state), dict[str, Tensor]()
    for number in range(1, rounds + 1):
        generator = derive_generator(spec.seed, "fit", number, client_id)
        found = learner.fit(state, case.data, spec.local_in(number), generator, lambda fraction: None)
        server = ServerOptimizer(spec.server_in(number).optimizer, slots)
        total = WeightedMean(Grid(spec.limits.coordinate_bound, spec.limits.weight_cap, 1), len(found.vector))
        total.add(found.vector, found.example_count)
        mean = learner.contribution_layout.views(total.mean())
        travelling = {entry.name: state[entry.name] for entry in layout.entries}
        state = {**state, **learner.apply(travelling, mean, server, found.example_count)}
        slots = server.slots()
    return state


def serial_model(case: Case, sites: Mapping[str, LocalData], rounds: int) -> Vector:
    """Return the model that the serial simulation ends with, float32 (parameters,)."""

    async def run(folder: Path) -> RunRecord:
        store = await open_store(str(folder / "store.db"))
        try:
            spec = spec_of(case, len(sites), rounds)
            cohort = SerialCohort(spec, sites, Resources(device=str(case.device)))
            with contextlib.closing(cohort):
                return await play(spec, Site(store, cohort, folder, authority=cohort.authority))
        finally:
            await store.close()

    with tempfile.TemporaryDirectory() as name:
        record = asyncio.run(run(Path(name)))
        _require_finished(record, RUN_ID)
        return read_checkpoint(checkpoint_path(Path(name), rounds), Layout.of(case.state)).vector


def deployed_model(
    case: Case, parts: Sequence[Examples], rounds: int, folder: Path
) -> tuple[Path, dict[str, LocalData]]:
    """Play a run with a coordinator and clients over gRPC on loopback.

    Args:
        case: What is trained.
        parts: Each client's data.
        rounds: How many.
        folder: Where everything is kept.

    Returns:
        The path of the saved model, and each client's data by its identity.
    """
    return asyncio.run(_deployed(case, spec_of(case, len(parts), rounds), parts, folder))


async def _deployed(
    case: Case, spec: RunSpec, parts: Sequence[Examples], folder: Path
) -> tuple[Path, dict[str, LocalData]]:
    config = CoordinatorConfig(folder / "coordinator", address="127.0.0.1:0", http_address="127.0.0.1:0")
    async with serve(config) as coordinator, contextlib.AsyncExitStack() as stack:
        sites = {}
        for place, part in enumerate(parts):
            site = site_of(part)
            agent = Agent(
                AgentConfig(
                    Endpoint(coordinator.address),
                    folder / f"client-{place}",
                    f"client-{place}",
                    case.device,
                    torch.get_num_threads(),
                    Policy(),
                ),
                site,
            )
            sites[agent.client_id] = site
            running = asyncio.create_task(agent.run())
            stack.push_async_callback(_ended, running)
        run = await coordinator.runs.submit(spec)
        record = await _finished(coordinator, run.run_id)
        return coordinator.runs.model_path(record), sites


async def _ended(running: "asyncio.Task[None]") -> None:
    running.cancel()
    await asyncio.wait([running])


async def _finished(coordinator: Coordinator, run_id: str) -> RunRecord:
    waiting: AsyncRetrying = AsyncRetrying(
        retry=retry_if_result(lambda record: record.state in (RunState.QUEUED, RunState.RUNNING)),
        wait=wait_fixed(0.02),
        stop=stop_after_delay(WAIT_SECONDS),
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
    )
    record: RunRecord = await waiting(coordinator.store.run, run_id)
    _require_finished(record, run_id)
    return record


def _require_finished(record: RunRecord, what: str) -> None:
    if record.state is not RunState.FINISHED:
        raise Nonconforming(f"run {what} must finish, got {record.state.value}: {record.reason}")
