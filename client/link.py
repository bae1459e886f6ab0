"""The connection of the moment, for work that outlives it."""

import asyncio

from client.connection import Connection


class Link:
    """The connection of the moment, for work that outlives it."""

    def __init__(self) -> None:
        self._connection: Connection | None = None
        self._is_up = asyncio.Event()

    @property
    def connection(self) -> Connection | None:
        """The connection, if there is one."""
        return self._connection

    def set(self, connection: Connection | None) -> None:
        """Put a connection in place, or take it away."""
        self._connection = connection
        if connection is None:
            self._is_up.clear()
        else:
            self._is_up.set()

    async def get(self) -> Connection:
        """Wait for a connection."""
        while self._connection is None:
            await self._is_up.wait()
        return self._connection


def raise_if_cancelled() -> None:
    """Raise a cancellation that came in the moment in which a call ended, and was taken for a part of that."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
