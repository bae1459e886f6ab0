"""The edge client: a resident process that joins a coordinator, works for it, and comes back whenever the connection breaks."""

import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random, wait_random_exponential

from client.cache import ModelCache
from client.connection import Connection, Endpoint, connect
from client.data import LocalData
from client.errors import ConnectionLostError, RejectedError
from client.identity import load_identity
from client.policy import Policy
from client.worker import Link, Site, Worker
from models import MODELS
from wire import RELEASE
from wire import federation_pb2 as pb
from wire.identity import client_id_of

log = logging.getLogger(__name__)

LONGEST_WAIT_SECONDS = 8.0
"""Longest pause between two tries to reach the coordinator."""


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """How a client runs; read once, at its start.

    Attributes:
        endpoint: Where the coordinator is.
        folder: Where the key file lies; each client needs one of its own.
        name: A name for people, 1 to 64 printable characters.
        device: Where to train.
        thread_count: Threads for training on a CPU.
        policy: What the site allows.
    """

    endpoint: Endpoint
    folder: Path
    name: str
    device: torch.device
    thread_count: int
    policy: Policy


class Agent:
    """One client. `run` ends only by an error that coming back does not mend, or by cancellation."""

    def __init__(self, config: AgentConfig, data: LocalData) -> None:
        """Prepare a client.

        Args:
            config: How.
            data: Its examples; they are moved to the device once and stay there.

        Raises:
            IdentityError: The key file cannot be used.
        """
        self._config = config
        self._key = load_identity(config.folder / "identity.pem")
        self.client_id = client_id_of(self._key.public_key().public_bytes_raw())
        self._hello = _hello(config, data)
        resident = LocalData(data.kind, data.training.to(config.device), data.held_out.to(config.device))
        self._site = Site(resident, config.device, config.policy, ModelCache())

    async def run(self) -> None:
        """Join, work, and join again, for ever.

        Raises:
            RejectedError: The coordinator will not have this client.
        """
        link = Link()
        worker = Worker(self._site, link)
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(ConnectionLostError),
            wait=wait_random_exponential(multiplier=0.2, max=LONGEST_WAIT_SECONDS) + wait_random(0, 0.2),
            before_sleep=_log_wait,
        )
        try:
            while True:
                # Each session that came about starts the backoff anew.
                async for attempt in retrying:
                    with attempt:
                        async with self._session() as connection:
                            await self._serve(connection, link, worker)
        except RejectedError as error:
            log.error("%s: ended. %s", self._config.name, error)
            raise
        finally:
            await worker.close()

    @contextlib.asynccontextmanager
    async def _session(self) -> AsyncIterator[Connection]:
        async with connect(self._config.endpoint, self._key, self._hello) as connection:
            log.info("%s: joined %s as %s", self._config.name, self._config.endpoint.address, connection.client_id)
            yield connection

    async def _serve(self, connection: Connection, link: Link, worker: Worker) -> None:
        """Take tasks until the session ends. A broken one is logged, so that the next try begins at once."""
        link.set(connection)
        try:
            async for message in connection.messages():
                match message.WhichOneof("message"):
                    case "task":
                        worker.take(message.task, connection.client_id)
                    case "cancel_task":
                        worker.cancel(message.cancel_task.task_id, message.cancel_task.reason)
        except ConnectionLostError as error:
            log.warning("%s: lost the coordinator, %s", self._config.name, error)
        finally:
            link.set(None)


def _hello(config: AgentConfig, data: LocalData) -> pb.Hello:
    return pb.Hello(
        name=config.name,
        capabilities=pb.Capabilities(
            learners=[name for name in MODELS if config.policy.allows(name)],
            device=str(config.device),
            thread_count=config.thread_count,
        ),
        data=pb.DataSummary(
            kind=data.kind,
            example_count=len(data.training),
            held_out_count=len(data.held_out),
            example_shape=data.training.example_shape,
        ),
        release=RELEASE,
    )


def _log_wait(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    seconds = state.next_action.sleep if state.next_action else 0.0
    log.warning("cannot reach the coordinator, %s; trying again in %.1f s", error, seconds)
