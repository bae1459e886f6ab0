"""The route of the metrics, and what counts the answers of all routes."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.sources import Sources
from server.monitoring.metrics import NO_ROUTE, ProcessMetrics


def metrics_routes(sources: Sources) -> APIRouter:
    """Return the route of the metrics."""
    router = APIRouter(tags=["metrics"])

    @router.get("/metrics", summary="Show the metrics in Prometheus' text format", response_class=Response)
    async def metrics() -> Response:
        await sources.metrics.look(sources.store, sources.desk)
        return Response(sources.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router


class AnswerCount:
    """Counts each answer by the template of its route, at its first byte: a stream of events may have no last one."""

    def __init__(self, app: ASGIApp, metrics: ProcessMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", NO_ROUTE)
                self._metrics.note_answer(scope["method"], route, message["status"])
            await send(message)

        await self._app(scope, receive, counted)
