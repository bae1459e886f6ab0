"""How well the coordinator's process feels: longest stall of its event loop, and memory."""

import asyncio
import resource

import psutil

from server.observer import DEAF, Observer

BEAT_SECONDS = 0.01


class Pulse:
    """Measures how late a timer fires: while the event loop is busy with one thing, nothing else moves."""

    def __init__(self, observer: Observer = DEAF) -> None:
        self.longest_stall_seconds = 0.0
        self._observer = observer
        self._process = psutil.Process()

    async def beat(self) -> None:
        """Measure until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + BEAT_SECONDS
            await asyncio.sleep(BEAT_SECONDS)
            lag = max(0.0, loop.time() - due)
            self.longest_stall_seconds = max(self.longest_stall_seconds, lag)
            self._observer.note_lag(lag)

    def reset(self) -> None:
        """Forget the longest stall so far."""
        self.longest_stall_seconds = 0.0

    @property
    def rss_bytes(self) -> int:
        """Resident memory of the process now."""
        return int(self._process.memory_info().rss)

    @property
    def peak_rss_bytes(self) -> int:
        """Most resident memory that the process ever had."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
