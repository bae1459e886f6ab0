"""A cohort whose clients do what a script says, and the smallest runs to play with it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from client.data import LocalData, load_local
from models import Evaluation, Examples
from server.checkpoints import checkpoint_path
from server.cohort import Cohort, Member, Order
from server.inbox import Arrival, Ballot, Inbox
from server.model import Model, ModelShop, read_checkpoint
from server.monitoring.status import Status
from server.records import RunRecord, RunState
from server.rounds import Rounds, Site
from server.signal import Signal
from server.store import Store
from server.store.sqlite import SqliteStore
from tests.loopback import until
from wire.federation_pb2 import RefusalReason
from wire.spec import RunSpec, validate_spec
from wire.tensors import Vector

SIZE = 4
"""Parameters of the model of `spec`: a weight of (2, 1) and a bias of (2,)."""


@dataclass(frozen=True)
class Bring:
    """Contribute a vector, of four equal coordinates if a number is given."""

    value: float | Vector
    weight: int = 1
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def vector(self) -> Vector:
        if isinstance(self.value, np.ndarray):
            return self.value
        return np.full(SIZE, self.value, dtype=np.float32)


@dataclass(frozen=True)
class Decline:
    """Say that there is nothing to bring."""

    detail: str = "the data is gone"
    reason: RefusalReason = RefusalReason.REFUSAL_REASON_CLIENT_DATA


Act = Bring | Decline | None
"""What a client does when it is asked to train; None: it says nothing, for ever."""

Train = Callable[[Order, str], Awaitable[Act]]
Evaluate = Callable[[Order, str], Awaitable[Evaluation | Decline | None]]


async def bring_one(order: Order, client_id: str) -> Act:
    return Bring(1.0)


async def evaluate_nothing(order: Order, client_id: str) -> Evaluation:
    return Evaluation(0, {})


class ScriptedCohort(Cohort):
    """Clients of this process. Notes who was asked for what, and fails when two runs have one client."""

    def __init__(
        self, client_ids: Sequence[str], train: Train = bring_one, evaluate: Evaluate = evaluate_nothing
    ) -> None:
        self.train_script = train
        self.evaluate_script = evaluate
        self.trained: list[tuple[Order, tuple[str, ...]]] = []
        self.evaluated: list[tuple[Order, tuple[str, ...]]] = []
        self.absent_since: dict[str, float] = {}
        self.claims: dict[str, str] = {}
        self._client_ids = list(client_ids)
        self._changed = Signal()

    @property
    def changed(self) -> Signal:
        return self._changed

    def come(self, client_id: str) -> None:
        self._client_ids.append(client_id)
        self._changed.notify()

    def leave(self, client_id: str) -> None:
        self.absent_since[client_id] = asyncio.get_running_loop().time()
        self._changed.notify()

    def members(self) -> Sequence[Member]:
        return [member for client_id in sorted(self._client_ids) if (member := self.member(client_id))]

    def member(self, client_id: str) -> Member | None:
        if client_id not in self._client_ids:
            return None
        return Member(
            client_id,
            client_id,
            client_id not in self.absent_since,
            self.absent_since.get(client_id, 0.0),
            self.claims.get(client_id, ""),
        )

    @contextlib.contextmanager
    def claim(self, client_ids: Sequence[str], run_id: str) -> Iterator[None]:
        taken = self.claims.keys() & set(client_ids)
        assert not taken, f"{sorted(taken)} were claimed for {run_id} while they worked for another run"
        self.claims |= dict.fromkeys(client_ids, run_id)
        try:
            yield
        finally:
            for client_id in client_ids:
                del self.claims[client_id]
            self._changed.notify()

    async def train(self, order: Order, client_ids: Sequence[str], inbox: Inbox) -> None:
        async def take_part(client_id: str) -> None:
            match await self.train_script(order, client_id):
                case Bring() as act:
                    await inbox.admit(
                        Arrival(client_id, inbox.binding, act.weight, act.weight, act.metrics, 0.0, act.vector)
                    )
                case Decline() as act:
                    inbox.refuse(client_id, act.reason, act.detail)

        self.trained.append((order, tuple(client_ids)))
        async with asyncio.TaskGroup() as group:
            for client_id in client_ids:
                group.create_task(take_part(client_id))

    async def evaluate(self, order: Order, client_ids: Sequence[str], ballot: Ballot) -> None:
        async def take_part(client_id: str) -> None:
            match await self.evaluate_script(order, client_id):
                case Evaluation() as evaluation:
                    ballot.record(client_id, evaluation)
                case Decline() as act:
                    ballot.fail(client_id, act.reason, act.detail)

        self.evaluated.append((order, tuple(client_ids)))
        async with asyncio.TaskGroup() as group:
            for client_id in client_ids:
                group.create_task(take_part(client_id))


def spec(**changes: Any) -> RunSpec:
    """Return a spec of four parameters and one round for all of three clients, without evaluation; parts of it changed."""
    document: dict[str, Any] = {
        "name": "tiny",
        "seed": 5,
        "learner": {"name": "mlp", "inputs": [1], "hidden": [], "classes": 2},
        "rounds": 1,
        "cohort": {"size": 3, "deadline_seconds": 20, "wait_seconds": 20, "retries": 0},
        "evaluate": {"every": 0},
    }
    for key, value in changes.items():
        document[key] = document[key] | value if isinstance(document.get(key), dict) else value
    return validate_spec(document)


@contextlib.asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Store]:
    """Open the store of a folder."""
    store = await SqliteStore.open(folder / "choral.sqlite")
    try:
        yield store
    finally:
        await store.close()


@dataclass
class Scene:
    """A run, and what it needs to be played."""

    store: Store
    cohort: Cohort
    folder: Path
    own_data: Examples | None = None
    run_id: str = "run"
    status: Status = field(default_factory=Status)

    async def rounds(self, spec: RunSpec) -> Rounds:
        """Return the rounds of the run as it is stored; of a new run if it is not."""
        if self.run_id not in [run.run_id for run in await self.store.runs()]:
            run = RunRecord(run_id=self.run_id, spec=spec, state=RunState.RUNNING, submitted_time=1.0)
            await self.store.put_run(run)
        run = await self.store.run(self.run_id)
        return Rounds(run, Site(self.store, self.cohort, self.folder, self.own_data), self.status)

    async def play(self, spec: RunSpec) -> RunRecord:
        """Play the run to its end."""
        return await (await self.rounds(spec)).play()

    def model(self, spec: RunSpec, number: int) -> Model:
        """Return the model after a round; 0: before the first."""
        initial = ModelShop(spec).initial()
        return read_checkpoint(checkpoint_path(self.folder, number), initial.layout) if number else initial

    @property
    def scripted(self) -> ScriptedCohort:
        """The cohort, which follows a script."""
        assert isinstance(self.cohort, ScriptedCohort)
        return self.cohort


def script(**acts: Act) -> Callable[[Order, str], Awaitable[Act]]:
    """Return a script by client: what each does in every round."""

    async def train(order: Order, client_id: str) -> Act:
        return acts[client_id]

    return train


def drawn(round_number: int, client_id: str) -> Bring:
    """Return what a client brings to a round: the same on every call."""
    generator = np.random.default_rng([round_number, ord(client_id)])
    return Bring(generator.normal(size=SIZE).astype(np.float32), weight=1 + ord(client_id) - ord("a"))


def drawn_mean(round_number: int, client_ids: str) -> Vector:
    """Return the mean of what clients bring, worked out in fractions."""
    parts = [drawn(round_number, client_id) for client_id in client_ids]
    total = sum(part.weight for part in parts)
    sums = [sum(part.weight * Fraction(float(part.vector[index])) for part in parts) for index in range(SIZE)]
    return np.array([float(value / total) for value in sums], dtype=np.float32)


async def bring_drawn(order: Order, client_id: str) -> Act:
    return drawn(order.round_number, client_id)


async def when(condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition holds; fail when it does not within the bound."""

    async def holds() -> bool:
        return condition()

    await until(holds, what)


async def end_of(task: asyncio.Task[RunRecord]) -> None:
    """Cancel a task and wait for its end."""
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


DIGITS: dict[str, Any] = {"learner": {"name": "mlp", "inputs": [1, 8, 8], "hidden": [], "classes": 10}}


def blocks(*numbers: int, held_out: float = 0.2) -> dict[str, LocalData]:
    return {f"site-{number}": load_local(f"digits,blocks={number}", held_out, 0) for number in numbers}
