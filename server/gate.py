"""Who is let in to the REST API, and with how much: checked before anything of a request's body is read.

The framework reads and parses a whole body before it looks at a route's dependencies, so a stranger could fill the memory of a public
port. Each of these is ASGI around the application and looks at headers and at the bytes that arrive, at nothing else.
"""

import ipaddress
import secrets
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.problems import problem

BODY_BYTES = 1 << 20
"""Largest body of a request."""

PROTECTED = "/api/"
"""Beginning of the paths that need a token. What lies elsewhere, such as the description at /docs, tells nothing of this coordinator."""

OPEN_PATHS = ("/api/v1/health", "/api/v1/spec/schema")
"""What of them needs none all the same."""


class TokenGate:
    """Answers 401 to who does not show the bearer token."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what has the token or needs none."""
        if scope["type"] == "lifespan" or self._lets_in(scope):
            await self._app(scope, receive, send)
            return
        detail = "A valid bearer token must be given, got none or another one."
        await problem(401, "HTTP", detail, {"WWW-Authenticate": "Bearer"})(scope, receive, send)

    def _lets_in(self, scope: Scope) -> bool:
        if not scope["path"].startswith(PROTECTED) or scope["path"] in OPEN_PATHS:
            return True
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        # Headers are decoded as Latin-1, which gives every byte back.
        return scheme.lower() == "bearer" and secrets.compare_digest(given.strip().encode("latin-1"), self._token)


class LoopbackNames:
    """Answers only who asks for this machine: a page in the user's browser must not come in by a name that it made up."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what asks for loopback."""
        host = Headers(scope=scope).get("host", "") if scope["type"] in ("http", "websocket") else "localhost"
        if _is_loopback_name(host):
            await self._app(scope, receive, send)
            return
        detail = f"Host header: must be localhost or a loopback address as long as no token is asked for, got {host[:100]!r}."
        await problem(400, "Host", detail)(scope, receive, send)


class BodyLimit:
    """Answers 413 to a body above `BODY_BYTES`: at once when the header says so, else when that many bytes have come."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is small enough."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > BODY_BYTES:
            await problem(413, "HTTP", _too_large(f"{announced} bytes"))(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > BODY_BYTES:
                # FastAPI lets this kind through to the application's problem details.
                raise HTTPException(413, _too_large("more"))
            return message

        await self._app(scope, counted, send)


def _too_large(got: str) -> str:
    return f"Body: must have at most {BODY_BYTES} bytes, got {got}."


def _is_loopback_name(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
