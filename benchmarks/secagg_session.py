"""One session of secure aggregation, every message of every client: all clients in this process, the coordinator in another.

The clients' vectors are made and masked one after the other in one buffer, so that memory does not grow with their number. Each stage of
each client is timed by itself, its messages' reading and writing included; the sum that comes out is compared with that of the vectors.
"""

import hashlib
import statistics
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import Message

from benchmarks.secagg_coordinator import Federation, Remote, process
from benchmarks.secagg_result import Case, SessionResult, Stopwatch
from privacy.secagg.audit import SignedUpload
from privacy.secagg.client import ClientSession
from privacy.secagg.labels import sign
from privacy.secagg.masks import RING_TYPES, RingVector
from privacy.secagg.party import Floor, Identity, Party, Trust
from privacy.secagg.session import Purpose, SessionParameters
from wire import federation_pb2 as pb
from wire.secure import SecureAggregationSpec

SPEC = SecureAggregationSpec(corrupt_fraction=0.1, dropout_fraction=0.1)
WEIGHT = 10
BLOCK = 1 << 16
"""Coordinates that are quantised at a time."""


def parameters_of(case: Case) -> SessionParameters:
    """Return the parameters of a case's session: up to 128 clients the graph is complete."""
    purpose = Purpose("bench", "run-1/train", 1, 0, case.client_count, case.parameter_count, bytes(32))
    return SessionParameters(purpose, SPEC)


def quantise(values: npt.NDArray[np.float32], parameters: SessionParameters, out: RingVector) -> None:
    """Write a client's weighted update on the session's grid.

    Args:
        values: float32 (parameters,).
        parameters: Those of the session.
        out: Ring elements (parameters,), which are written.
    """
    grid, scratch = parameters.grid, np.empty(BLOCK)
    for start in range(0, len(values), BLOCK):
        block = values[start : start + BLOCK]
        steps = grid.quantise(block, WEIGHT, out=scratch[: len(block)])
        out[start : start + BLOCK] = steps.astype(np.int64)


def measure(case: Case) -> SessionResult:
    """Play the session of a case, and check that the sum is exact.

    Raises:
        RuntimeError: The coordinator opened another sum than that of the survivors' vectors.
    """
    enrolment, signing = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    parameters = parameters_of(case)
    federation = Federation(parameters.purpose.federation, enrolment.public_key().public_bytes_raw())
    trust = Trust(federation.name, signing.public_key().public_bytes_raw(), federation.problem_with)
    clients = [_Client.enrolled(enrolment, trust) for _ in range(case.client_count)]
    with process(parameters, signing.private_bytes_raw(), federation) as coordinator:
        play = _Play(case, parameters, coordinator, clients)
        return play.run()


class _Forgetful:
    """A journal that notes nothing: what it costs to write to a disk is not what is measured."""

    def begin(self, parameters: SessionParameters) -> None: ...

    def reveal(self, parameters: SessionParameters) -> None: ...

    def note_upload(self, parameters: SessionParameters, upload: SignedUpload) -> None: ...


