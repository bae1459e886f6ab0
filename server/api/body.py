"""JSON bodies in which a key comes once: of two values the framework would take the last without a word, as the command line does not."""

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

REPEATED_KEY = -1
"""Place of a JSON error, in characters, that says that its message is a key which comes twice."""


class OnceKeyedRoute(APIRoute):
    """A route that refuses a body in which an object has a key twice."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers a request."""
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            return await handle(_Request(request.scope, request.receive))

        return handle_strictly


class _Request(Request):
    async def json(self) -> Any:
        return json.loads(await self.body(), object_pairs_hook=_keys_once)


def _keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        names = [name for name, _ in pairs]
        raise json.JSONDecodeError(next(name for name in names if names.count(name) > 1), "", REPEATED_KEY)
    return document
