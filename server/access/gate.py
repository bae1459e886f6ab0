"""Who is let in to the REST API, and with how much: checked before anything of a request's body is read.

The framework reads and parses a whole body before it looks at a route's dependencies, so a stranger could fill the memory of a public
port. Each of these is ASGI around the application and looks at headers and at the bytes that arrive, at nothing else.
"""

import asyncio
import ipaddress
import time
from collections.abc import Sequence
from functools import partial
from urllib.parse import urlsplit

from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.access.attempts import MOST_FAILURES, Attempts
from server.access.tokens import UNKNOWN, bearer, note_use
from server.errors import StoreError, TokenError
from server.monitoring.metrics import SCRAPE_SECONDS
from server.problems import problem
from server.records import Role, TokenRecord
from server.store import Store

BODY_BYTES = 1 << 20
"""Largest body of a request."""

METRICS = "/metrics"

PROTECTED = ("/api/", METRICS)
"""Beginnings of the paths that need a token. What lies elsewhere, such as /openapi.json, tells nothing of this coordinator."""

OPEN_PATHS = ("/api/v1/health", "/api/v1/spec/schema")
"""What of them needs none all the same."""

CHALLENGE = {"WWW-Authenticate": "Bearer"}

READING = "GET"
"""What a viewer may do; HEAD comes here as GET."""

LOOK_SECONDS = 1.0
"""Time between two looks at the tokens for those who were let in and still read."""


class Caller(BaseModel):
    """Who asks: the name and role of a token. Where none is asked for, the name is empty."""

    name: str = ""
    role: Role = Role.OPERATOR


class TokenGate:
    """Lets in whoever shows a token that allows the request, and tells the application who that is, as `request.state.caller`.

    An answer that lasts asks `request.state.may_stay` whether that still holds.
    On loopback nobody needs a token as long as there is none at all. Then only who asks for this machine is answered: a page in the user's
    browser must not come in by a name that it made up.
    """

    def __init__(self, app: ASGIApp, store: Store, is_loopback: bool) -> None:
        self._app = app
        self._store = store
        self._is_loopback = is_loopback
        self._attempts = Attempts()
        self._known: Sequence[TokenRecord] | None = None
        self._known_time = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may come in."""
        refusal = None if scope["type"] == "lifespan" else await self._refusal(scope)
        await (refusal or self._app)(scope, receive, send)

    async def _refusal(self, scope: Scope) -> Response | None:
        """Return the answer to a request that must not come in."""
        is_protected = scope["path"].startswith(PROTECTED) and scope["path"] not in OPEN_PATHS
        if not is_protected and not self._is_loopback:
            return None
        tokens: Sequence[TokenRecord] = ()
        is_store_up = True
        # Metrics tell of a store that is away, and of nothing in it: whom it let in last they let in still.
        known = self._known if scope["path"] == METRICS else None
        try:
            async with asyncio.timeout(None if known is None else SCRAPE_SECONDS):
                tokens = await self._look()
        except (StoreError, TimeoutError) as error:
            is_store_up = False
            if known is not None:
                tokens = known
            elif is_protected:
                return problem(503, "Store", str(error))
        if self._is_loopback and not tokens:
            self._let_in(scope, Caller(), None)
            return _foreign_name(scope)
        return await self._check(scope, tokens, is_store_up) if is_protected else None

    async def _check(self, scope: Scope, tokens: Sequence[TokenRecord], is_store_up: bool) -> Response | None:
        """Return the answer to a request whose token does not allow it."""
        address = (scope.get("client") or ("",))[0]
        if seconds := self._attempts.seconds_to_wait(address):
            detail = f"Address {address}: must wait {seconds} s after {MOST_FAILURES} tokens that were not valid."
            return problem(429, "HTTP", detail, {"Retry-After": str(seconds)})
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return problem(401, "HTTP", UNKNOWN, CHALLENGE)
        now = time.time()
        try:
            # Headers are decoded as Latin-1, which gives every byte back.
            token = bearer(tokens, given.strip().encode("latin-1"), now)
        except TokenError as error:
            self._attempts.note_failure(address)
            return problem(401, "HTTP", str(error), CHALLENGE)
        if token.role is not Role.OPERATOR and scope["method"] != READING:
            detail = f"Token {token.name!r}: role must be operator to {scope['method']}, got {token.role.value}."
            return problem(403, "HTTP", detail)
        if is_store_up:
            await note_use(self._store, token, now)
        self._let_in(scope, Caller(name=token.name, role=token.role), token)
        return None

    def _let_in(self, scope: Scope, caller: Caller, token: TokenRecord | None) -> None:
        scope.setdefault("state", {}).update(caller=caller, may_stay=partial(self._may_stay, token))

    async def _may_stay(self, token: TokenRecord | None) -> bool:
        """Tell whether who was let in would be again: its token is there and has not run out, or there is still none at all."""
        tokens = self._known
        if tokens is None or time.monotonic() >= self._known_time + LOOK_SECONDS:
            try:
                tokens = await self._look()
            except StoreError:
                # Whoever is in learns nothing new from a store that does not answer.
                return True
        if token is None:
            return not tokens
        is_there = any(one.sha256 == token.sha256 for one in tokens)
        return is_there and (token.expires_time is None or time.time() < token.expires_time)

    async def _look(self) -> Sequence[TokenRecord]:
        """Return the tokens that there are, and keep them for whoever asks while the store is away. Raises `StoreError` then."""
        self._known = tokens = await self._store.tokens()
        self._known_time = time.monotonic()
        return tokens


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


def _foreign_name(scope: Scope) -> Response | None:
    """Return the answer to a request that asks for another machine."""
    host = Headers(scope=scope).get("host", "") if scope["type"] in ("http", "websocket") else "localhost"
    if _is_loopback_name(host):
        return None
    detail = (
        f"Host header: must be localhost or a loopback address as long as no token is asked for, got {host[:100]!r}."
    )
    return problem(400, "Host", detail)


def _is_loopback_name(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
