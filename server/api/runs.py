"""Routes of runs: submit, list, show, steer, and their rounds and models."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import FileResponse

from server.api.lists import joined, listed, streamed
from server.records import RoundRecord, RunRecord
from server.runs import Runs
from server.store import Store
from wire.spec import validate_spec

PIECE_ROUNDS = 8
"""Rounds that are read and written at a time."""


class RunView(RunRecord):
    """A run and what it is doing now."""

    status: str
    """One line; of a wait it says for what, how much is missing and how long it may still take."""


def run_routes(runs: Runs, store: Store) -> APIRouter:
    """Return the routes of runs."""
    router = APIRouter(tags=["runs"])

    def view(run: RunRecord) -> RunView:
        return _run_view(run, runs.status(run))

    @router.post("/runs", status_code=201, summary="Submit a run spec")
    async def submit(spec: dict[str, Any]) -> RunView:
        # A spec of a mebibyte takes long to look at, and longer to find fault with.
        return view(await runs.submit(await asyncio.to_thread(validate_spec, spec)))

    @router.get("/runs", summary="List runs, oldest first", response_model=list[RunView])
    async def list_runs() -> Response:
        found = [(run, runs.status(run)) for run in await store.runs()]
        return await listed(_run_view(run, status) for run, status in found)

    @router.get("/runs/{run_id}", summary="Show a run")
    async def show(run_id: str) -> RunView:
        return view(await store.run(run_id))

    @router.get("/runs/{run_id}/rounds", summary="List a run's rounds, oldest first", response_model=list[RoundRecord])
    async def rounds(
        run_id: str, after: Annotated[int, Query(ge=0)] = 0, limit: Annotated[int, Query(ge=1, le=1000)] = 100
    ) -> Response:
        await store.run(run_id)
        return await streamed(_round_pages(store, run_id, after, limit))

    @router.get("/runs/{run_id}/model", summary="Download a run's model (safetensors)", response_class=FileResponse)
    async def model(run_id: str) -> FileResponse:
        run = await store.run(run_id)
        name = f"{run.spec.name}-{run.round_number}.safetensors"
        return FileResponse(runs.model_path(run), media_type="application/octet-stream", filename=name)

    @router.post("/runs/{run_id}/pause", summary="Pause a run at its last committed round")
    async def pause(run_id: str) -> RunView:
        return view(await runs.pause(run_id))

    @router.post("/runs/{run_id}/resume", summary="Queue a paused run again")
    async def resume(run_id: str) -> RunView:
        return view(await runs.resume(run_id))

    @router.post("/runs/{run_id}/stop", summary="End a run for good")
    async def stop(run_id: str) -> RunView:
        return view(await runs.stop(run_id))

    return router


async def _round_pages(store: Store, run_id: str, after: int, limit: int) -> AsyncGenerator[bytes, None]:
    """Yield a JSON list of rounds in pieces: as a whole it may hold a million contributions.

    As objects they would take gigabytes, and each look of the garbage collector at them would hold up the event loop.
    """
    start = b"["
    while limit > 0 and (found := await store.rounds(run_id, after, min(limit, PIECE_ROUNDS))):
        yield start + await asyncio.to_thread(joined, found)
        start, after, limit = b",", found[-1].number, limit - len(found)
    yield b"[]" if start == b"[" else b"]"


def _run_view(run: RunRecord, status: str) -> RunView:
    return RunView(**run.model_dump(exclude={"spec"}), spec=run.spec, status=status)
