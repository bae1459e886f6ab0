"""Errors of the parts that both sides share.

ChoralError
├── SpecError       a run spec breaks a rule
│   └── LearnerError    a learner or optimizer is unknown, or its parameters break a rule
├── LayoutError     a vector or state does not have the agreed layout
└── TransferError   a sliced transfer broke its rules

Every other package's tree starts from `ChoralError` too, so that a caller can catch what Choral raises on purpose.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Finding(NamedTuple):
    """What is wrong with one part of a document: its key, such as "cohort.size", or nothing for the whole, and a sentence."""

    path: str
    message: str


class ChoralError(Exception):
    """A problem that its message explains in one sentence to the person who can mend it."""


class SpecError(ChoralError):
    """A run spec has an unknown key, a wrong type or an impossible combination. Nothing was started.

    Attributes:
        findings: What is wrong where.
    """

    def __init__(self, message: str, path: str = "", findings: Sequence[Finding] = ()) -> None:
        super().__init__(message)
        self.findings = tuple(findings) or (Finding(path, message),)


class LearnerError(SpecError):
    """A learner or optimizer is unknown, or its parameters break a rule. Nothing was started."""


class LayoutError(ChoralError):
    """A state or vector does not have the layout that was agreed. Nothing was changed."""


class TransferError(ChoralError):
    """A slice came out of order, went past the end, or the whole has another SHA-256 than announced."""
