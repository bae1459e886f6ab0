"""Connections to a Redis server: every call has a deadline, and every error names the server and no password."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError

from server.errors import StoreError

PREFIX = "choral:"
"""Beginning of every key and channel of ours."""

LEASE = PREFIX + "lease"
"""Key with the name of the coordinator that holds the lease."""

DEADLINE_SECONDS = 15.0
"""Longest time of one call, repeats after a lost connection included."""

BLOCK_SECONDS = 3.0
"""Longest wait in the server for something to come; below redis-py's own patience with a silent connection."""


class Connection:
    """Connections to one server.

    Attributes:
        client: Sends commands. Use it within `call`.
        address: Where the server is, for people.
    """

    def __init__(self, url: str, connection_count: int) -> None:
        """Prepare to connect.

        Args:
            url: redis://, rediss:// (TLS) or unix://, as redis-py reads it; the password in it is never shown.
            connection_count: How many are open at most; who needs one more waits.

        Raises:
            StoreError: The URL cannot be read.
        """
        try:
            pool = BlockingConnectionPool.from_url(
                url,
                decode_responses=True,
                max_connections=connection_count,
                timeout=DEADLINE_SECONDS,
                retry=Retry(ExponentialBackoff(cap=1.0, base=0.05), retries=5),
            )
        except ValueError:  # its text may hold the password
            raise StoreError(
                "Store: address must be redis://[user:password@]host:port/number, rediss:// or unix://, got another form. "
                "Write special characters of the password as %XX."
            ) from None
        # redis-py types every reply as str or bytes or more; ours are decoded.
        self.client: Any = Redis.from_pool(pool)
        self.address = _address(url, pool.connection_kwargs)

    @asynccontextmanager
    async def call(self) -> AsyncIterator[None]:
        """Bound a call in time. Raises `StoreError` when it fails; it may then have taken place all the same."""
        task = asyncio.current_task()
        assert task is not None
        cancel_count = task.cancelling()
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                yield
        except (RedisError, OSError) as error:  # TimeoutError is an OSError
            reason = f"{type(error).__name__}: {error}".rstrip(".: ")
            raise StoreError(
                f"Store {self.address}: must answer within {DEADLINE_SECONDS:.0f} s, got {reason}. "
                "Check that Redis runs there, lets this user in and has memory left."
            ) from error
        # redis-py sends with asyncio.wait_for, which before Python 3.12 loses a cancellation that comes as it ends.
        if task.cancelling() > cancel_count:
            raise asyncio.CancelledError

    async def close(self) -> None:
        """Close them."""
        await self.client.aclose()


def _address(url: str, settings: dict[str, Any]) -> str:
    """Say where the server is, from what the URL was parsed into, so that no password can slip through."""
    scheme = url.partition("://")[0]
    if scheme == "unix":
        return f"unix://{settings.get('path', '')}"
    return f"{scheme}://{settings.get('host', 'localhost')}:{settings.get('port', 6379)}/{settings.get('db', 0)}"
