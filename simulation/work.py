"""What an engine computes for a round, in this process: a simulation's event loop does it itself, between two looks at who calls."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

from models import TrainingStopped
from simulation.clock import VirtualLoop

Value = TypeVar("Value")


class Work:
    """Computes one thing after another for a round that may stop waiting for them. Make one in the event loop that waits."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._is_over = threading.Event()

    def check(self, *_: float) -> None:
        """Raise `TrainingStopped` when nobody waits any more, or somebody wants to say so. To be called between two steps."""
        if self._is_over.is_set() or (isinstance(self._loop, VirtualLoop) and self._loop.is_called):
            raise TrainingStopped("The round has closed.")

    async def do(self, compute: Callable[[], Value]) -> Value:
        """Return what `compute` does, which is called again if somebody called in the middle. When cancelled, wait for its end first."""
        while True:
            # Everybody who waits for the loop comes first.
            await asyncio.sleep(0)
            doing = self._loop.run_in_executor(None, compute)
            try:
                return await asyncio.shield(doing)
            except TrainingStopped:
                continue
            except asyncio.CancelledError:
                self._is_over.set()
                while not doing.done():
                    with contextlib.suppress(asyncio.CancelledError):
                        await asyncio.wait([doing])
                doing.exception()  # nobody wants to know
                raise
