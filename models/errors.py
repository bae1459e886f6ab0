"""Errors of the zoo.

ChoralError
├── LearnerError      a learner or optimizer is unknown, or its parameters break a rule
├── DataError         local data does not suit a learner, or cannot be read
└── TrainingStopped   a caller asked a running fit to stop
"""

from wire.errors import ChoralError, SpecError


class LearnerError(SpecError):
    """A learner or optimizer is unknown, or its parameters break a rule. Nothing was started."""


class DataError(ChoralError):
    """Local data does not suit the learner, or cannot be read. Nothing was changed."""


class TrainingStopped(ChoralError):
    """The caller's `report` asked a running fit to stop. The learner may be used again."""
