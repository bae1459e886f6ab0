"""Signed uploads: what clients have signed of their masked vectors is checked before it counts, and kept with the round.

Source: CSA-1 (docs/secure-aggregation.md), section "Audit".
"""

from collections.abc import Callable, Iterable

from privacy.secagg.coordinator import CoordinatorSession
from server.cohort import Kind
from server.errors import ContributionRefused
from server.inbox import Arrival
from server.records import AuditRecord, SignedUploadRecord
from wire.federation_pb2 import RefusalReason


class Audit:
    """Checks and keeps the signatures of one session's uploads, from when its members have shared."""

    def __init__(self, kind: Kind, session: CoordinatorSession, identity_of: Callable[[str], str]) -> None:
        """Wait for uploads.

        Args:
            kind: What clients did first.
            session: The session, whose deliveries are made.
            identity_of: Tells the identity that follows from a client's key.
        """
        self._kind = kind
        self._terms = session.upload_terms
        self._public_keys = session.public_keys
        self._identity_of = identity_of
        self._uploads: dict[str, SignedUploadRecord] = {}

    def vet(self, arrival: Arrival) -> None:
        """Note what a client has signed of what arrived. Raises `ContributionRefused` when it has not signed that."""
        public_key = self._public_keys[self._identity_of(arrival.client_id)]
        if not self._terms.is_signed(public_key, arrival.sha256, arrival.signature):
            raise ContributionRefused(
                RefusalReason.REFUSAL_REASON_MALFORMED,
                f"signature must be the client's, over the masked vector with SHA-256 {arrival.sha256.hex()[:16]} in this session, "
                f"got {'another' if arrival.signature else 'none'}",
            )
        self._uploads[arrival.client_id] = SignedUploadRecord(
            client_id=arrival.client_id,
            public_key=public_key.hex(),
            sha256=arrival.sha256.hex(),
            signature=arrival.signature.hex(),
        )

    def record(self, client_ids: Iterable[str]) -> AuditRecord:
        """Return what is kept: of these clients, whose vectors are in the sum."""
        terms = self._terms
        return AuditRecord(
            kind=self._kind,
            session_id=terms.session_id.hex(),
            parameters=terms.parameters.hex(),
            nonce=terms.nonce.hex(),
            roster_hash=terms.roster_hash.hex(),
            sharers=terms.sharers.hex(),
            byte_count=terms.byte_count,
            uploads=[self._uploads[client_id] for client_id in client_ids],
        )
