"""Edge clients of this process: agents on the embedded digits, training that a test can hold, and what they are asked to train."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import torch

from client.agent import Agent, AgentConfig
from client.connection import Endpoint
from client.data import LocalData, load_local
from client.policy import Policy
from client.training import Assignment, Result, Trainer
from models import TrainingStopped
from models.learner import Report
from server.coordinator import Coordinator
from server.model import ModelShop
from server.records import RoundRecord, RunState
from tests.loopback import WAIT_SECONDS, until
from wire.spec import RunSpec, validate_spec
from wire.tensors import vector_bytes

TRAIN = Trainer.train
CPU = torch.device("cpu")
DIGITS = load_local("digits,blocks=0", 0.2, 0)
"""104 examples for training, 26 held out."""


def digits_spec(**changes: Any) -> RunSpec:
    """Return a spec for one client with digits, one round without evaluation; parts of it changed; a learner is changed whole."""
    document: dict[str, Any] = {
        "name": "digits",
        "seed": 5,
        "learner": {"name": "mlp", "inputs": [1, 8, 8], "hidden": [16]},
        "rounds": 1,
        "cohort": {"size": 1, "deadline_seconds": 25, "wait_seconds": 25, "retries": 0},
        "local": {"batch_size": 16},
        "evaluate": {"every": 0},
    }
    for key, value in changes.items():
        is_merged = isinstance(document.get(key), dict) and key != "learner"
        document[key] = document[key] | value if is_merged else value
    return validate_spec(document)


def make_agent(
    folder: Path, endpoint: Endpoint | str, data: LocalData = DIGITS, name: str = "ana", policy: Policy | None = None
) -> Agent:
    """Return a client that keeps its key and models in `folder`."""
    where = endpoint if isinstance(endpoint, Endpoint) else Endpoint(endpoint)
    return Agent(AgentConfig(where, folder, name, CPU, 1, policy or Policy()), data)


@contextlib.asynccontextmanager
async def running(agent: Agent) -> AsyncIterator["asyncio.Task[None]"]:
    """Run a client while the context is open."""
    task = asyncio.create_task(agent.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def within(waiting: Awaitable[Any], what: str) -> Any:
    """Return what is waited for; fail when it does not come within the bound."""
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            return await waiting
    except TimeoutError:
        raise AssertionError(f"waited {WAIT_SECONDS:g} s for {what}") from None


async def until_true(condition: Callable[[], object], what: str) -> None:
    """Wait until a condition holds."""

    async def holds() -> bool:
        return bool(condition())

    await until(holds, what)


async def until_joined(coordinator: Coordinator, *agents: Agent) -> None:
    """Wait until clients can be selected."""

    def present() -> bool:
        members = {member.client_id for member in coordinator.sessions.members() if member.is_present}
        return all(agent.client_id in members for agent in agents)

    await until_true(present, "the clients to join")


async def played(coordinator: Coordinator, spec: RunSpec, state: RunState = RunState.FINISHED) -> list[RoundRecord]:
    """Submit a run, wait until it has come to a state, and return its rounds."""
    run = await coordinator.runs.submit(spec)

    async def ended() -> bool:
        found = await coordinator.store.run(run.run_id)
        assert found.state is state or found.state in (RunState.QUEUED, RunState.RUNNING), found.reason
        return found.state is state

    await until(ended, f"the run to be {state.value}")
    return list(await coordinator.store.rounds(run.run_id))


class HeldTraining:
    """Stands around `Trainer.train`: counts calls, and stops each in the middle until the test lets it go on."""

    def __init__(self) -> None:
        self.is_open = threading.Event()
        self.rounds: list[int] = []
        self.stopped: list[int] = []
        self.finished: list[int] = []
        self._train = Trainer.train

    def install(self) -> Callable[..., Result]:
        """Return the function that replaces `Trainer.train`."""

        def train(trainer: Trainer, assignment: Assignment, data: LocalData, report: Report) -> Result:
            self.rounds.append(assignment.round_number)

            def hold(fraction: float) -> None:
                report(fraction)
                while fraction >= 0.5 and not self.is_open.wait(0.005):
                    report(0.5)

            try:
                result = self._train(trainer, assignment, data, hold)
            except TrainingStopped:
                self.stopped.append(assignment.round_number)
                raise
            self.finished.append(assignment.round_number)
            return result

        return train


def contribution(spec: RunSpec, round_number: int = 1, client_id: str = "c" * 32) -> bytes:
    """Return what a client must bring, trained here: by the function itself, whatever a test has put in its place."""
    assignment = Assignment(spec, round_number, client_id, ModelShop(spec).initial().vector)
    result = TRAIN(Trainer(spec.learner, CPU), assignment, DIGITS, lambda fraction: None)
    return bytes(vector_bytes(result.vector))
