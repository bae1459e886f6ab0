"""Routes of what a run's rounds were like in numbers: summaries, curves, and what each client has done."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from server.api.curves import Curves, MetricCurves
from server.api.history import participations, summaries
from server.api.lists import as_json, listed, name_order
from server.api.pages import PAGED, OfPage
from server.api.rounds import After, Limit
from server.api.sources import Sources
from server.records import Participation, RoundSummary

Names = Annotated[
    str, Query(description="Metrics, with commas between them; default: all.", examples=["accuracy,loss"])
]
Search = Annotated[str, Query(description="Part of a client's name, or the beginning of its identity.")]
Points = Annotated[int, Query(ge=1, le=2000, description="Buckets of rounds at most.")]


class ParticipationView(Participation):
    """What one client has done in the committed rounds of one run."""

    name: str
    """The client's; empty where it is not known."""


def summary_routes(sources: Sources) -> APIRouter:
    """Return the routes of summaries."""
    router = APIRouter(tags=["rounds"])
    store, curves = sources.store, Curves(sources.store)

    @router.get(
        "/runs/{run_id}/summaries", summary="List summaries of committed rounds", response_model=list[RoundSummary]
    )
    async def list_summaries(run_id: str, after: After = 0, limit: Limit = 100) -> Response:
        return await listed(await summaries(store, await store.run(run_id), after, limit))

    @router.get("/runs/{run_id}/metrics", summary="Show metrics over the rounds", response_model=MetricCurves)
    async def metrics(run_id: str, names: Names = "", points: Points = 400) -> Response:
        """Show metrics over all committed rounds, in at most `points` buckets of equally many rounds."""
        wanted = [name.strip() for name in names.split(",") if name.strip()]
        found = await curves.of(await store.run(run_id), wanted, points)
        return Response(await asyncio.to_thread(as_json, found), media_type="application/json")

    @router.get(
        "/runs/{run_id}/participation",
        summary="List what each client has done in a run, by name",
        response_model=list[ParticipationView],
        responses=PAGED,
    )
    async def participation(run_id: str, request: Request, page: OfPage, search: Search = "") -> Response:
        names, text = await sources.names(), search.lower()
        found = [
            one
            for one in await participations(store, await store.run(run_id))
            if text in names.get(one.client_id, "").lower() or one.client_id.startswith(text)
        ]
        ordered = sorted(found, key=lambda one: name_order(names.get(one.client_id, ""), one.client_id))
        shown = [ParticipationView(**dict(one), name=names.get(one.client_id, "")) for one in page.of(ordered)]
        return page.mark(await listed(shown), request, len(found))

    return router
