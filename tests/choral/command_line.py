"""The command line as a caller sees it: exit code, and what it printed."""

from collections.abc import Callable
from dataclasses import dataclass

WIDTH = 80


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.out.splitlines()]


Choral = Callable[..., Outcome]
"""Runs the command line with the given arguments."""


def sentence(outcome: Outcome) -> str:
    """Check that a command failed with one line on stderr, and return it without its first word."""
    assert outcome.code == 1
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    assert outcome.err.startswith("Error: ")
    assert outcome.err.count("\n") == 1
    return outcome.err.removeprefix("Error: ").strip()
