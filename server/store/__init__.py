"""Durable state of a coordinator, in a SQLite file or a Redis server."""

from server.store.contract import Store
from server.store.sqlite import SqliteStore

__all__ = ["Store", "open_store"]

REDIS_SCHEMES = ("redis://", "rediss://", "unix://")


async def open_store(url_or_path: str) -> Store:
    """Open the store at an address.

    Args:
        url_or_path: redis://, rediss:// or unix:// for a Redis server, else the path of a SQLite file, which is created if need be.

    Raises:
        StoreError: It cannot be opened. The message names it, without a password.
    """
    if url_or_path.startswith(REDIS_SCHEMES):
        from server.store.redis import RedisStore  # only who uses Redis needs its package

        return await RedisStore.open(url_or_path)
    return await SqliteStore.open(url_or_path)
