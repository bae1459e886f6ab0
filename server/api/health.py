"""Route of the coordinator's health."""

from fastapi import APIRouter

from server.api.sources import Sources
from server.errors import AwayError
from server.monitoring.now import Health


def health_routes(sources: Sources) -> APIRouter:
    """Return the route of the coordinator's health."""
    router = APIRouter(tags=["health"])

    @router.get("/health", summary="Show the coordinator's health")
    async def health() -> Health:
        found = (await sources.desk.now()).health
        if found is None:
            raise AwayError(
                "Coordinator: must be running, got none that serves this store. Start it with choral serve."
            )
        return found

    return router
