"""Routes of runs' models: the file, and the card that goes with it."""

from fastapi import APIRouter
from fastapi.responses import FileResponse

from server.api.card import ModelCard, model_card
from server.api.history import participations
from server.api.sources import Sources
from server.checkpoints import last_checkpoint
from server.errors import NotFoundError


def model_routes(sources: Sources) -> APIRouter:
    """Return the routes of models."""
    router = APIRouter(tags=["models"])
    store, desk = sources.store, sources.desk

    @router.get(
        "/runs/{run_id}/model",
        summary="Download a run's model (safetensors)",
        response_class=FileResponse,
        responses={200: {"content": {"application/octet-stream": {}}}},
    )
    async def model(run_id: str) -> FileResponse:
        run = await store.run(run_id)
        if sources.folder is None:
            raise NotFoundError(
                f"Model of run {run_id}: must lie in a folder that this process reads, got none. Ask the coordinator itself, "
                "or start choral api with --folder and the coordinator's folder."
            )
        name = f"{run.spec.name}-{run.round_number}.safetensors"
        path = last_checkpoint(sources.folder, run)
        return FileResponse(path, media_type="application/octet-stream", filename=name)

    @router.get("/runs/{run_id}/card", summary="Show the card of a run's model")
    async def card(run_id: str) -> ModelCard:
        run = await store.run(run_id)
        return model_card(run, await participations(store, run), await desk.clients())

    return router
