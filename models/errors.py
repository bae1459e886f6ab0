"""Errors of the zoo.

ChoralError
├── DataError         local data does not suit a learner, or cannot be read
└── TrainingStopped   a caller asked a running fit to stop

`LearnerError` is in `wire/errors.py`, because a process without the zoo hears of it too.
"""

from wire.errors import ChoralError


class DataError(ChoralError):
    """Local data does not suit the learner, or cannot be read. Nothing was changed.

    Attributes:
        rule: The rule that the data breaks, without a word of the data: all that may leave the site. Empty if there is none to tell.
    """

    def __init__(self, message: str, rule: str = "") -> None:
        super().__init__(message)
        self.rule = rule


def unsuited(rule: str, found: str, advice: str = "") -> DataError:
    """Return the error for data that breaks a rule: `rule` may leave the site, what was `found` stays."""
    return DataError(f"{rule}, got {found}. {advice}".rstrip(), rule)


class TrainingStopped(ChoralError):
    """The caller's `report` asked a running fit to stop. The learner may be used again."""
