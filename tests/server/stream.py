"""A reader of server-sent events over real HTTP."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx

from tests.loopback import WAIT_SECONDS


@dataclass(frozen=True)
class Block:
    """One block of a stream: an event, or only an id."""

    kind: str
    event_id: str
    data: Any


class Stream:
    """An open stream."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.aiter_lines()

    async def block(self) -> Block:
        """Return the next block; comments are left out."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(WAIT_SECONDS):
            async for line in self._lines:
                if not line and fields:
                    return Block(fields.get("event", ""), fields.get("id", ""), json.loads(fields.get("data", "null")))
                name, _, value = line.partition(": ")
                if name:
                    fields[name] = value
        raise EOFError("the stream has ended")

    async def event(self) -> Block:
        """Return the next event that has a number."""
        while not ((found := await self.block()).event_id and found.kind):
            pass
        return found

    async def status(self) -> Any:
        """Return the next picture of what goes on, or what has changed in it."""
        while (found := await self.block()).kind != "status":
            pass
        return found.data


@contextlib.asynccontextmanager
async def following(
    api: httpx.AsyncClient, last_event_id: int | None = None, **query: str | int
) -> AsyncIterator[Stream]:
    """Follow events while the context is open."""
    headers = {} if last_event_id is None else {"Last-Event-ID": str(last_event_id)}
    async with api.stream("GET", "/events/stream", params=query, headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].partition(";")[0] == "text/event-stream"
        yield Stream(response)
