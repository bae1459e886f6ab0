"""The clock of a simulation: an event loop whose time stands still while anything is computed, and else jumps to the next timer.

So the coordinator's own deadlines, quorums and waits hold in simulated time, an hour of waiting takes no time, and how fast this machine
trains decides nothing.
"""

import asyncio
import contextvars
import math
import selectors
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple

Value = TypeVar("Value")
Arguments = TypeVarTuple("Arguments")


TICK = 2.0**-20
"""The clock's step, seconds. Sums and differences of moments are exact for 130 years, so a timer is never early, nor late by rounding."""


def next_tick(moment: float) -> float:
    """Return a moment, seconds, or the first one after it that is a whole number of ticks."""
    return math.ceil(moment / TICK) * TICK


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on simulated time. Whatever takes real time must run in an executor of it.

    What is meant for the default executor, as by `asyncio.to_thread`, is done at once: time would stand still for it anyway, and to wake
    another thread can take longer than a small model's whole server step.
    """

    def __init__(self) -> None:
        """Start the clock at 0."""
        self._now = 0.0
        self._at_work = 0
        super().__init__(_JumpingSelector(self))
        # asyncio takes a timer for due when it is less than this ahead: of two ticks, one is due and the other is not.
        self._clock_resolution = TICK / 2

    def time(self) -> float:
        """Return the simulated time, seconds since the simulation's start."""
        return self._now

    def jump(self, seconds: float) -> None:
        """Let simulated time pass at once."""
        self._now = next_tick(self._now + seconds)

    def call_at(
        self,
        when: float,
        callback: Callable[[*Arguments], object],
        *args: *Arguments,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call at a moment, or at the first tick after it."""
        return super().call_at(next_tick(when), callback, *args, context=context)

    @property
    def is_called(self) -> bool:
        """Whether anything waits for what is done now to give the loop back, such as the end of it after Ctrl-C."""
        return bool(self._ready)  # type: ignore[attr-defined]

    @property
    def is_at_work(self) -> bool:
        """Whether something runs in an executor."""
        return self._at_work > 0

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Arguments], Value], *args: *Arguments
    ) -> asyncio.Future[Value]:
        """Run in an executor, and without one here; until that has ended, time stands still."""
        if executor is None:
            return self._done(func, *args)
        future = super().run_in_executor(executor, func, *args)
        self._at_work += 1
        future.add_done_callback(self._end_work)
        return future

    def _done(self, func: Callable[[*Arguments], Value], *args: *Arguments) -> asyncio.Future[Value]:
        future: asyncio.Future[Value] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - it is raised where the future is awaited
            future.set_exception(error)
        return future

    def _end_work(self, _: asyncio.Future[Any]) -> None:
        self._at_work -= 1


class _JumpingSelector(selectors.DefaultSelector):
    """Waits for sockets and threads in real time, and for timers not at all."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        if self._loop.is_at_work:
            return super().select(None)
        events = super().select(0)
        if not events:
            self._loop.jump(timeout)
        return events
