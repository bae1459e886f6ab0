"""Sessions of secure aggregation in memory: an authority, clients, and a driver that plays every message and may lose some."""

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import Message

from privacy.errors import MemberExcludedError, SessionAbortedError
from privacy.secagg.audit import SignedUpload
from privacy.secagg.client import ClientSession
from privacy.secagg.coordinator import CoordinatorSession
from privacy.secagg.head import HeadSum
from privacy.secagg.labels import sign
from privacy.secagg.masks import RING_TYPES, RingVector
from privacy.secagg.party import Floor, Identity, Party, Trust
from privacy.secagg.session import Purpose, SessionParameters
from wire import federation_pb2 as pb
from wire.identity import client_id_of
from wire.secure import SecureAggregationSpec

FEDERATION = "lab"
STAGES = ("advertise", "shares", "upload", "ack", "unmask")


class Memory:
    """A journal that lasts as long as the test."""

    def __init__(self) -> None:
        self.begun: list[tuple[int, int]] = []
        self.revealed: list[int] = []
        self.signed: list[SignedUpload] = []

    def begin(self, parameters: SessionParameters) -> None:
        self.begun.append((parameters.purpose.round_number, parameters.purpose.attempt))

    def reveal(self, parameters: SessionParameters) -> None:
        self.revealed.append(parameters.purpose.round_number)

    def note_upload(self, parameters: SessionParameters, upload: SignedUpload) -> None:
        self.signed.append(upload)


@dataclass
class Authority:
    """Who decides who takes part: an enrolment key, and a coordinator's key."""

    enrolment: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    coordinator: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    certificates: dict[bytes, bytes] = field(default_factory=dict)

    def enrol(self) -> Identity:
        key = Ed25519PrivateKey.generate()
        public = key.public_key().public_bytes_raw()
        self.certificates[public] = sign(self.enrolment, "cert", FEDERATION.encode(), public)
        return Identity(key, self.certificates[public])

    def problem_with(self, public_key: bytes, certificate: bytes) -> str:
        return "" if self.certificates.get(public_key) == certificate else "it must be enrolled"

    @property
    def trust(self) -> Trust:
        return Trust(FEDERATION, self.coordinator.public_key().public_bytes_raw(), self.problem_with)


def parameters(
    count: int,
    size: int = 5,
    *,
    round_number: int = 1,
    attempt: int = 0,
    digest: bytes = b"m" * 32,
    quorum: int = 0,
    **spec: Any,
) -> SessionParameters:
    """Return the parameters of a session for `count` clients with `size` coordinates."""
    settings = {"corrupt_fraction": 0.0, "dropout_fraction": 0.0, "minimum_cohort": 2, "weight_cap": 100, "metrics": []}
    purpose = Purpose(FEDERATION, "run-1/train", round_number, attempt, count, size, digest, quorum)
    return SessionParameters(purpose, SecureAggregationSpec.model_validate(settings | spec))


@dataclass
class Client:
    """One client with what it brings."""

    identity: Identity
    vector: RingVector
    floor: Floor = field(default_factory=lambda: Floor(minimum_cohort=2))
    journal: Memory = field(default_factory=Memory)
    session: ClientSession | None = None

    @property
    def client_id(self) -> str:
        return client_id_of(self.identity.public_key)


Lost = Callable[[str, int], bool]
"""Whether the message of a stage that the client with this number sends is lost."""


