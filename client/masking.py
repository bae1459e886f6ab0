"""A client's conversation with the coordinator in one session of secure aggregation, from its advertisement to the opening.

The conversation outlives connections: whoever comes back is asked once more what it was asked last, and answers the same. It does not
outlive the process, whose secrets are in memory alone.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import Message

from client.errors import PolicyError
from client.journal import Journal
from client.link import raise_if_cancelled
from privacy.enrolment import EnrolmentFile
from privacy.errors import SecureAggregationError, SessionAbortedError
from privacy.files import write_file
from privacy.secagg.client import ClientSession
from privacy.secagg.masks import RingVector
from privacy.secagg.party import Floor, Identity, Party, Trust
from privacy.secagg.session import Purpose, SessionParameters, digest_of
from privacy.secagg.vectors import ring_vector
from wire import federation_pb2 as pb
from wire.spec import RunSpec
from wire.tensors import Vector

log = logging.getLogger(__name__)

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class MaskingSite:
    """What a site needs for secure aggregation beside its data.

    Attributes:
        key: The client's.
        enrolment: The roster that it believes.
        journal: What it must not forget.
        evidence: Folder for messages that show that somebody broke the protocol.
    """

    key: Ed25519PrivateKey = field(repr=False)
    enrolment: EnrolmentFile
    journal: Journal
    evidence: Path

    def party(self, floor: Floor) -> Party:
        """Return this client as sessions see it, by the roster as it is now.

        Raises:
            PolicyError: The client is not enrolled, or the roster does not say with what the coordinator signs.
        """
        roster = self.enrolment.latest()
        public_key = self.key.public_key().public_bytes_raw()
        certificate = roster.certificate_of(public_key)
        if certificate is None:
            raise PolicyError(f"Secure aggregation: {roster.problem_with(public_key)}.")
        if not roster.coordinator_key:
            raise PolicyError("Secure aggregation: a roster must have the coordinator's key, this one has none.")
        trust = Trust(roster.federation, bytes.fromhex(roster.coordinator_key), roster.problem_with_certificate)
        return Party(Identity(self.key, certificate), trust, floor, self.journal)

    def begin(self, task: pb.Task, spec: RunSpec, brought: "Brought", floor: Floor) -> "Conversation":
        """Begin the session of a task. Slow for large models.

        Raises:
            PolicyError: This client must not take part, or the task is not what its run spec says.
            SessionAbortedError: The offer is not what it must be. Whatever is alarming about it was kept.
            ChoralError: A coordinate is not finite, or the journal cannot be written.
        """
        coordinates = brought.coordinates
        parameters = parameters_of(task, spec, 0 if coordinates is None else len(coordinates))
        party = self.party(floor)
        vector = ring_vector(parameters, brought.weight, brought.example_count, brought.metrics, coordinates)
        terms = Terms(parameters, task)
        try:
            session = ClientSession(parameters, task.offer, party)
        except SessionAbortedError as error:
            self.keep_evidence(terms, error)
            raise
        silence_seconds = spec.cohort.deadline_seconds + parameters.spec.stage_seconds
        return Conversation(self, session, terms, vector, silence_seconds)

    def keep_evidence(self, terms: "Terms", error: SessionAbortedError, *rosters: pb.Roster) -> None:
        """Keep the messages that show what happened, with those that they are bound to, and tell the operator; if it is alarming."""
        if not error.code.is_alarming:
            return
        offer = terms.task.offer
        session_id, context = terms.parameters.session_id(offer.nonce), (offer, *rosters)
        path = self.evidence / f"{session_id.hex()[:16]}-{error.code}.json"
        content = {
            "code": error.code,
            "sentence": str(error),
            "session": session_id.hex(),
            "parameters": terms.parameters.canon().hex(),
            "messages": _listed(error.evidence),
            "context": _listed(message for message in context if message not in error.evidence),
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, json.dumps(content, indent=2).encode(), 0o600)
            log.error("%s The messages that show it are in %s.", error, path)
        except OSError as problem:
            log.error("%s The messages that show it could not be kept: %s", error, problem)


def parameters_of(task: pb.Task, spec: RunSpec, body_size: int) -> SessionParameters:
    """Return the parameters of a task's session as this client finds them.

    Raises:
        PolicyError: The task and its run spec do not agree on whether its answer is masked.
    """
    if spec.secure is None or not task.HasField("offer"):
        raise PolicyError(
            "A task must have an offer of secure aggregation where its run spec asks for it, and nowhere else."
        )
    base = task.base
    purpose = Purpose(
        task.offer.federation,
        f"{task.run_id}/{task.WhichOneof('kind')}",
        task.round,
        task.offer.attempt,
        task.cohort_size,
        body_size,
        digest_of(base.sha256, base.layout_sha256, spec),
        spec.cohort.fewest if task.HasField("train") else 0,
    )
    return SessionParameters(purpose, spec.secure)


@dataclass(frozen=True, slots=True)
class Terms:
    """What a session is bound to: its parameters, as this client finds them, and the coordinator's task with its offer."""

    parameters: SessionParameters
    task: pb.Task


