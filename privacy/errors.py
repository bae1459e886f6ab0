"""Errors of the privacy package.

ChoralError
├── EnrolmentError           an enrolment file or key cannot be used
├── IdentityError            a key file cannot be read or written
└── SecureAggregationError   secure aggregation cannot be done as it is asked for
"""

from wire.errors import ChoralError


class EnrolmentError(ChoralError):
    """An enrolment file or key cannot be used. Nothing was changed."""


class IdentityError(ChoralError):
    """A key file cannot be read or written. Nothing was changed."""


class SecureAggregationError(ChoralError):
    """Secure aggregation cannot be done as it is asked for. Nothing was sent."""
