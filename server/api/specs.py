"""Routes of run specs."""

from typing import Any

from fastapi import APIRouter

from wire.spec import RunSpec


def spec_routes() -> APIRouter:
    """Return the routes of run specs."""
    router = APIRouter(tags=["specs"])

    @router.get("/spec/schema", summary="JSON Schema of a run spec")
    async def schema() -> dict[str, Any]:
        return RunSpec.model_json_schema()

    return router
