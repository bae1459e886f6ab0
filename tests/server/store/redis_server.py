"""A real Redis server for tests, and a wire to it that loses replies."""

import asyncio
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

REDIS_SERVER = shutil.which("redis-server")


class RedisServer:
    """A Redis server on a free port, which keeps its append-only file in a folder across `kill` and `start`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[str] | None = None

    def start(self, *options: str) -> None:
        """Start, and return once it accepts connections."""
        settings = ["--save", "", "--appendonly", "yes", "--appendfsync", "always", *options]
        command = [str(REDIS_SERVER), "--port", str(self.port), "--dir", str(self.folder), *settings]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        log = []
        for line in self._process.stdout:
            log.append(line)
            if "Ready to accept connections" in line:
                return
        raise RuntimeError(f"redis-server did not start: {''.join(log)}")

    def kill(self) -> None:
        """End it at once, as a power failure would."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate(timeout=10)
            self._process = None

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Let it keep its connections and answer nothing while the context is open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    @property
    def log_path(self) -> Path:
        """The append-only file that takes the writes."""
        (path,) = (self.folder / "appendonlydir").glob("*.incr.aof")
        return path


class LossyWire:
    """A relay before a Redis server that passes requests on, and may break the connection instead of passing on a reply."""

    def __init__(self) -> None:
        self.url = ""
        self.replies_to_lose = 0

    async def relay(self, client: tuple[asyncio.StreamReader, asyncio.StreamWriter], port: int) -> None:
        """Serve one connection, until either side closes it or a reply is lost."""
        reader, writer = client
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", port)
        requests = asyncio.create_task(_pump(reader, upstream_writer))
        try:
            while data := await upstream_reader.read(1 << 16):
                if self.replies_to_lose:
                    self.replies_to_lose -= 1
                    break
                writer.write(data)
        finally:
            requests.cancel()
            await asyncio.wait([requests])
            for end in (writer, upstream_writer):
                end.close()
                await end.wait_closed()


@asynccontextmanager
async def lossy_wire(server: RedisServer) -> AsyncIterator[LossyWire]:
    """Put a relay before `server`; at the end, all connections to it must have been closed."""
    wire = LossyWire()
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:

        def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            group.create_task(wire.relay((reader, writer), server.port))

        relay = await asyncio.start_server(connect, "127.0.0.1", 0)
        wire.url = f"redis://127.0.0.1:{relay.sockets[0].getsockname()[1]}"
        yield wire
        relay.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
    writer.write_eof()
