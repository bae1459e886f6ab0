"""HEAD: the framework's routes know GET alone."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadAnswers:
    """Answers HEAD with the head of what GET would be answered with, and ends there: a stream of events has no end of its own.

    Source: Fielding et al., "HTTP Semantics", RFC 9110, section 9.3.2. https://www.rfc-editor.org/rfc/rfc9110
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, HEAD as GET."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body"})

        await self._app({**scope, "method": "GET"}, receive, headed)
