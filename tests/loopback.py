"""A coordinator served in this process with real sockets, a small run for it, and the model that its rounds must end with."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np

from server.coordinator import Coordinator, CoordinatorConfig, serve
from server.model import Model, ModelShop, read_checkpoint
from server.records import RoundRecord, RunRecord, RunState
from wire.grid import Grid
from wire.spec import RunSpec, validate_spec
from wire.tensors import Vector

WAIT_SECONDS = 30.0
POLL_SECONDS = 0.005

Value = TypeVar("Value")
Part = tuple[Vector, int]
"""A vector and its weight."""


def serving(folder: Path, **changes: Any) -> contextlib.AbstractAsyncContextManager[Coordinator]:
    """Serve a coordinator on free ports of loopback while the context is open."""
    addresses = {"address": "127.0.0.1:0", "http_address": "127.0.0.1:0"}
    return serve(CoordinatorConfig(**({"folder": folder} | addresses | changes)))


def small_spec(**changes: Any) -> RunSpec:
    """Return a spec of 67 parameters: 3 clients a round, quorum 2, no evaluation; parts of it changed."""
    document: dict[str, Any] = {
        "name": "small",
        "seed": 11,
        "learner": {"name": "mlp", "inputs": [4], "hidden": [8], "classes": 3},
        "rounds": 2,
        "cohort": {"size": 3, "quorum": 2, "deadline_seconds": 20, "wait_seconds": 20, "retries": 0},
        "evaluate": {"every": 0},
    }
    for key, value in changes.items():
        document[key] = document[key] | value if isinstance(document.get(key), dict) else value
    return validate_spec(document)


async def until(condition: Callable[[], Awaitable[Value | None]], what: str | Callable[[], str]) -> Value:
    """Return the first true value of `condition`; fail when none comes within the bound, and say what was waited for."""
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                if value := await condition():
                    return value
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        found = what if isinstance(what, str) else what()
        raise AssertionError(f"waited {WAIT_SECONDS:g} s for {found}") from None


async def absent(coordinator: Coordinator, client: str) -> None:
    """Wait until a client has no session."""

    async def gone() -> bool:
        return coordinator.sessions.by_client(client) is None

    await until(gone, f"client {client} to be gone")


async def rest(coordinator: Coordinator, path: str) -> Any:
    """Return what the REST API answers to a GET."""
    async with httpx.AsyncClient(base_url=f"http://{coordinator.http_address}/api/v1", timeout=WAIT_SECONDS) as client:
        return (await client.get(path)).raise_for_status().json()


async def run_in_state(coordinator: Coordinator, run_id: str, state: RunState) -> RunRecord:
    """Wait until a run has a state, and return it."""

    async def reached() -> RunRecord | None:
        run = await coordinator.store.run(run_id)
        assert run.state is state or not (run.state.is_final or run.state is RunState.PAUSED), run.reason
        return run if run.state is state else None

    return await until(reached, f"run {run_id} to be {state.value}")


async def committed_round(coordinator: Coordinator, run_id: str, number: int) -> RoundRecord:
    """Wait until a round is committed, and return it."""

    async def committed() -> RoundRecord | None:
        run = await coordinator.store.run(run_id)
        return await coordinator.store.round(run_id, number) if run.round_number >= number else None

    return await until(committed, f"round {number} to be committed")


@contextlib.asynccontextmanager
async def everyone(contexts: Sequence[contextlib.AbstractAsyncContextManager[Value]]) -> AsyncIterator[list[Value]]:
    """Enter contexts one after the other, and leave them in the opposite order."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(context) for context in contexts]


def model_after(folder: Path, run: RunRecord, number: int) -> Model:
    """Read the checkpoint of a round."""
    path = folder / "runs" / run.run_id / f"round-{number:07d}.safetensors"
    return read_checkpoint(path, ModelShop(run.spec).initial().layout)


def exact_model(spec: RunSpec, base: Vector, parts: Sequence[Part], asked_count: int) -> Vector:
    """Return base + mean of the parts, worked out in fractions: what FedAvg on the grid of `asked_count` clients must give."""
    scale = Fraction(2) ** Grid(spec.limits.coordinate_bound, spec.limits.weight_cap, asked_count).exponent
    weight_total = sum(weight for _, weight in parts)
    mean = np.empty(len(base), dtype=np.float32)
    for index in range(len(base)):
        steps = sum(round(Fraction(float(vector[index])) * weight * scale) for vector, weight in parts)
        mean[index] = float(Fraction(steps, weight_total * scale))
    return base + mean
