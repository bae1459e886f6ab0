"""The address of a store in a file, so that its password stands in no command line."""

from pathlib import Path

import pytest

from server.errors import StoreError
from server.store import open_store
from tests.server.store.redis_server import RedisServer

SECRET = "p4ssw0rd"


async def test_address_in_a_file_is_the_store(tmp_path: Path, redis_server: RedisServer) -> None:
    path = tmp_path / "store"
    path.write_text(f"{redis_server.url}\n")
    store = await open_store(f"file:{path}")
    try:
        assert list(await store.runs()) == []
    finally:
        await store.close()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "must be a readable text file, got: No such file or directory"),
        (b"\xff\xfe", "must be a readable text file, got: something else"),
        (f"{SECRET}@example.org".encode(), "must hold a redis://, rediss:// or unix:// address, got another text"),
    ],
    ids=["missing", "binary", "no-address"],
)
async def test_file_without_an_address_is_refused_without_its_text(
    tmp_path: Path, text: bytes | None, message: str
) -> None:
    path = tmp_path / "store"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(StoreError, match=message) as refusal:
        await open_store(f"file:{path}")
    assert str(path) in str(refusal.value)
    assert SECRET not in str(refusal.value)
