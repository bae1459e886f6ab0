"""Errors of the privacy package.

ChoralError
├── CertificateError           a certificate cannot be made as it is asked for
├── EnrolmentError             an enrolment file or key cannot be used
├── IdentityError              a key file cannot be read or written
└── SecureAggregationError     secure aggregation cannot be done as it is asked for
    ├── SessionAbortedError    a session cannot go on for one party
    └── MemberExcludedError    a session goes on without one client
"""

from enum import StrEnum

from google.protobuf.message import Message

from wire.errors import ChoralError


class CertificateError(ChoralError):
    """A certificate cannot be made as it is asked for."""


class EnrolmentError(ChoralError):
    """An enrolment file or key cannot be used. Nothing was changed."""


class IdentityError(ChoralError):
    """A key file cannot be read or written. Nothing was changed."""


class SecureAggregationError(ChoralError):
    """Secure aggregation cannot be done as it is asked for. Nothing was sent."""


class AbortCode(StrEnum):
    """Why a session ends for a party."""

    POLICY = "policy"
    """The parameters are below what the site asks for."""
    REPLAY = "replay"
    """A round or attempt that is earlier than one that was taken part in."""
    LOST = "lost"
    """A session whose secrets are gone, because the party was started again in it."""
    OPENED = "opened"
    """A round whose sum was opened before."""
    FORGED = "forged"
    """A message is not signed by whom it says, or names who may not take part."""
    EQUIVOCATION = "equivocation"
    """Members were told different things."""
    TOO_FEW = "too_few"
    """Not enough members are left."""
    MALFORMED = "malformed"
    """A message breaks the contract, or comes when it must not."""
    FALSE_PACKET = "false_packet"
    """A neighbour's part of a pair mask is not there or does not open."""
    BAD_SHARE = "bad_share"
    """Shares do not give what their dealer committed to."""
    CANARY = "canary"
    """The opened sum is not the sum of its members' vectors."""

    @property
    def is_alarming(self) -> bool:
        """Whether only a party that breaks the protocol brings this about, so that people should look at it."""
        return self in (AbortCode.REPLAY, AbortCode.FORGED, AbortCode.EQUIVOCATION, AbortCode.FALSE_PACKET)


class SessionAbortedError(SecureAggregationError):
    """A session cannot go on for one party, which has erased its secrets.

    Attributes:
        code: Why.
        evidence: The messages that show it.
    """

    def __init__(self, code: AbortCode, detail: str, *evidence: Message) -> None:
        super().__init__(f"Secure aggregation: {detail}.")
        self.code = code
        self.evidence = evidence


class MemberExcludedError(SecureAggregationError):
    """A session goes on without one client, whose message was not taken."""
