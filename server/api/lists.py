"""Lists of records as JSON, however long: written off the event loop, and in pieces where they may be large."""

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence

from fastapi import Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from pydantic_core import to_json


async def listed(records: Iterable[BaseModel]) -> Response:
    """Return records as a JSON list, written in a thread."""
    content = await asyncio.to_thread(lambda: b"[%s]" % joined(records))
    return Response(content, media_type="application/json")


async def streamed(
    pieces: AsyncGenerator[bytes, None], media_type: str, headers: Mapping[str, str] | None = None
) -> Response:
    """Return pieces of text as they come. The first is waited for: what goes wrong until then is still problem details."""
    first = await anext(pieces)

    async def body() -> AsyncIterator[bytes]:
        async with contextlib.aclosing(pieces):
            yield first
            async for piece in pieces:
                yield piece

    return StreamingResponse(body(), media_type=media_type, headers=headers)


def name_order(name: str, identity: str) -> tuple[Sequence[str | int], str]:
    """Return by what a list of names is sorted, as people would: site-2 before site-10, and who has the same name by identity."""
    # Digits are every other part, so that numbers meet numbers.
    parts = re.split(r"([0-9]+)", name.casefold())
    return [int(part) if part.isdecimal() and part.isascii() else part for part in parts], identity


def joined(records: Iterable[BaseModel]) -> bytes:
    """Return records as the inside of a JSON list."""
    # One by one: the interpreter turns to the event loop between two, and not while it writes one.
    return b",".join(map(as_json, records))


def as_json(record: BaseModel) -> bytes:
    """Return a record as JSON, in which a number that is infinite or none is null."""
    text = record.model_dump_json()
    if "NaN" in text or "Infinity" in text:
        return to_json(record.model_dump(mode="json"), inf_nan_mode="null")
    return text.encode()
