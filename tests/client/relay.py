"""A port that forwards to another one until the test cuts its connections, as a network does."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import TypeVar

READ_BYTES = 64 << 10

AnyRelay = TypeVar("AnyRelay", bound="Relay")


class Relay:
    """Forwards bytes both ways.

    Attributes:
        address: Host and port to connect to.
        is_open: Whether new connections are let through; if not, they end at once.
        is_silent: Whether bytes are swallowed instead of forwarded, while connections stay up.
        swallowed_bytes: How many were.
        connection_count: Connections so far.
        cut_count: How often every connection was broken.
        writers: The ends that bytes are written to.
        bytes_until_cut: After how many forwarded bytes to break every connection, again and again; new ones are let through.
    """

    def __init__(self, target: str) -> None:
        self.address = ""
        self.is_open = True
        self.is_silent = False
        self.swallowed_bytes = 0
        self.connection_count = 0
        self.cut_count = 0
        self.bytes_until_cut: Iterator[int] | None = None
        self._bytes_left: int | None = None
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self.writers: set[asyncio.StreamWriter] = set()
        self._connections: set[asyncio.Task[None]] = set()

    def cut(self) -> None:
        """Break every connection and let no new one through."""
        self.is_open = False
        self._break()

    async def close(self) -> None:
        """Break every connection and wait for their ends."""
        self.cut()
        if self._connections:
            await asyncio.wait(self._connections)

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one connection to its end."""
        self.connection_count += 1
        connection = asyncio.current_task()
        assert connection is not None
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)
        if self.is_open:
            far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, far_writer))
                group.create_task(self._pump(far_reader, writer))
        else:
            await self.turn_away(reader, writer)

    async def turn_away(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """End a connection that is not let through."""
        await _abort(writer)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        with contextlib.suppress(OSError):
            while data := await reader.read(READ_BYTES):
                if self.is_silent:
                    self.swallowed_bytes += len(data)
                    continue
                writer.write(data)
                await writer.drain()
                self._count(len(data))
        self.writers.discard(writer)
        await _abort(writer)

    def _count(self, byte_count: int) -> None:
        if self.bytes_until_cut is None:
            return
        self._bytes_left = (next(self.bytes_until_cut) if self._bytes_left is None else self._bytes_left) - byte_count
        if self._bytes_left <= 0:
            self._bytes_left = None
            self._break()

    def _break(self) -> None:
        self.cut_count += 1
        for writer in self.writers:
            writer.transport.abort()


async def _abort(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def relaying(target: str) -> contextlib.AbstractAsyncContextManager[Relay]:
    """Forward to `target` while the context is open."""
    return listening(Relay(target))


@contextlib.asynccontextmanager
async def listening(relay: AnyRelay) -> AsyncIterator[AnyRelay]:
    """Take connections for a relay while the context is open."""
    async with await asyncio.start_server(relay.connect, "127.0.0.1", 0) as server:
        relay.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield relay
        await relay.close()
