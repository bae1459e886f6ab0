"""How well the coordinator's process feels: longest stall of its event loop, and memory."""

import asyncio
import resource

import psutil

from server.monitoring.observer import DEAF, Observer

BEAT_SECONDS = 0.01

BEATS_A_WEIGHING = 50
"""Beats between two looks at the memory: the kernel counts threads and pages each time, which many who ask would multiply."""


class Pulse:
    """Measures how late a timer fires: while the event loop is busy with one thing, nothing else moves.

    Attributes:
        longest_stall_seconds: Longest time that the event loop was busy with one thing.
        rss_bytes: Resident memory of the process, as of the last look.
        peak_rss_bytes: Most resident memory that it had until then.
    """

    def __init__(self, observer: Observer = DEAF) -> None:
        self.longest_stall_seconds = 0.0
        self._observer = observer
        self._process = psutil.Process()
        self._weigh()

    async def beat(self) -> None:
        """Measure until cancelled."""
        while True:
            self._weigh()
            for _ in range(BEATS_A_WEIGHING):
                await self._beat_once()

    async def _beat_once(self) -> None:
        clock = asyncio.get_running_loop().time
        due = clock() + BEAT_SECONDS
        await asyncio.sleep(BEAT_SECONDS)
        lag = max(0.0, clock() - due)
        self.longest_stall_seconds = max(self.longest_stall_seconds, lag)
        self._observer.note_lag(lag)

    def reset(self) -> None:
        """Forget the longest stall so far."""
        self.longest_stall_seconds = 0.0

    def _weigh(self) -> None:
        self.rss_bytes = int(self._process.memory_info().rss)
        self.peak_rss_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
