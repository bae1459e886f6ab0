"""Routes of events: a list, and a stream for who watches."""

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request, Response

from server.api.lists import listed, streamed
from server.api.sources import Sources
from server.records import EventRecord

RunId = Annotated[str, Query(description="Events of one run; default: of all, and of clients.")]
EventId = Annotated[int, Query(ge=0, le=1 << 53, description="Number of the event to begin after.")]

STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Server-sent events, without end.",
        "content": {
            "text/event-stream": {
                "schema": {"type": "string"},
                "example": 'event: round_committed\ndata: {"event_id":7,"time":1767225600.5,"kind":"round_committed",'
                '"run_id":"3f2a9c0d1e4b","client_id":"","detail":"round 2"}\nid: 7\n\n',
            }
        },
    }
}


def event_routes(sources: Sources) -> APIRouter:
    """Return the routes of events."""
    router = APIRouter(tags=["events"])

    @router.get("/events", summary="List events", response_model=list[EventRecord])
    async def events(
        run_id: RunId = "",
        after: EventId = 0,
        limit: Annotated[int, Query(ge=1, le=1000, description="How many to return at most.")] = 100,
        order: Annotated[Literal["oldest", "newest"], Query(description="Which come first.")] = "oldest",
    ) -> Response:
        return await listed(await sources.store.events(run_id, after, limit, order == "newest"))

    @router.get("/events/stream", summary="Follow events", response_class=Response, responses=STREAM)
    async def stream(
        request: Request,
        run_id: RunId = "",
        after: Annotated[
            int | None, Query(ge=0, le=1 << 53, description="As Last-Event-ID, for the first time.")
        ] = None,
        last_event_id: Annotated[str, Header(description="Number of the last event that was read.")] = "",
    ) -> Response:
        """Follow events as they happen.

        Each has its number as id, its kind as event and its record as data. Who comes back with Last-Event-ID is given what happened
        since. Beside them, at most twice a second, come events `status` without id: first all that goes on, then what has changed.
        The stream ends when the token with which it was asked for is revoked or has run out.
        """
        if run_id:
            await sources.store.run(run_id)
        # A browser sends it of its own accord, and may have it from elsewhere.
        if last_event_id.isascii() and last_event_id.isdecimal():
            after = int(last_event_id[:18])
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        view = _while(request.state.may_stay, sources.broadcast.view(run_id, after))
        return await streamed(view, "text/event-stream", headers)

    return router


async def _while(
    may_stay: Callable[[], Awaitable[bool]], pieces: AsyncGenerator[bytes, None]
) -> AsyncGenerator[bytes, None]:
    """Yield pieces as long as their reader may stay."""
    async with contextlib.aclosing(pieces):
        async for piece in pieces:
            if not await may_stay():
                return
            yield piece
