"""Route of who asks."""

from fastapi import APIRouter, Request

from server.access.gate import Caller


def access_routes() -> APIRouter:
    """Return the route of who asks."""
    router = APIRouter(tags=["access"])

    @router.get("/me", summary="Show who asks: the name and role of the token")
    async def me(request: Request) -> Caller:
        caller: Caller = request.state.caller
        return caller

    return router
