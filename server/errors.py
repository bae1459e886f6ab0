"""Errors of the coordinator.

ChoralError
├── NotFoundError        a run, round or model does not exist
├── ConflictError        the state of a run does not allow what was asked
├── StoreError           the store cannot be reached or holds something unreadable
├── TokenError           a bearer token cannot be made so, or lets nobody in
├── LeaseTakenError      another coordinator serves this store
├── BusyError            as much is going on already as can
├── AwayError            no coordinator answers
├── ConfigurationError   the coordinator cannot be started as it is configured
├── ContributionRefused  a contribution does not enter the sum
└── QuorumError          a round could not reach its quorum
"""

from wire.errors import ChoralError
from wire.federation_pb2 import RefusalReason


class NotFoundError(ChoralError):
    """A run, round or model does not exist. Nothing was changed."""


class ConflictError(ChoralError):
    """The state of a run does not allow what was asked. Nothing was changed."""


class StoreError(ChoralError):
    """The store cannot be reached or holds something unreadable. The last transaction did not take place."""


class TokenError(ChoralError):
    """A bearer token cannot be made so, or lets nobody in. Nothing was changed."""


class LeaseTakenError(ChoralError):
    """Another coordinator serves this store. Nothing was changed."""


class BusyError(ChoralError):
    """As much is going on already as can. Nothing was changed."""


class AwayError(ChoralError):
    """No coordinator answers. The message says whether anything may have been changed."""


class ConfigurationError(ChoralError):
    """The coordinator cannot be started as it is configured. Nothing was started."""


class ContributionRefused(ChoralError):
    """A contribution does not enter the sum, which is unchanged. `reason` is a RefusalReason."""

    def __init__(self, reason: RefusalReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class QuorumError(ChoralError):
    """A round could not reach its quorum. Its run pauses with this message: the problem, and what to do about it."""

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(f"{problem} {advice}")
        self.problem = problem


NO_ANSWER = "no_answer"
"""Stands with the names of reasons: a client that was asked has said nothing."""


def reason_name(reason: RefusalReason) -> str:
    """Return the name of a reason as records and metrics have it, such as "not_finite"."""
    return RefusalReason.Name(reason).removeprefix("REFUSAL_REASON_").lower()


def reason_words(name: str) -> str:
    """Return the name of a reason as sentences have it, such as "not finite"."""
    return name.replace("_", " ")