@dataclass(slots=True)
class _Client:
    """One client, and the bytes it has sent and received."""

    party: Party
    sent_bytes: int = 0
    received_bytes: int = 0
    session: ClientSession = field(init=False)

    @classmethod
    def enrolled(cls, enrolment: Ed25519PrivateKey, trust: Trust) -> "_Client":
        key = Ed25519PrivateKey.generate()
        certificate = sign(enrolment, "cert", trust.federation.encode(), key.public_key().public_bytes_raw())
        return cls(Party(Identity(key, certificate), trust, Floor(), _Forgetful()))

    @property
    def client_id(self) -> str:
        return self.session.advertisement.client_id.hex()

    def advertise(self, parameters: SessionParameters, offer: bytes) -> bytes:
        self.session = ClientSession(parameters, pb.SessionOffer.FromString(offer), self.party)
        self.received_bytes += len(offer)
        return self._sent(self.session.advertisement)

    def share(self, roster: bytes) -> bytes:
        self.received_bytes += len(roster)
        return self._sent(self.session.take_roster(pb.Roster.FromString(roster)))

    def deliver(self, delivery: bytes) -> None:
        self.received_bytes += len(delivery)
        self.session.take_delivery(pb.Delivery.FromString(delivery))

    def mask(self, vector: RingVector) -> None:
        self.session.mask(vector)
        self.sent_bytes += vector.nbytes

    def acknowledge(self, survivors: bytes) -> bytes:
        self.received_bytes += len(survivors)
        return self._sent(self.session.take_survivors(pb.Survivors.FromString(survivors)))

    def unmask(self, bundle: bytes) -> bytes:
        self.received_bytes += len(bundle)
        return self._sent(self.session.take_acks(pb.AckBundle.FromString(bundle)))

    def _sent(self, message: Message) -> bytes:
        content = message.SerializeToString()
        self.sent_bytes += len(content)
        return content


@dataclass(slots=True)
class _Play:
    case: Case
    parameters: SessionParameters
    coordinator: Remote
    clients: list[_Client]
    watch: Stopwatch = field(default_factory=Stopwatch)

    def run(self) -> SessionResult:
        self._share()
        survivors = self.clients[self.case.gone_count :]
        expected = self._upload(survivors)
        self._unmask(survivors)
        report = self.coordinator.report()
        if report.total_sha256 != hashlib.sha256(expected.data).digest():
            raise RuntimeError(f"Secure aggregation: the sum of {self.case} must be that of its vectors, got another.")
        return SessionResult(
            self.watch.medians,
            report.seconds,
            round(statistics.median(client.sent_bytes for client in survivors)),
            round(statistics.median(client.received_bytes for client in survivors)),
            report.peak_bytes,
        )

    def _share(self) -> None:
        """Everything until all have what they need to mask."""
        offer = self.coordinator.call("offer")
        for client in self.clients:
            message = self.watch.time("advertise", client.advertise, self.parameters, offer)
            self.coordinator.call("advertise", client.client_id, message)
        roster = self.coordinator.call("roster")
        for client in self.clients:
            message = self.watch.time("roster and shares", client.share, roster)
            self.coordinator.call("share", client.client_id, message)
        deliveries = self.coordinator.call("deliveries")
        for client in self.clients:
            self.watch.time("delivery", client.deliver, deliveries[client.client_id])

    def _upload(self, survivors: list[_Client]) -> RingVector:
        """Mask and upload the survivors' vectors, and return their sum, added up in the clear."""
        head = self.parameters.head
        update = np.random.default_rng(0).normal(0, 0.01, self.case.parameter_count).astype(np.float32)
        vector: RingVector = np.empty(self.parameters.size, dtype=RING_TYPES[self.parameters.spec.ring_bits])
        body: RingVector = np.empty(self.case.parameter_count, dtype=vector.dtype)
        expected: RingVector = np.zeros_like(vector)
        quantise(update, self.parameters, body)
        for number, client in enumerate(survivors):
            # Every client has a vector of its own.
            head.write(vector, WEIGHT, WEIGHT, {})
            np.add(body, vector.dtype.type(number), out=vector[head.size :])
            expected += vector
            self.watch.time("mask", client.mask, vector)
            self.coordinator.upload(client.client_id, vector)
        return expected

    def _unmask(self, survivors: list[_Client]) -> None:
        """Everything from the survivors' names to the last share."""
        named = self.coordinator.call("survivors")
        for client in survivors:
            message = self.watch.time("acknowledge", client.acknowledge, named)
            self.coordinator.call("acknowledge", client.client_id, message)
        bundles = self.coordinator.call("bundles")
        for client in survivors:
            message = self.watch.time("unmask", client.unmask, bundles[client.client_id])
            self.coordinator.call("unmask", client.client_id, message)
