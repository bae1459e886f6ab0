"""What one session of secure aggregation is about: parameters that every party computes for itself and signs by their hash.

Source: CSA-1 (docs/secure-aggregation.md), section "Encodings". Binding the masks to the model: Pasquini, Francati and Ateniese, "Eluding
Secure Aggregation in Federated Learning via Model Inconsistency", CCS 2022. https://eprint.iacr.org/2021/1512
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from privacy.errors import SecureAggregationError
from privacy.secagg.head import Head
from privacy.secagg.hybrid import MOST_MEMBERS
from privacy.secagg.labels import hashed, prefixed, u32, u64
from privacy.secagg.parameters import Parameters, parameters_for
from wire.grid import Grid
from wire.secure import SecureAggregationSpec
from wire.spec import RunSpec

SUITES: Mapping[str, int] = {"x25519": 1, "x25519_mlkem768": 2}
"""By the agreement on keys: X25519, alone or beside ML-KEM-768; Ed25519, HKDF-SHA256, AES-256-GCM, and AES-256-CTR."""

CHACHA20 = 0x80
"""Added to the suite's number where ChaCha20 makes the masks."""

AUDIT = 0x40
"""Added to the suite's number where clients sign their masked vectors."""


@dataclass(frozen=True, slots=True)
class Purpose:
    """What a session's vectors are.

    Attributes:
        federation: The federation's name.
        task: The run, and what its clients do.
        round_number: 1 or more.
        attempt: Sessions that this round has had before.
        client_count: Most members.
        body_size: Coordinates behind the head; 0 where only numbers of evaluation are summed.
        model_digest: See `digest_of`.
        quorum: Fewest members that the run spec lets the round close with; 0 for any number.
    """

    federation: str
    task: str
    round_number: int
    attempt: int
    client_count: int
    body_size: int
    model_digest: bytes
    quorum: int = 0


@dataclass(frozen=True, slots=True)
class SessionParameters:
    """Everything that the parties of a session agree on."""

    purpose: Purpose
    spec: SecureAggregationSpec

    @property
    def grid(self) -> Grid:
        """The grid that contributions are rounded to."""
        return grid_of(self.spec, self.purpose.client_count)

    @property
    def head(self) -> Head:
        """How weight, examples and metrics stand before the coordinates."""
        return Head(self.spec.ring_bits, self.purpose.client_count, self.spec.weight_cap, tuple(self.spec.metrics))

    @property
    def size(self) -> int:
        """Elements of the vectors: head and body."""
        return self.head.size + self.purpose.body_size

    @property
    def is_hybrid(self) -> bool:
        """Whether keys are agreed with ML-KEM-768 too."""
        return self.spec.key_agreement == "x25519_mlkem768"

    @property
    def suite(self) -> int:
        """The suite's number, with what was added to it."""
        cipher = CHACHA20 if self.spec.cipher == "chacha20" else 0
        return SUITES[self.spec.key_agreement] | cipher | (AUDIT if self.spec.audit else 0)

    @property
    def byte_count(self) -> int:
        """Length of a vector on the wire."""
        return self.size * self.spec.ring_bits // 8

    def graph(self, member_count: int) -> Parameters:
        """Return degree, threshold and bounds for so many members. Raises `SecureAggregationError` where there are none."""
        return parameters_for(member_count, self.spec.corrupt_ppm, self.spec.dropout_ppm)

    def fewest(self, graph: Parameters, minimum_cohort: int) -> int:
        """Return the fewest members that a roster, and a sum, must have; `minimum_cohort` of them honest."""
        return max(graph.fewest_survivors(minimum_cohort), self.purpose.quorum)

    def canon(self) -> bytes:
        """Return the parameters as the bytes that are signed.

        Raises:
            SecureAggregationError: There is no session with such parameters.
        """
        graph = self.graph(self.purpose.client_count)
        if problem := self.head.problem:
            raise SecureAggregationError(f"Secure aggregation: {problem}.")
        if problem := size_problem(self.spec, self.purpose.client_count):
            raise SecureAggregationError(f"Secure aggregation: {problem}.")
        spec, bound = self.spec, struct.pack("<d", self.spec.coordinate_bound)
        exponent = struct.pack("<i", self.grid.exponent)
        rest = [
            u32(spec.dropout_ppm),
            u32(self.purpose.client_count),
            u32(self.purpose.quorum),
            bound,
            exponent,
            bytes([self.suite]),
        ]
        metrics = [prefixed(name.encode()) for name in spec.metrics]
        return b"".join([self.base(graph), *rest, u32(len(metrics)), *metrics])

    def base(self, graph: Parameters) -> bytes:
        """Return the part of the parameters that every implementation of CSA-1 has."""
        purpose, spec = self.purpose, self.spec
        return b"".join(
            [
                prefixed(purpose.federation.encode()),
                prefixed(purpose.task.encode()),
                u64(purpose.round_number),
                u32(purpose.attempt),
                bytes([spec.ring_bits]),
                u64(self.size),
                u64(spec.weight_cap),
                u32(spec.minimum_cohort),
                u32(spec.corrupt_ppm),
                u32(graph.degree),
                u32(graph.threshold),
                prefixed(purpose.model_digest),
            ]
        )

    def session_id(self, nonce: bytes) -> bytes:
        """Return the session's id, 32 bytes, from its parameters and the coordinator's nonce."""
        return session_id_of(self.canon(), nonce)


def size_problem(spec: SecureAggregationSpec, client_count: int) -> str:
    """Return why so many clients are too many for the messages of a session, or nothing."""
    if spec.key_agreement == "x25519_mlkem768" and client_count > MOST_MEMBERS:
        return f"with key_agreement x25519_mlkem768 clients must be at most {MOST_MEMBERS}, got {client_count}"
    return ""


def session_id_of(canon: bytes, nonce: bytes) -> bytes:
    """Return H("session", parameters, nonce)."""
    return hashed("session", canon, nonce)


def digest_of(model_sha256: bytes, layout_sha256: bytes, spec: RunSpec) -> bytes:
    """Return what binds a session to the model that its clients hold and to the whole run spec, 32 bytes."""
    # How simulated clients behave is nothing to real ones.
    plain = spec.model_copy(update={"simulation": None})
    return hashed("model", model_sha256, layout_sha256, plain.canonical_json().encode())


def grid_of(spec: SecureAggregationSpec, client_count: int) -> Grid:
    """Return the grid of a round in which so many clients are asked."""
    return Grid(spec.coordinate_bound, spec.weight_cap, client_count, spec.ring_bits, is_clipping=True)
