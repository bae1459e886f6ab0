"""Runs that are played in this process, with a script for a cohort."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from server.cohort import Order
from server.records import RunRecord, RunState
from server.rounds import Site
from server.runs import Runs
from server.store import Store
from server.store.sqlite import SqliteStore
from tests.loopback import until
from tests.server.cohorts import (
    Act,
    Scene,
    ScriptedCohort,
    bring_drawn,
    drawn,
)
from wire.spec import RunSpec


@contextlib.asynccontextmanager
async def playing(store: Store, cohort: ScriptedCohort, folder: Path, concurrent_count: int = 1) -> AsyncIterator[Runs]:
    """Play runs while the context is open; then end as a coordinator that shuts down."""
    runs = Runs(Site(store, cohort, folder / "runs"), concurrent_count)
    serving = asyncio.create_task(runs.serve())
    try:
        yield runs
    finally:
        serving.cancel()
        await asyncio.wait([serving])
        assert serving.cancelled(), serving.exception()


async def state_of(store: Store, run_id: str, state: RunState) -> RunRecord:
    """Wait until a run has a state, and return it."""

    async def reached() -> RunRecord | None:
        run = await store.run(run_id)
        return run if run.state is state else None

    return await until(reached, f"run {run_id} to be {state.value}")


class Hanging:
    """A script that brings drawn vectors, but hangs in one round until it is told to go on."""

    def __init__(self, round_number: int) -> None:
        self.may_go_on = asyncio.Event()
        self._round_number = round_number

    async def __call__(self, order: Order, client_id: str) -> Act:
        if order.round_number == self._round_number:
            await self.may_go_on.wait()
        return drawn(order.round_number, client_id)


def asked(cohort: ScriptedCohort) -> list[tuple[str, int]]:
    """Return the run and round of every training so far."""
    return [(order.run_id, order.round_number) for order, _ in cohort.trained]


async def undisturbed(configured: RunSpec, folder: Path) -> RunRecord:
    """Play a run of drawn vectors from beginning to end."""
    store = await SqliteStore.open(folder / "undisturbed.sqlite")
    run = await Scene(store, ScriptedCohort("abc", bring_drawn), folder / "undisturbed").play(configured)
    await store.close()
    return run
