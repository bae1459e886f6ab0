"""A wake-up call for all who wait for a change."""

import asyncio
import contextlib


class Signal:
    """Wakes all who wait whenever something changes. A waiter checks its condition, then waits, without an await between the two."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._is_awaited = False

    def notify(self) -> None:
        """Wake everyone who waits now."""
        if self._is_awaited:
            self._event.set()
            self._event, self._is_awaited = asyncio.Event(), False

    async def wait(self, seconds: float | None = None) -> None:
        """Wait for the next change, at most `seconds`."""
        event, self._is_awaited = self._event, True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()
