"""Routes of the zoo: what there is to train, and what it takes."""

import asyncio
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from models import MODELS, learners
from models.catalogue import about_learner, described_parameters, first_spec
from models.examples import example_of
from server.errors import NotFoundError


class ParameterView(BaseModel):
    """A parameter of a learner, in words."""

    type: str
    """Type and range, such as "integer, at least 1"."""
    default: Any
    meaning: str


class LearnerView(BaseModel):
    """A learner."""

    name: str
    summary: str
    task: str
    data: str
    """What data suits it."""
    parameter_count: int
    """Coordinates of its example's model; 0 where it cannot be built."""
    needs: str
    """Why it cannot be built here; empty where it can."""
    parameters: dict[str, ParameterView]


class LearnerDetail(LearnerView):
    """A learner with all that is known of it."""

    explanation: str
    """What its file says: equations and source."""
    parameters_schema: dict[str, Any]
    """JSON Schema of its parameters."""
    example: dict[str, Any]
    """A run spec to begin with."""
    command: str
    """What tries its example; empty for a learner that does not come with Choral."""


def learner_routes() -> APIRouter:
    """Return the routes of the zoo."""
    router = APIRouter(tags=["learners"])
    known: dict[str, LearnerView] = {}

    def views() -> list[LearnerView]:
        # Laying out every model takes a while, and none changes while the process runs.
        for name in learners().keys() - known.keys():
            known[name] = _view(name)
        return [known[name] for name in learners()]

    @router.get("/learners", summary="List the learners")
    async def list_learners() -> list[LearnerView]:
        return await asyncio.to_thread(views)

    @router.get("/learners/{name}", summary="Show a learner")
    async def show(name: str) -> LearnerDetail:
        if name not in learners():
            raise NotFoundError(f"Learner: name must be one of {', '.join(sorted(learners()))}, got {name!r}.")
        return await asyncio.to_thread(_detail, name)

    return router


def _view(name: str) -> LearnerView:
    model = learners()[name]
    about = asdict(about_learner(name, model))
    return LearnerView.model_validate({"name": name, **about, "parameters": described_parameters(model)})


def _detail(name: str) -> LearnerDetail:
    model = learners()[name]
    return LearnerDetail(
        **dict(_view(name)),
        explanation=model.explanation,
        parameters_schema=model.parameters.model_json_schema(),
        example=first_spec(name).model_dump(mode="json", exclude_unset=True),
        command=example_of(name).command if name in MODELS else "",
    )
