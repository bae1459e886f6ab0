"""Routes of a run's rounds."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from server.api.lists import as_json, joined, streamed
from server.api.sources import Sources
from server.records import RoundRecord
from server.store import Store

PIECE_ROUNDS = 8
"""Rounds that are read and written at a time."""

After = Annotated[int, Query(ge=0, le=1 << 53, description="Number of the round to begin after.")]
Limit = Annotated[int, Query(ge=1, le=1000, description="How many to return at most.")]
Number = Annotated[int, Path(ge=1, le=1 << 53, description="The round's number.")]


def round_routes(sources: Sources) -> APIRouter:
    """Return the routes of rounds."""
    router = APIRouter(tags=["rounds"])
    store = sources.store

    @router.get("/runs/{run_id}/rounds", summary="List a run's rounds, oldest first", response_model=list[RoundRecord])
    async def rounds(run_id: str, after: After = 0, limit: Limit = 100) -> Response:
        await store.run(run_id)
        return await streamed(_round_pages(store, run_id, after, limit), "application/json")

    @router.get("/runs/{run_id}/rounds/{number}", summary="Show a round", response_model=RoundRecord)
    async def show(run_id: str, number: Number) -> Response:
        record = await store.round(run_id, number)
        return Response(await asyncio.to_thread(as_json, record), media_type="application/json")

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
