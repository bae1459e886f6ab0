"""Work on a loop of its own time and on any other: done once, called again when somebody called, and ended when nobody waits."""

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from simulation.clock import VirtualLoop
from simulation.work import Work


def run(main: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def until_stopped(work: Work) -> Callable[[], None]:
    """Return what computes until it is told to stop, for 20 s at most."""

    def compute() -> None:
        give_up = time.monotonic() + 20
        while time.monotonic() < give_up:
            work.check()

    return compute


def test_work_on_virtual_time_is_done_in_the_loops_own_thread() -> None:
    async def main() -> Any:
        return await Work().do(threading.current_thread)

    assert run(main()) is threading.current_thread()


async def test_work_on_another_loop_leaves_it_free() -> None:
    assert await Work().do(threading.current_thread) is not threading.current_thread()


def test_error_of_the_work_is_raised() -> None:
    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            await Work().do(lambda: 1 // 0)

    run(main())


def test_work_gives_way_to_who_calls_and_is_then_done() -> None:
    async def main() -> list[str]:
        loop, work = asyncio.get_running_loop(), Work()
        seen: list[str] = []

        def compute() -> str:
            if "call" not in seen:
                loop.call_soon(seen.append, "call")
            work.check()
            return "done"

        return [*seen, await work.do(compute), *seen]

    assert run(main()) == ["done", "call"]


def test_ctrl_c_ends_work_on_virtual_time_between_two_steps() -> None:
    async def main() -> None:
        work = Work()
        threading.Timer(0.2, signal.raise_signal, [signal.SIGINT]).start()
        await work.do(until_stopped(work))

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(main())
    assert time.monotonic() - began < 15


async def test_work_on_another_loop_has_ended_when_its_cancellation_has() -> None:
    work = Work()
    ends: list[str] = []

    def compute() -> None:
        try:
            until_stopped(work)()
        finally:
            time.sleep(0.05)
            ends.append("work")

    task = asyncio.create_task(work.do(compute))
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.wait([task], timeout=15)
    assert task.cancelled()
    assert ends == ["work"]
