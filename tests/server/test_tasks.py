"""Tasks with an owner: their first error is raised as it is, and a thread is never left behind."""

import asyncio
import logging
import threading

import pytest

from server.errors import StoreError
from server.tasks import task_group, to_its_end


async def fail(error: Exception) -> None:
    raise error


async def test_task_group_raises_the_error_itself_and_ends_the_others() -> None:
    async def own() -> None:
        async with task_group() as group:
            others.append(group.create_task(asyncio.sleep(100)))
            group.create_task(fail(StoreError("gone")))
            await asyncio.sleep(100)

    others: list[asyncio.Task[None]] = []
    with pytest.raises(StoreError, match="gone"):
        await own()
    assert others[0].cancelled()


async def test_task_group_within_another_raises_the_error_itself() -> None:
    async def inner() -> None:
        async with task_group() as group:
            group.create_task(fail(StoreError("gone")))

    async def outer() -> None:
        async with task_group() as group:
            group.create_task(inner())

    with pytest.raises(StoreError, match="gone"):
        await outer()


async def test_task_group_logs_further_errors(caplog: pytest.LogCaptureFixture) -> None:
    async def own() -> None:
        async with task_group() as group:
            group.create_task(fail(StoreError("first")))
            group.create_task(fail(KeyError("second")))

    with caplog.at_level(logging.ERROR), pytest.raises(StoreError, match="first"):
        await own()
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["'second'"]


async def test_task_group_lets_cancellation_through() -> None:
    async def own() -> None:
        async with task_group() as group:
            group.create_task(asyncio.sleep(100))
            await asyncio.sleep(100)

    task = asyncio.create_task(own())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task], timeout=10)
    assert task.cancelled()


@pytest.mark.parametrize("error", [None, StoreError("disk")])
async def test_to_its_end_waits_for_the_thread_when_cancelled(error: StoreError | None) -> None:
    began, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        may_end.wait(20)
        ended.set()
        if error is not None:
            raise error

    task = asyncio.create_task(to_its_end(asyncio.to_thread(work)))
    await asyncio.to_thread(began.wait, 20)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    may_end.set()
    await asyncio.wait([task], timeout=20)
    assert ended.is_set()
    assert task.cancelled()


async def test_to_its_end_raises_what_the_work_raises() -> None:
    def work() -> None:
        raise StoreError("disk")

    with pytest.raises(StoreError, match="disk"):
        await to_its_end(asyncio.to_thread(work))
