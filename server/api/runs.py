"""Routes of runs: submit, check, list, show and steer."""

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends, Query, Request, Response
from pydantic import BaseModel

from server.api.body import OnceKeyedRoute
from server.api.lists import listed
from server.api.pages import PAGED, OfPage
from server.api.sources import Sources
from server.monitoring.now import Now, Waiting
from server.records import RunRecord, RunState
from server.runs import check_run
from wire.spec import validate_spec

SPEC = {
    "name": "digits-cnn",
    "seed": 7,
    "learner": {"name": "cnn", "channels": [16, 32], "classes": 10},
    "rounds": 20,
    "cohort": {"size": 2, "quorum": 1, "deadline_seconds": 120},
}
SpecBody = Annotated[dict[str, Any], Body(openapi_examples={"digits": {"summary": "Digits", "value": SPEC}})]
PatchBody = Annotated[
    dict[str, Any], Body(openapi_examples={"seed": {"summary": "With another seed", "value": {"seed": 8}}})
]


class RunView(RunRecord):
    """A run and what it is doing now."""

    phase: str = ""
    """Of the round after the last committed one, such as "train"; empty where no round is played."""
    status: str
    """One line; of a wait it says for what, how much is missing and how long it may still take."""
    waiting: Waiting | None = None


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs are asked for, and in which order."""

    states: tuple[RunState, ...]
    text: str
    """Of a name, or the beginning of an identity; in lower case."""
    learner: str
    order: Literal["newest", "oldest"]

    def takes(self, run: RunRecord) -> bool:
        """Tell whether a run is asked for."""
        return (
            (not self.states or run.state in self.states)
            and (not self.learner or run.spec.learner.name == self.learner)
            and (self.text in run.spec.name.lower() or run.run_id.startswith(self.text))
        )


async def _run_filter(
    state: Annotated[tuple[RunState, ...], Query(description="Runs in one of these states; default: all.")] = (),
    search: Annotated[str, Query(description="Part of a name, or the beginning of an identity.")] = "",
    learner: Annotated[str, Query(description="Name of a learner.")] = "",
    order: Annotated[Literal["newest", "oldest"], Query(description="Which come first.")] = "newest",
) -> RunFilter:
    return RunFilter(state, search.lower(), learner, order)


class Sound(BaseModel):
    """Says that a spec breaks no rule."""

    valid: Literal[True] = True


def run_routes(sources: Sources) -> APIRouter:
    """Return the routes of runs."""
    router = APIRouter(tags=["runs"], route_class=OnceKeyedRoute)
    store, desk = sources.store, sources.desk

    async def view(run: RunRecord) -> RunView:
        return run_view(run, await desk.now())

    @router.post("/runs", status_code=201, summary="Submit a run spec")
    async def submit(spec: SpecBody) -> RunView:
        # A spec of a mebibyte takes long to look at, and longer to find fault with.
        return await view(await desk.submit(await asyncio.to_thread(validate_spec, spec)))

    @router.post("/runs/validate", summary="Check a run spec without running it")
    async def validate(spec: SpecBody) -> Sound:
        await asyncio.to_thread(lambda: check_run(validate_spec(spec)))
        return Sound()

    @router.get("/runs", summary="List runs", response_model=list[RunView], responses=PAGED)
    async def list_runs(request: Request, page: OfPage, wanted: Annotated[RunFilter, Depends(_run_filter)]) -> Response:
        now = await desk.now()
        found = [run for run in await store.runs() if wanted.takes(run)]
        if wanted.order == "newest":
            found.reverse()
        response = await listed(run_view(run, now) for run in page.of(found))
        return page.mark(response, request, len(found))

    @router.get("/runs/{run_id}", summary="Show a run")
    async def show(run_id: str) -> RunView:
        return await view(await store.run(run_id))

    @router.post("/runs/{run_id}/clone", status_code=201, summary="Submit a run's spec again, with changes")
    async def clone(run_id: str, patch: PatchBody) -> RunView:
        """Submit the spec of a run again, after a JSON merge patch (RFC 7396): `null` takes a key away."""
        spec = merged((await store.run(run_id)).spec.model_dump(mode="json"), patch)
        return await view(await desk.submit(await asyncio.to_thread(validate_spec, spec)))

    @router.post("/runs/{run_id}/pause", summary="Pause a run at its last committed round")
    async def pause(run_id: str) -> RunView:
        return await view(await desk.pause(run_id))

    @router.post("/runs/{run_id}/resume", summary="Queue a paused run again")
    async def resume(run_id: str) -> RunView:
        return await view(await desk.resume(run_id))

    @router.post("/runs/{run_id}/stop", summary="End a run for good")
    async def stop(run_id: str) -> RunView:
        return await view(await desk.stop(run_id))

    return router


def run_view(run: RunRecord, now: Now) -> RunView:
    """Return a run and what it is doing."""
    doing = now.run(run)
    # The store is a moment ahead of what goes on when it has a round's commit.
    phase = doing.phase if doing.round_number == run.round_number else ""
    return RunView(**dict(run), phase=phase, status=doing.status, waiting=doing.waiting)


def merged(target: Any, patch: Any) -> Any:
    """Return what a JSON merge patch makes of a document.

    Source: Hoffman and Snell, "JSON Merge Patch", RFC 7396, section 2. https://www.rfc-editor.org/rfc/rfc7396
    """
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result
