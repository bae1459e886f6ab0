"""Routes of the zoo: what there is to train, and what it takes."""

import asyncio

from fastapi import APIRouter

from server.catalogue import LearnerDetail, LearnerView, learner_detail, learner_names
from server.errors import NotFoundError


def learner_routes() -> APIRouter:
    """Return the routes of the zoo."""
    router = APIRouter(tags=["learners"])
    known: dict[str, LearnerDetail] = {}

    def detail(name: str) -> LearnerDetail:
        # Laying out a model takes a while, and none changes while the process runs.
        if name not in known:
            known[name] = learner_detail(name)
        return known[name]

    def views() -> list[LearnerView]:
        return [detail(name) for name in learner_names()]

    @router.get("/learners", summary="List the learners")
    async def list_learners() -> list[LearnerView]:
        return await asyncio.to_thread(views)

    @router.get("/learners/{name}", summary="Show a learner")
    async def show(name: str) -> LearnerDetail:
        if name not in (names := learner_names()):
            raise NotFoundError(f"Learner: name must be one of {', '.join(sorted(names))}, got {name!r}.")
        return await asyncio.to_thread(detail, name)

    return router
