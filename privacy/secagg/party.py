"""What a client brings to every session of secure aggregation: who it is, whom it believes, what it asks for and must not forget."""

from dataclasses import dataclass, field
from typing import NoReturn, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.errors import AbortCode, SecureAggregationError, SessionAbortedError
from privacy.secagg.audit import SignedUpload
from privacy.secagg.labels import is_signed
from privacy.secagg.members import Problem
from privacy.secagg.session import SessionParameters
from wire import federation_pb2 as pb


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom a client believes.

    Attributes:
        federation: The federation that its certificate is for.
        coordinator_key: Ed25519, 32 bytes, pinned.
        problem_with: Tells what speaks against another client.
    """

    federation: str
    coordinator_key: bytes
    problem_with: Problem


@dataclass(frozen=True, slots=True)
class Floor:
    """The least that a site asks of a session, whatever the coordinator says.

    Attributes:
        minimum_cohort: Fewest honest clients that a sum must be of.
        corrupt_ppm: Least part of corrupt clients that must be withstood, in millionths.
        minimum_members: Fewest clients that a session must have.
    """

    minimum_cohort: int = 3
    corrupt_ppm: int = 0
    minimum_members: int = 1


class Journal(Protocol):
    """What a client must not forget, even if it is killed: written before the coordinator hears anything that follows from it."""

    def begin(self, parameters: SessionParameters) -> None:
        """Note that a session begins. Raises `SessionAbortedError` for one that is not later than every session of its task before."""

    def reveal(self, parameters: SessionParameters) -> None:
        """Note that the sum of this round is about to be opened: no other session for it may begin."""

    def note_upload(self, parameters: SessionParameters, upload: SignedUpload) -> None:
        """Note what this client has signed, for itself: in audit mode, before the coordinator gets it."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a client is: its Ed25519 key, and the enrolment key's signature over it."""

    key: Ed25519PrivateKey = field(repr=False)
    certificate: bytes

    @property
    def public_key(self) -> bytes:
        """The public key, 32 bytes."""
        return self.key.public_key().public_bytes_raw()


@dataclass(frozen=True, slots=True)
class Party:
    """What a client brings to every session: who it is, whom it believes, what its site asks for, what it must not forget."""

    identity: Identity
    trust: Trust
    floor: Floor
    journal: Journal

    def accept(self, parameters: SessionParameters, offer: pb.SessionOffer) -> bytes:
        """Return the id of a session whose offer breaks no rule.

        Raises:
            SessionAbortedError: It does.
        """
        purpose, spec = parameters.purpose, parameters.spec
        trust, floor = self.trust, self.floor

        def refuse(code: AbortCode, detail: str) -> NoReturn:
            raise SessionAbortedError(code, detail, offer)

        if purpose.federation != trust.federation:
            refuse(AbortCode.FORGED, f"federation must be {trust.federation!r}, got {purpose.federation!r}")
        try:
            canon = parameters.canon()
        except SecureAggregationError as error:
            refuse(AbortCode.POLICY, str(error).removeprefix("Secure aggregation: ").rstrip("."))
        if len(offer.nonce) != 32 or not is_signed(trust.coordinator_key, offer.signature, "offer", canon, offer.nonce):
            refuse(
                AbortCode.FORGED,
                "an offer must be signed by the coordinator for this task, run spec and the model that this client holds",
            )
        if spec.corrupt_ppm < floor.corrupt_ppm:
            refuse(
                AbortCode.POLICY,
                f"corrupt_fraction must be at least this site's {floor.corrupt_ppm / 1e6:g}, got {spec.corrupt_fraction:g}",
            )
        if spec.minimum_cohort < floor.minimum_cohort:
            refuse(
                AbortCode.POLICY,
                f"minimum_cohort must be at least this site's {floor.minimum_cohort}, got {spec.minimum_cohort}",
            )
        return parameters.session_id(offer.nonce)
