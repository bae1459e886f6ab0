"""What only a store behind a network can get wrong."""

import asyncio
import logging
import os

import pytest

from server.errors import StoreError
from server.records import (
    RoundState,
)
from server.store import open_store
from tests.loopback import WAIT_SECONDS
from tests.server.store.redis_server import RedisServer, lossy_wire
from tests.server.store.samples import make_event, make_round, make_run


@pytest.mark.parametrize("torn_bytes", [1, 200, 1000, 1900])
async def test_commit_round_torn_by_power_failure_changes_nothing(redis_server: RedisServer, torn_bytes: int) -> None:
    store = await open_store(redis_server.url)
    await store.put_run(make_run())
    await store.put_round(make_round(1))
    before = redis_server.log_path.stat().st_size
    await store.commit_round(make_run(round_number=1), make_round(1, state=RoundState.COMMITTED), make_event("a"))
    redis_server.kill()
    after = redis_server.log_path.stat().st_size
    assert before < after - torn_bytes
    os.truncate(redis_server.log_path, after - torn_bytes)
    redis_server.start()

    assert await store.runs() == [make_run()]
    assert await store.rounds("run-1") == [make_round(1)]
    assert list(await store.events()) == []
    await store.close()


async def test_open_server_that_does_not_run_is_refused_in_whole_sentences() -> None:
    with pytest.raises(
        StoreError, match=r"^Store redis://127\.0\.0\.1:1/0: must answer .* got ConnectionError: "
    ) as raised:
        await open_store("redis://127.0.0.1:1/0")
    assert ".." not in str(raised.value)


async def test_commit_round_without_memory_left_changes_nothing(redis_server: RedisServer) -> None:
    store = await open_store(redis_server.url)
    await store.put_run(make_run())
    redis_server.kill()
    redis_server.start("--maxmemory", "1")
    with pytest.raises(StoreError, match="must answer within 15 s, got OutOfMemoryError"):
        await store.commit_round(make_run(round_number=1), make_round(1), make_event("a"))
    assert await store.runs() == [make_run()]
    assert list(await store.rounds("run-1")) == []
    assert list(await store.events()) == []
    await store.close()


async def test_killed_and_restarted_amid_commits_loses_and_repeats_nothing(redis_server: RedisServer) -> None:
    store = await open_store(redis_server.url)
    committed = asyncio.Queue[int](maxsize=100)

    async def commit_rounds() -> None:
        for number in range(1, 61):
            await store.commit_round(make_run(round_number=number), make_round(number), make_event(f"round {number}"))
            await committed.put(number)

    async with asyncio.TaskGroup() as group:
        group.create_task(commit_rounds())
        for number in range(1, 61):
            assert await committed.get() == number
            if number in (10, 25, 40):
                redis_server.kill()
                redis_server.start()
    assert (await store.run("run-1")).round_number == 60
    assert [record.number for record in await store.rounds("run-1")] == list(range(1, 61))
    assert [event.kind for event in await store.events()] == [f"round {number}" for number in range(1, 61)]
    await store.close()


async def test_lost_reply_does_not_repeat_the_write(redis_server: RedisServer) -> None:
    async with lossy_wire(redis_server) as wire:
        store = await open_store(wire.url)
        assert (await store.append_event(make_event("first"))).event_id == 1
        wire.replies_to_lose = 1
        assert (await store.append_event(make_event("second"))).event_id == 2
        assert wire.replies_to_lose == 0
        assert [event.kind for event in await store.events()] == ["first", "second"]
        await store.close()


async def test_cancellation_at_any_moment_of_a_call_ends_it(redis_server: RedisServer) -> None:
    store = await open_store(redis_server.url)

    async def ask() -> None:
        while True:
            await store.last_event_id()

    await store.last_event_id()
    for turns in range(100):
        asking = asyncio.create_task(ask())
        for _ in range(turns):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait([asking], timeout=WAIT_SECONDS)
        # Were the first one lost, only a second would end it.
        assert not asking.cancel()
    await store.close()


async def test_open_unreachable_redis_raises_without_password(redis_server: RedisServer) -> None:
    redis_server.kill()
    address = f"127.0.0.1:{redis_server.port}"
    with pytest.raises(StoreError, match=f"Store redis://{address}/3: must answer .* ConnectionError") as failure:
        await open_store(f"redis://user:secret@{address}/3?password=secret")
    assert "secret" not in str(failure.value)


@pytest.mark.parametrize("url", ["redis://:sec/ret@host:6379", "redis://user:sec?ret@host"])
async def test_open_misformed_redis_url_raises_without_password(url: str) -> None:
    pytest.importorskip("redis")
    with pytest.raises(StoreError, match=r"^Store: address must be redis://") as failure:
        await open_store(url)
    assert "sec" not in str(failure.value)


async def test_open_server_with_wrong_password_raises(redis_server: RedisServer) -> None:
    redis_server.kill()
    redis_server.start("--requirepass", "right")
    with pytest.raises(StoreError, match=r"must answer .* AuthenticationError"):
        await open_store(redis_server.url.replace("//", "//:wrong@"))
    store = await open_store(redis_server.url.replace("//", "//:right@"))
    await store.close()


async def test_open_server_through_unix_socket(redis_server: RedisServer) -> None:
    redis_server.kill()
    redis_server.start("--unixsocket", "redis.sock")
    store = await open_store(f"unix://{redis_server.folder}/redis.sock")
    await store.put_run(make_run())
    await store.close()


@pytest.mark.parametrize(("option", "found"), [("appendonly", "no and always"), ("appendfsync", "yes and no")])
async def test_open_server_that_can_lose_writes_warns(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture, option: str, found: str
) -> None:
    with caplog.at_level(logging.WARNING):
        await (await open_store(redis_server.url)).close()
        assert caplog.messages == []
        redis_server.kill()
        redis_server.start(f"--{option}", "no")
        await (await open_store(redis_server.url)).close()
    assert len(caplog.messages) == 1
    assert caplog.messages[0].endswith(f"got {found}.")
