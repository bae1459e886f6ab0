"""Routes of clients."""

from fastapi import APIRouter, Response

from server.api.lists import listed
from server.api.sources import Sources
from server.now import ClientNow
from server.records import ClientRecord


class ClientView(ClientRecord):
    """A client and what it is doing now."""

    task_id: str = ""
    phase: str = ""
    """Phase of its task, such as "training"; "asked" until it has told of one; empty when idle."""
    fraction: float = 0.0
    """Done part of that phase, 0 to 1."""


def client_routes(sources: Sources) -> APIRouter:
    """Return the routes of clients."""
    router = APIRouter(tags=["clients"])

    @router.get("/clients", summary="List every client that ever joined, by identity", response_model=list[ClientView])
    async def clients() -> Response:
        found, now = await sources.desk.clients(), await sources.desk.now()
        return await listed(_client_view(client, now.clients.get(client.client_id, ClientNow())) for client in found)

    return router


def _client_view(client: ClientRecord, now: ClientNow) -> ClientView:
    return ClientView(**dict(client), **dict(now))
