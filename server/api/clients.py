"""Routes of clients."""

from fastapi import APIRouter, Response

from server.api.lists import listed
from server.records import ClientRecord
from server.sessions import Sessions
from wire import federation_pb2 as pb


class ClientView(ClientRecord):
    """A client and what it is doing now."""

    task_id: str = ""
    phase: str = ""
    """Phase of its task, such as "training"; empty when idle."""
    fraction: float = 0.0
    """Done part of that phase, 0 to 1."""


def client_routes(sessions: Sessions) -> APIRouter:
    """Return the routes of clients."""
    router = APIRouter(tags=["clients"])

    def progress_of(client: ClientRecord) -> pb.Progress | None:
        session = sessions.by_client(client.client_id)
        return session.progress if session else None

    @router.get("/clients", summary="List every client that ever joined, by identity", response_model=list[ClientView])
    async def clients() -> Response:
        found = [(client, progress_of(client)) for client in sessions.clients()]
        return await listed(_client_view(client, progress) for client, progress in found)

    return router


def _client_view(client: ClientRecord, progress: pb.Progress | None) -> ClientView:
    if progress is None:
        return ClientView(**client.model_dump())
    phase = pb.Phase.Name(progress.phase).removeprefix("PHASE_").lower()
    fraction = min(1.0, max(0.0, progress.fraction))
    return ClientView(**client.model_dump(), task_id=progress.task_id, phase=phase, fraction=fraction)
