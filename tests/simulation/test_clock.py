"""The simulation's clock: timers cost no time, work in threads stops it, and the order of events is that of their times."""

import asyncio
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from simulation.clock import VirtualLoop


def run(main: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def now() -> float:
    return asyncio.get_running_loop().time()


def test_sleeps_of_years_take_no_time_and_end_in_order() -> None:
    ends: list[tuple[str, float]] = []

    async def sleep(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        ends.append((name, now()))

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for name, seconds in (("year", 31_536_000.0), ("second", 1.0), ("day", 86_400.0)):
                group.create_task(sleep(name, seconds))

    began = time.monotonic()
    run(main())
    assert ends == [("second", 1.0), ("day", 86_400.0), ("year", 31_536_000.0)]
    assert time.monotonic() - began < 60


def test_time_stands_still_while_a_thread_works() -> None:
    is_through = threading.Event()

    async def main() -> list[object]:
        seen: list[object] = []

        def go_on() -> None:
            seen.append(now())
            is_through.set()

        asyncio.get_running_loop().call_later(1.0, go_on)
        working = asyncio.create_task(asyncio.to_thread(is_through.wait, 0.2))
        # The timer of one simulated second must not fire in the 0.2 real ones of the thread, which would end it early.
        seen.append(await working)
        seen.append(now())
        await asyncio.sleep(2.0)
        return seen

    assert run(main()) == [False, 0.0, 1.0]


def test_time_goes_on_when_a_thread_fails_or_is_not_waited_for() -> None:
    is_over = threading.Event()

    async def main() -> float:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor() as threads:
            for executor in (None, threads):
                with pytest.raises(ZeroDivisionError):
                    await loop.run_in_executor(executor, lambda: 1 / 0)
            loop.run_in_executor(threads, is_over.wait, 20.0).cancel()
            await asyncio.sleep(10.0)
            is_over.set()
        return now()

    assert run(main()) == 10.0


def test_timeouts_hold_in_simulated_time() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3600.0):
                await asyncio.Event().wait()
        return now()

    assert run(main()) == 3600.0


@pytest.mark.parametrize("start", [0.1, 1e6 + 0.3, 3e8 + 1 / 3, 4e9 + 0.3])
def test_timers_come_due_however_late_it_is(start: float) -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.jump(start)
        for _ in range(100):
            await asyncio.sleep(1e-9)
        return loop.time()

    assert run(main()) >= start
