"""A wake-up call for all who wait for a change."""

import asyncio
import contextlib


class Signal:
    """Wakes all who wait whenever something changes. A waiter checks its condition, then waits, without an await between the two."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        """Wake everyone who waits now."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, seconds: float | None = None) -> None:
        """Wait for the next change, at most `seconds`."""
        event = self._event
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()
