"""Route of the coordinator's health."""

import time

from fastapi import APIRouter
from pydantic import BaseModel

from server.pulse import Pulse
from server.sessions import Sessions
from wire.protocol import PROTOCOL_VERSION


class Health(BaseModel):
    """The coordinator's health."""

    status: str = "ok"
    protocol_version: int = PROTOCOL_VERSION
    uptime_seconds: float
    client_count: int
    """Clients with an open session."""
    longest_stall_seconds: float
    """Longest time that the event loop was busy with one thing."""
    rss_bytes: int
    peak_rss_bytes: int


def health_routes(sessions: Sessions, pulse: Pulse) -> APIRouter:
    """Return the route of the coordinator's health."""
    router = APIRouter(tags=["health"])
    started = time.monotonic()

    @router.get("/health", summary="Show the coordinator's health")
    async def health() -> Health:
        return Health(
            uptime_seconds=time.monotonic() - started,
            client_count=sum(member.is_present for member in sessions.members()),
            longest_stall_seconds=pulse.longest_stall_seconds,
            rss_bytes=pulse.rss_bytes,
            peak_rss_bytes=pulse.peak_rss_bytes,
        )

    return router
