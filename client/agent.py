"""The edge client: a resident process that joins a coordinator, works for it, and comes back whenever the connection breaks."""

import asyncio
import logging
import random
import shlex
from dataclasses import dataclass
from pathlib import Path

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.cache import ModelCache
from client.connection import Connection, Endpoint, connect
from client.data import LocalData
from client.errors import ConnectionLostError, RejectedError
from client.journal import Journal
from client.link import Link, raise_if_cancelled
from client.masking import MaskingSite
from client.policy import Policy
from client.presence import marked
from client.worker import Site, Worker
from models import learners
from privacy.enrolment import EnrolmentFile
from privacy.errors import EnrolmentError
from privacy.keys import load_identity
from wire import RELEASE
from wire import federation_pb2 as pb
from wire.identity import client_id_of
from wire.logs import about

log = logging.getLogger(__name__)

LONGEST_WAIT_SECONDS = 8.0
"""Longest pause before a try to reach the coordinator."""

FIRST_WAIT_SECONDS = 0.2
"""Longest pause after a session that lasted; doubled by everything that goes wrong from then on."""

LASTING_SECONDS = 5.0
"""A session that held this long has lasted."""


class Backoff:
    """How long to pause before the next try, drawn at random, so that clients that were sent away together do not return together.

    Tries in vain count until a session comes about, sessions that die young until one lasts: a coordinator that greets and then fails
    is not stormed, and one that comes back after a long time is not kept waiting when it is lost once more.
    """

    def __init__(self, generator: random.Random) -> None:
        self._generator = generator
        self._vain_count = 0
        self._young_count = 0

    def vain(self) -> float:
        """Return the pause in seconds after a try that brought no session."""
        self._vain_count += 1
        return self._pause()

    def ended(self, seconds: float) -> float:
        """Return the pause in seconds after a session that held for `seconds`."""
        self._vain_count = 0
        self._young_count = 0 if seconds >= LASTING_SECONDS else self._young_count + 1
        return self._pause()

    def _pause(self) -> float:
        # Bounded, because a float has no place for 2 to the power of a week's tries.
        doubled_count = min(self._vain_count + self._young_count, 32)
        return self._generator.uniform(0, min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2**doubled_count))


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
        enrolment: Who may take part, this client among them; None where the site has no roster.
    """

    endpoint: Endpoint
    folder: Path
    name: str
    device: torch.device
    thread_count: int
    policy: Policy
    enrolment: EnrolmentFile | None = None


class Agent:
    """One client. `run` ends only by an error that coming back does not mend, or by cancellation."""

    def __init__(self, config: AgentConfig, data: LocalData) -> None:
        """Prepare a client.

        Args:
            config: How.
            data: Its examples; they are moved to the device once and stay there.

        Raises:
            IdentityError: The key file cannot be used.
            EnrolmentError: This client must not take part by its own roster.
        """
        self._config = config
        self._key = load_identity(config.folder / "identity.pem")
        public_key = self._key.public_key().public_bytes_raw()
        self.client_id = client_id_of(public_key)
        _check_enrolment(config, public_key)
        self._hello = _hello(config, data)
        resident = LocalData(data.kind, data.training.to(config.device), data.held_out.to(config.device))
        self._site = Site(resident, config.device, config.policy, ModelCache(), _masking(config, self._key))

    async def run(self) -> None:
        """Join, work, and join again, for ever.

        Raises:
            RejectedError: The coordinator will not have this client.
        """
        link = Link()
        worker = Worker(self._site, link)
        backoff = Backoff(random.Random())
        with about(client_id=self.client_id):
            try:
                while True:
                    pause = await self._session(link, worker, backoff)
                    raise_if_cancelled()
                    await asyncio.sleep(pause)
            except RejectedError as error:
                log.error("%s: ended. %s", self._config.name, error)
                raise
            finally:
                await worker.close()

    async def _session(self, link: Link, worker: Worker, backoff: Backoff) -> float:
        """Take tasks from when the coordinator is reached until the session ends; return how long to pause then, in seconds."""
        name, clock = self._config.name, asyncio.get_running_loop().time
        start, reason = None, "the session ended"
        try:
            async with connect(self._config.endpoint, self._key, self._hello) as connection:
                start = clock()
                log.info("%s: joined %s as %s", name, self._config.endpoint.address, connection.client_id)
                await self._serve(connection, link, worker)
        except ConnectionLostError as error:
            reason = str(error)
        if start is None:
            pause = backoff.vain()
            log.warning("cannot reach the coordinator, %s; trying again in %.1f s", reason, pause)
        else:
            pause = backoff.ended(clock() - start)
            log.warning("%s: lost the coordinator, %s; trying again in %.1f s", name, reason, pause)
        return pause

    async def _serve(self, connection: Connection, link: Link, worker: Worker) -> None:
        """Take tasks until the session ends."""
        link.set(connection)
        try:
            with marked(self._config.folder):
                async for message in connection.messages():
                    match message.WhichOneof("message"):
                        case "task":
                            worker.take(message.task, connection.client_id)
                        case "roster" | "delivery" | "survivors" | "ack_bundle":
                            worker.hear(message)
                        case "cancel_task":
                            worker.cancel(message.cancel_task.task_id, message.cancel_task.reason)
        finally:
            link.set(None)


def _masking(config: AgentConfig, key: Ed25519PrivateKey) -> MaskingSite | None:
    """Return what secure aggregation needs, for a client that has a roster."""
    if config.enrolment is None:
        return None
    return MaskingSite(key, config.enrolment, Journal(config.folder / "sessions.sqlite"), config.folder / "evidence")


def _check_enrolment(config: AgentConfig, public_key: bytes) -> None:
    if config.enrolment is not None and (problem := config.enrolment.latest().problem_with(public_key)):
        raise EnrolmentError(
            f"Roster {config.enrolment.path}: {problem}. The officer enrols it with: "
            f"choral enroll add {shlex.quote(config.name)} {public_key.hex()}"
        )


def _hello(config: AgentConfig, data: LocalData) -> pb.Hello:
    return pb.Hello(
        name=config.name,
        capabilities=pb.Capabilities(
            learners=[name for name in learners() if config.policy.allows(name)],
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
