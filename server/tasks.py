"""Tasks with an owner, whose errors reach it as they are."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine
from typing import Any

log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """Open a task group that raises the first error itself, and no group of one, so that callers may catch it by its kind."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as errors:
        for other in errors.exceptions[1:]:
            log.error("another task failed too", exc_info=other)
        raise errors.exceptions[0] from None


async def to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Await `work`; when cancelled, wait for its end all the same, so that nothing that comes later meets it."""
    task = asyncio.create_task(work)
    try:
        await asyncio.shield(task)
    finally:
        if not task.done():
            await asyncio.wait([task])