@dataclass(frozen=True, slots=True)
class Brought:
    """What a client brings to a session.

    Attributes:
        weight: 0 to the cap.
        example_count: Examples that weight and metrics are of.
        metrics: Measured by training or evaluation.
        coordinates: float32 (parameters,) of a contribution; None for an evaluation.
    """

    weight: int
    example_count: int
    metrics: Mapping[str, float]
    coordinates: Vector | None = field(default=None, repr=False)


def masked_header(task: pb.Task, session: ClientSession, data: memoryview) -> pb.UploadHeader:
    """Return what announces a session's masked vector: nothing of what is in it."""
    sha256 = hashlib.sha256(data).digest()
    return pb.UploadHeader(
        task_id=task.task_id,
        run_id=task.run_id,
        round=task.round,
        base_sha256=task.base.sha256,
        layout_sha256=session.session_id,
        encoding=pb.VECTOR_ENCODING_MASKED,
        total_bytes=len(data),
        sha256=sha256,
        signature=session.sign_upload(sha256),
    )


def _listed(messages: Iterable[Message]) -> list[dict[str, str]]:
    return [
        {"message": message.DESCRIPTOR.name, "base64": b64encode(message.SerializeToString()).decode()}
        for message in messages
    ]


@dataclass(frozen=True, slots=True)
class Line:
    """How a conversation is held.

    Attributes:
        send: Sends a message.
        upload: Uploads a masked vector. Raises `RoundClosedError` when nobody waits for it on this connection.
        in_thread: Calls a function off the event loop.
    """

    send: Callable[[pb.JoinRequest], Awaitable[None]]
    upload: Callable[[pb.UploadHeader, memoryview], Awaitable[None]]
    in_thread: Callable[[Callable[[], object]], Awaitable[object]]


class Conversation:
    """One session's conversation. Made when the vector is ready.

    Attributes:
        session_id: The session's.
    """

    def __init__(
        self,
        site: MaskingSite,
        session: ClientSession,
        terms: "Terms",
        vector: RingVector,
        silence_seconds: float,
    ) -> None:
        """Prepare it.

        Args:
            site: Which keeps what is alarming.
            session: Which has just been begun.
            terms: The session's.
            vector: What the client brings, not masked yet. It is masked in place.
            silence_seconds: Longest wait for the coordinator's next message.
        """
        self.session_id = session.session_id
        self._site = site
        self._session = session
        self._terms = terms
        self._roster: list[pb.Roster] = []
        self._vector = vector
        self._header = pb.UploadHeader()
        self._silence_seconds = silence_seconds
        self._mail: asyncio.Queue[pb.JoinResponse | None] = asyncio.Queue()
        self._heard: pb.JoinResponse | None = None
        self._answer_given: pb.JoinRequest | None = None

    def hear(self, message: pb.JoinResponse | None) -> None:
        """Take the coordinator's next message; none when it asks again for the advertisement."""
        self._mail.put_nowait(message)

    async def hold(self, line: Line) -> None:
        """Answer until the sum is opened.

        Raises:
            SessionAbortedError: A check failed.
            SecureAggregationError: The coordinator fell silent.
        """
        self._answer_given = pb.JoinRequest(advertise=self._session.advertisement)
        try:
            while True:
                await self._answer(self._answer_given, line)
                if self._heard is not None and self._heard.HasField("ack_bundle"):
                    return
                message = await self._next()
                if message is not None and message != self._heard:
                    self._answer_given = await self._think(message, line)
                    self._heard = message
        except SessionAbortedError as error:
            self._site.keep_evidence(self._terms, error, *self._roster)
            raise
        finally:
            self._session.abort()

    async def linger(self, line: Line) -> None:
        """Give what opens the sum once more whenever the coordinator asks again, because it was lost on its way, until it falls silent."""
        with contextlib.suppress(SecureAggregationError):
            while True:
                if await self._next() == self._heard:
                    await self._answer(self._answer_given, line)

    async def _think(self, message: pb.JoinResponse, line: Line) -> pb.JoinRequest | None:
        """Return the answer to a message; none where it is the masked vector."""
        found: list[pb.JoinRequest | None] = []
        await line.in_thread(lambda: found.append(self._reply(message)))
        return found[0]

    def _reply(self, message: pb.JoinResponse) -> pb.JoinRequest | None:
        session = self._session
        match message.WhichOneof("message"):
            case "roster":
                self._roster.append(message.roster)
                return pb.JoinRequest(shares=session.take_roster(message.roster))
            case "delivery":
                session.take_delivery(message.delivery)
                session.mask(self._vector)
                self._header = masked_header(self._terms.task, session, self._vector.data.cast("B"))
                return None
            case "survivors":
                return pb.JoinRequest(survivor_ack=session.take_survivors(message.survivors))
            case _:
                return pb.JoinRequest(unmask=session.take_acks(message.ack_bundle))

    async def _answer(self, answer: pb.JoinRequest | None, line: Line) -> None:
        if answer is not None:
            await line.send(answer)
        else:
            await line.upload(self._header, self._vector.data.cast("B"))
        # An upload that is sent whole waits for its verdict first; the session may have ended meanwhile.
        raise_if_cancelled()

    async def _next(self) -> pb.JoinResponse | None:
        try:
            async with asyncio.timeout(self._silence_seconds):
                return await self._mail.get()
        except TimeoutError:
            raise SecureAggregationError(
                f"Secure aggregation: the coordinator's next message must come within {self._silence_seconds:g} s, none has."
            ) from None