@dataclass
class Play:
    """One session between a coordinator and clients that keep to the protocol.

    Attributes:
        received: Every message that the coordinator got, by stage and client.
        aborted: What clients said when they aborted.
    """

    parameters: SessionParameters
    authority: Authority
    clients: list[Client]
    received: list[tuple[str, str, Message | bytes]] = field(default_factory=list)
    aborted: dict[str, SessionAbortedError] = field(default_factory=dict)
    excluded: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.coordinator = CoordinatorSession(self.parameters, self.authority.coordinator, self.authority.problem_with)
        self.total = np.zeros(self.parameters.size, dtype=RING_TYPES[self.parameters.spec.ring_bits])

    def run(self, is_lost: Lost = lambda stage, number: False) -> HeadSum:
        """Play all stages; `total` is then the opened sum."""
        self.advertise(is_lost)
        self.share(self.coordinator.freeze(), is_lost)
        self.upload(self.coordinator.deliver(), is_lost)
        survivors = self.coordinator.close_sum(self.uploaded)
        self.acknowledge(dict.fromkeys(self.uploaded, survivors), is_lost)
        self.unmask(self.coordinator.bundles(), is_lost)
        return self.coordinator.open(self.total)

    def advertise(self, is_lost: Lost = lambda stage, number: False) -> None:
        for number, client in enumerate(self.clients):
            if is_lost("advertise", number):
                continue
            try:
                party = Party(client.identity, self.authority.trust, client.floor, client.journal)
                client.session = ClientSession(self.parameters, self.coordinator.offer, party)
            except SessionAbortedError as error:
                self.aborted[client.client_id] = error
                continue
            self._take("advertise", client, client.session.advertisement, self.coordinator.take_advertisement)

    def share(self, roster: Message, is_lost: Lost = lambda stage, number: False) -> None:
        for number, client in self._live(self.coordinator.clients):
            answer = self._answer(client, "take_roster", roster)
            if answer is not None and not is_lost("shares", number):
                self._take("shares", client, answer, self.coordinator.take_shares)

    def upload(self, deliveries: Mapping[str, Message], is_lost: Lost = lambda stage, number: False) -> None:
        self.uploaded: list[str] = []
        for number, client in self._live(deliveries):
            self._answer(client, "take_delivery", deliveries[client.client_id])
            if client.client_id in self.aborted or is_lost("upload", number):
                continue
            assert client.session is not None
            vector = client.vector.copy()
            client.session.mask(vector)
            self.received.append(("upload", client.client_id, vector.tobytes()))
            if self.parameters.spec.audit:
                header = pb.UploadHeader(sha256=hashlib.sha256(vector.data).digest())
                header.signature = client.session.sign_upload(header.sha256)
                self.received.append(("header", client.client_id, header))
            self.total += vector
            self.uploaded.append(client.client_id)

    def acknowledge(self, survivors: Mapping[str, Message], is_lost: Lost = lambda stage, number: False) -> None:
        for number, client in self._live(survivors):
            answer = self._answer(client, "take_survivors", survivors[client.client_id])
            if answer is not None and not is_lost("ack", number):
                self._take("ack", client, answer, self.coordinator.take_ack)

    def unmask(self, bundles: Mapping[str, Message], is_lost: Lost = lambda stage, number: False) -> None:
        for number, client in self._live(bundles):
            answer = self._answer(client, "take_acks", bundles[client.client_id])
            if answer is not None and not is_lost("unmask", number):
                self._take("unmask", client, answer, self.coordinator.take_unmask)

    def _live(self, client_ids: Collection[str]) -> list[tuple[int, Client]]:
        return [
            (number, client)
            for number, client in enumerate(self.clients)
            if client.client_id in client_ids and client.client_id not in self.aborted
        ]

    def _answer(self, client: Client, method: str, message: Message) -> Message | None:
        try:
            answer: Message | None = getattr(client.session, method)(message)
        except SessionAbortedError as error:
            self.aborted[client.client_id] = error
            return None
        return answer

    def _take(self, stage: str, client: Client, message: Message, take: Callable[[str, Any], None]) -> None:
        self.received.append((stage, client.client_id, message))
        try:
            take(client.client_id, message)
        except MemberExcludedError as error:
            self.excluded[client.client_id] = str(error)


def play(
    count: int, size: int = 5, *, authority: Authority | None = None, seed: int = 0, **spec: Any
) -> tuple[Play, list[RingVector]]:
    """Return a session of clients with vectors of random coordinates, and those vectors, heads included."""
    authority = authority or Authority()
    agreed = parameters(count, size, **spec)
    generator = np.random.default_rng(seed)
    kind, vectors = RING_TYPES[agreed.spec.ring_bits], []
    for number in range(count):
        vector = np.empty(agreed.size, dtype=kind)
        agreed.head.write(vector, number % 7 + 1, number + 1, {})
        vector[agreed.head.size :] = generator.integers(0, np.iinfo(kind).max, size, dtype=kind, endpoint=True)
        vectors.append(vector)
    clients = [Client(authority.enrol(), vector) for vector in vectors]
    return Play(agreed, authority, clients), vectors


def sum_of(vectors: list[RingVector]) -> RingVector:
    """Return the sum in the ring."""
    total = np.zeros_like(vectors[0])
    for vector in vectors:
        total += vector
    return total
