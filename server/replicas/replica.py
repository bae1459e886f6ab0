"""An API replica: the REST API and the dashboard in a process of its own, beside a coordinator that keeps its state in Redis."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from server.api import create_api
from server.api.sources import Sources
from server.errors import ConfigurationError
from server.monitoring.broadcast import Broadcast
from server.monitoring.metrics import ProcessMetrics
from server.monitoring.pulse import Pulse
from server.replicas.remote_desk import RemoteDesk
from server.store import Store, open_post, open_store
from server.tasks import task_group
from server.web import SHUTDOWN_SECONDS, TLS, Web, bound_socket, check_exposure, taken_address
from wire.protocol import is_loopback


@dataclass(frozen=True, slots=True)
class ReplicaConfig:
    """How a replica runs; read once, at its start.

    Attributes:
        store: Address of the Redis server, as the coordinator has it.
        http_address: Host and port.
        folder: The coordinator's folder, where this process can read it; None: models are not served here.
        tls: Certificates, or None for plain text.
        is_insecure: Plain text is allowed beyond loopback.
    """

    store: str
    http_address: str = "127.0.0.1:8080"
    folder: Path | None = None
    tls: TLS | None = None
    is_insecure: bool = False


@dataclass(frozen=True, slots=True)
class Replica:
    """A replica that is being served.

    Attributes:
        http_address: Host and port, with the port that was taken.
    """

    http_address: str
    store: Store


@contextlib.asynccontextmanager
async def serve_api(config: ReplicaConfig) -> AsyncIterator[Replica]:
    """Serve the REST API while the context is open.

    Raises:
        ConfigurationError: The store is not in Redis, the address is taken, plain text would leave the machine, a certificate cannot be
            read, or there is no such folder.
        StoreError: The store cannot be opened.
    """
    check_exposure({"REST": config.http_address}, config.tls, config.is_insecure)
    if config.folder is not None and not config.folder.is_dir():
        raise ConfigurationError(
            f"Folder {config.folder}: must be a coordinator's, got none. Give another --folder, or none."
        )
    async with contextlib.AsyncExitStack() as stack:
        if (post := open_post(config.store)) is None:
            raise ConfigurationError(
                f"Store {config.store!r}: must be redis://, rediss:// or unix:// for choral api, got another. A SQLite file is the "
                "coordinator's alone: give choral serve and choral api the same --store of a Redis server."
            )
        stack.push_async_callback(post.close)
        store = await open_store(config.store)
        stack.push_async_callback(store.close)
        metrics = ProcessMetrics()
        desk = RemoteDesk(store, post)
        broadcast = Broadcast(store, desk)
        models = None if config.folder is None else config.folder / "runs"
        api = create_api(Sources(store, desk, broadcast, models, metrics), is_loopback(config.http_address))
        http_socket = stack.enter_context(bound_socket("REST", config.http_address))
        group = await stack.enter_async_context(task_group())
        tasks = [
            group.create_task(desk.serve(), name="desk"),
            group.create_task(Pulse(metrics).beat(), name="pulse"),
            group.create_task(broadcast.serve(), name="broadcast"),
        ]
        # Who asks meanwhile is answered then.
        await desk.begin()
        web = Web(api, config.tls)
        web_task = group.create_task(web.serve(sockets=[http_socket]), name="web")
        try:
            yield Replica(taken_address(config.http_address, http_socket.getsockname()[1]), store)
        finally:
            broadcast.close()
            web.should_exit = True
            for task in tasks:
                task.cancel()
            await asyncio.wait([web_task], timeout=SHUTDOWN_SECONDS)
            web_task.cancel()
