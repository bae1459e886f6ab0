"""The post: a command is taken at most once, only by who has the lease, only while it is valid, and never after it was withdrawn."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from server.errors import StoreError
from server.store import open_post, open_store
from server.store import post as post_module
from server.store.post import Post
from tests.loopback import until
from tests.server.store.redis_server import RedisServer, lossy_wire


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(post_module, "BLOCK_SECONDS", 0.1)


@contextlib.asynccontextmanager
async def posted(url: str) -> AsyncIterator[Post]:
    post = Post(url)
    yield post
    await post.close()


@pytest.fixture
async def post(redis_server: RedisServer) -> AsyncIterator[Post]:
    store = await open_store(redis_server.url)
    await store.acquire_lease("ana", 60)
    async with posted(redis_server.url) as post:
        yield post
    await store.close()


async def test_command_is_taken_once_and_its_answer_read_as_often_as_need_be(post: Post) -> None:
    first, second = await post.send("first"), await post.send("second")
    assert [await post.take("ana"), await post.take("ana"), await post.take("ana")] == [
        (first, "first"),
        (second, "second"),
        None,
    ]
    waiting = asyncio.create_task(post.answer_to(second, 30))
    await post.answer(second, "done")
    assert await waiting == "done"
    assert [await post.answer_to(second, 1), await post.answer_to(first, 0.01)] == ["done", None]


async def test_command_is_taken_only_by_the_holder_of_the_lease(post: Post) -> None:
    command_id = await post.send("stop")
    assert await post.take("ben") is None
    assert await post.withdraw(command_id)


async def test_withdrawn_command_is_never_taken_and_a_taken_one_not_withdrawn(post: Post) -> None:
    withdrawn, taken = await post.send("first"), await post.send("second")
    assert await post.withdraw(withdrawn)
    assert [await post.take("ana"), await post.take("ana")] == [None, (taken, "second")]
    assert not await post.withdraw(taken)


async def test_command_that_nobody_took_in_time_is_never_taken(
    post: Post, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(post_module, "VALID_SECONDS", 0.1)
    late = await post.send("late")
    async with Redis.from_url(redis_server.url) as client:

        async def has_run_out() -> bool:
            return not await client.exists(f"choral:command:{late}")

        assert not await has_run_out()
        await until(has_run_out, "a command to run out")
    assert await post.take("ana") is None


async def test_lost_reply_neither_sends_nor_withdraws_twice(redis_server: RedisServer, post: Post) -> None:
    async with lossy_wire(redis_server) as wire, posted(wire.url) as lossy:
        await lossy.is_watched()
        wire.replies_to_lose = 1
        command_id = await lossy.send("once")
        assert wire.replies_to_lose == 0
        assert [await post.take("ana"), await post.take("ana")] == [(command_id, "once"), None]
        other = await lossy.send("never")
        wire.replies_to_lose = 1
        assert await lossy.withdraw(other)
        assert wire.replies_to_lose == 0
        assert await post.take("ana") is None


async def test_pictures_reach_who_is_there_and_end_in_silence(post: Post) -> None:
    assert not await post.is_watched()
    await post.show("missed")
    async with contextlib.aclosing(post.pictures(1)) as pictures:
        first = asyncio.ensure_future(anext(pictures))
        await until(post.is_watched, "a watcher")
        await post.show("one")
        assert await first == "one"
        await post.show("two")
        assert [picture async for picture in pictures] == ["two"]
    assert not await post.is_watched()


async def test_pictures_of_a_server_that_dies_end_with_an_error(post: Post, redis_server: RedisServer) -> None:
    async with contextlib.aclosing(post.pictures(30)) as pictures:
        first = asyncio.ensure_future(anext(pictures))
        await until(post.is_watched, "a watcher")
        redis_server.kill()
        with pytest.raises(StoreError, match="must answer within 15 s"):
            await first


async def test_sqlite_file_has_no_post() -> None:
    assert open_post("choral.sqlite") is None
