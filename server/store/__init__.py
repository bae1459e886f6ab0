"""Durable state of a coordinator, in a SQLite file or a Redis server."""

from pathlib import Path
from typing import TYPE_CHECKING

from server.errors import StoreError
from server.store.contract import Store
from server.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from server.store.post import Post

__all__ = ["Store", "open_post", "open_store"]

REDIS_SCHEMES = ("redis://", "rediss://", "unix://")
FILE_SCHEME = "file:"


async def open_store(url_or_path: str) -> Store:
    """Open the store at an address.

    Args:
        url_or_path: redis://, rediss:// or unix:// for a Redis server; file:PATH for a file that holds such an address, whose password
            then stands in no command line; else the path of a SQLite file, which is created if need be.

    Raises:
        StoreError: It cannot be opened. The message names it, without a password.
    """
    address = _address(url_or_path)
    if address.startswith(REDIS_SCHEMES):
        from server.store.redis import RedisStore  # only who uses Redis needs its package

        return await RedisStore.open(address)
    return await SqliteStore.open(address)


def open_post(url_or_path: str) -> "Post | None":
    """Return the post between the coordinator and API replicas beside a store, or None: there is none beside a SQLite file.

    Raises:
        StoreError: The address cannot be read.
    """
    address = _address(url_or_path)
    if not address.startswith(REDIS_SCHEMES):
        return None
    from server.store.post import Post

    return Post(address)


def _address(url_or_path: str) -> str:
    """Return the address of a Redis server, perhaps from a file, or the path of a SQLite file."""
    if not url_or_path.startswith(FILE_SCHEME):
        return url_or_path
    path = Path(url_or_path.removeprefix(FILE_SCHEME))
    try:
        address = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "something else"
        raise StoreError(f"Store {FILE_SCHEME}{path}: must be a readable text file, got: {reason}.") from error
    if not address.startswith(REDIS_SCHEMES):
        # Its text may hold a password.
        raise StoreError(
            f"Store {FILE_SCHEME}{path}: must hold a redis://, rediss:// or unix:// address, got another text."
        )
    return address
