"""The coordinator of `benchmarks.secagg` in a process of its own, so that its memory is its own.

It does what a coordinator with one upload slot does: messages come as bytes and leave as bytes, and a masked vector comes into the slot in
chunks of 1 MiB and is added to the sum once it is whole. CPU time is that of the session, of reading and writing its messages and of the
addition; how the bytes travel does not count, because they travel without secure aggregation too.
"""

import contextlib
import hashlib
import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.secagg_result import Stopwatch
from privacy.secagg.coordinator import CoordinatorSession
from privacy.secagg.head import HeadSum
from privacy.secagg.labels import is_signed
from privacy.secagg.masks import RING_TYPES, RingVector
from privacy.secagg.session import SessionParameters
from wire import federation_pb2 as pb

CHUNK_BYTES = 1 << 20
_STOP_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Federation:
    """Whom everybody in a session believes.

    Attributes:
        name: The federation's.
        enrolment_key: Ed25519 public key, 32 bytes, that signs every client's key.
    """

    name: str
    enrolment_key: bytes

    def problem_with(self, public_key: bytes, certificate: bytes) -> str:
        """Return what speaks against a client: one check of a signature, which is not kept for the next session."""
        is_enrolled = is_signed(self.enrolment_key, certificate, "cert", self.name.encode(), public_key)
        return "" if is_enrolled else "it must be enrolled"


@dataclass(frozen=True, slots=True)
class Report:
    """What the coordinator's process measured, and what it opened.

    Attributes:
        seconds: CPU seconds by stage.
        peak_bytes: Peak resident memory over that before the session.
        total_sha256: Of the opened sum, 32 bytes.
        head: What the sum's head says.
    """

    seconds: dict[str, float]
    peak_bytes: int
    total_sha256: bytes
    head: HeadSum


class Coordinator:
    """A coordinator for one session, with the sum and one upload slot."""

    def __init__(self, parameters: SessionParameters, signing_key: bytes, federation: Federation) -> None:
        key = Ed25519PrivateKey.from_private_bytes(signing_key)
        kind = RING_TYPES[parameters.spec.ring_bits]
        self._session = CoordinatorSession(parameters, key, federation.problem_with)
        self._uploaded: list[str] = []
        self.total: RingVector = np.zeros(parameters.size, dtype=kind)
        self.slot: RingVector = np.empty(parameters.size, dtype=kind)

    def offer(self) -> bytes:
        """Return the offer."""
        return self._session.offer.SerializeToString()

    def advertise(self, client_id: str, message: bytes) -> None:
        """Take an advertisement."""
        self._session.take_advertisement(client_id, pb.Advertise.FromString(message))

    def roster(self) -> bytes:
        """Close the session to newcomers."""
        return self._session.freeze().SerializeToString()

    def share(self, client_id: str, message: bytes) -> None:
        """Take a member's shares."""
        self._session.take_shares(client_id, pb.Shares.FromString(message))

    def deliveries(self) -> dict[str, bytes]:
        """Return the delivery of each member that has shared."""
        return {client_id: message.SerializeToString() for client_id, message in self._session.deliver().items()}

    def add(self, client_id: str) -> None:
        """Add the vector in the slot."""
        self.total += self.slot
        self._uploaded.append(client_id)

    def survivors(self) -> bytes:
        """Return whose vectors are in the sum."""
        return self._session.close_sum(self._uploaded).SerializeToString()

    def acknowledge(self, client_id: str, message: bytes) -> None:
        """Take an acknowledgement."""
        self._session.take_ack(client_id, pb.SurvivorAck.FromString(message))

    def bundles(self) -> dict[str, bytes]:
        """Return the acknowledgements for each survivor."""
        return {client_id: message.SerializeToString() for client_id, message in self._session.bundles().items()}

    def unmask(self, client_id: str, message: bytes) -> None:
        """Take what opens the sum."""
        self._session.take_unmask(client_id, pb.Unmask.FromString(message))

    def open(self) -> HeadSum:
        """Open the sum."""
        return self._session.open(self.total)


@dataclass(frozen=True, slots=True)
class Remote:
    """A coordinator in another process, as the one who plays the clients sees it."""

    connection: Connection

    def call(self, name: str, *arguments: object) -> Any:
        """Call one of `Coordinator`'s methods and return what it returns."""
        self.connection.send((name, arguments))
        return self.connection.recv()

    def upload(self, client_id: str, vector: RingVector) -> None:
        """Send a masked vector into the slot and have it added."""
        self.connection.send(("add", (client_id,)))
        content = vector.data.cast("B")
        for start in range(0, len(content), CHUNK_BYTES):
            self.connection.send_bytes(content[start : start + CHUNK_BYTES])
        self.connection.recv()

    def report(self) -> Report:
        """Have the sum opened and end the process."""
        self.connection.send(None)
        report = self.connection.recv()
        assert isinstance(report, Report)
        return report


@contextlib.contextmanager
def process(parameters: SessionParameters, signing_key: bytes, federation: Federation) -> Iterator[Remote]:
    """Run a coordinator in a fresh process."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=_serve, args=(there, parameters, signing_key, federation), daemon=True)
    child.start()
    there.close()
    try:
        # An EOFError here is the end of the child, which has said why.
        yield Remote(here)
    finally:
        here.close()
        child.join(_STOP_SECONDS)
        if child.is_alive():
            child.kill()


def _serve(connection: Connection, parameters: SessionParameters, signing_key: bytes, federation: Federation) -> None:
    """Answer calls until there are no more, then open the sum and report."""
    watch = Stopwatch()
    # The peak of the imports is not that of the session.
    Path("/proc/self/clear_refs").write_text("5")
    baseline_bytes = _status_bytes("VmRSS")
    coordinator = watch.time("offer", Coordinator, parameters, signing_key, federation)
    while (call := connection.recv()) is not None:
        name, arguments = call
        if name == "add":
            _receive(connection, coordinator.slot.data.cast("B"))
        connection.send(watch.time(name, getattr(coordinator, name), *arguments))
    head = watch.time("open", coordinator.open)
    peak_bytes = _status_bytes("VmHWM") - baseline_bytes
    connection.send(Report(watch.totals, peak_bytes, hashlib.sha256(coordinator.total.data).digest(), head))


def _receive(connection: Connection, slot: memoryview) -> None:
    received = 0
    while received < len(slot):
        received += connection.recv_bytes_into(slot, received)


def _status_bytes(name: str) -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:")]
    return 1024 * int(line.split()[1])
