"""The coordinator's side of the post, with a real Redis server that goes away and comes back."""

import logging
import re

import pytest

from server.errors import StoreError
from server.outage import Outage
from server.replicas.clerk import PLACES, Clerk
from server.replicas.remote_desk import RemoteDesk
from server.store import open_post, open_store
from server.store.post import Post
from server.tasks import task_group
from tests.loopback import until
from tests.server.store.redis_server import RedisServer

UNTAKEN = "commands of API replicas cannot be taken or answered"


def test_outage_is_told_when_it_begins_and_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage(logging.getLogger("outage"), "nothing can be read")
    with caplog.at_level(logging.INFO):
        outage.end()
        for text in ("the first", "the second"):
            outage.note(StoreError(text))
        outage.end()
        outage.end()
        outage.note(StoreError("the third"))
    beginnings = ["nothing can be read, trying again: the first", "nothing can be read, trying again: the third"]
    assert [text for text in caplog.messages if "trying" in text] == beginnings
    (over,) = [text for text in caplog.messages if "over" in text]
    assert re.fullmatch(r"over after 0\.\d s: nothing can be read", over)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO", "WARNING"]


async def test_redis_that_is_away_is_told_once_by_all_who_wait_for_commands(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    take, failures = Post.take, list[StoreError]()

    async def take_and_count(self: Post, holder: str) -> tuple[str, str] | None:
        try:
            return await take(self, holder)
        except StoreError as error:
            failures.append(error)
            raise

    async def all_have_failed() -> bool:
        # And one a second time.
        return len(failures) > PLACES

    async def is_over() -> bool:
        return any(text.endswith(f": {UNTAKEN}") for text in caplog.messages)

    monkeypatch.setattr(Post, "take", take_and_count)
    store, post = await open_store(redis_server.url), open_post(redis_server.url)
    assert post is not None
    try:
        with caplog.at_level(logging.INFO, "server.replicas.clerk"):
            async with task_group() as group:
                serving = group.create_task(Clerk(post, RemoteDesk(store, post), "me").serve())
                redis_server.kill()
                await until(all_have_failed, "every place to fail")
                redis_server.start()
                await until(is_over, "its end")
                serving.cancel()
    finally:
        await post.close()
        await store.close()
    assert sum(text.startswith(f"{UNTAKEN}, trying again: Store redis://") for text in caplog.messages) == 1
