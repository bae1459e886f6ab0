"""What API replicas and the coordinator write to each other: commands, answers, and pictures of what goes on."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Self

from server.errors import ConflictError, NotFoundError, StoreError
from server.monitoring.diary import Entry
from server.monitoring.now import Now
from server.records import Record, RunRecord
from wire.errors import ChoralError, Finding, LearnerError, SpecError
from wire.spec import RunSpec

KINDS: dict[str, type[ChoralError]] = {
    kind.__name__: kind for kind in (ConflictError, LearnerError, NotFoundError, SpecError, StoreError)
}
"""Errors that arrive as what they were; another arrives as `ChoralError`."""


class Verb(StrEnum):
    """What a coordinator can be told to do."""

    SUBMIT = "submit"
    PAUSE = "pause"
    RESUME = "resume"
    STOP = "stop"


class Command(Record):
    """What the coordinator is told to do: to submit a spec, or something with a run."""

    verb: Verb
    run_id: str = ""
    spec: RunSpec | None = None


class Failure(Record):
    """Why a command was not carried out."""

    kind: str
    """Name of the error; empty for one that nobody expected."""
    message: str
    findings: list[Finding] = []

    @classmethod
    def of(cls, error: Exception) -> Self:
        """Write an error down."""
        if not isinstance(error, ChoralError):
            return cls(kind="", message=f"Unexpected {type(error).__name__} in the coordinator.")
        findings = list(error.findings) if isinstance(error, SpecError) else []
        return cls(kind=type(error).__name__, message=str(error), findings=findings)

    def error(self) -> Exception:
        """Return the error that was written down."""
        if not self.kind:
            return RuntimeError(self.message)
        kind = KINDS.get(self.kind, ChoralError)
        return kind(self.message, findings=self.findings) if issubclass(kind, SpecError) else kind(self.message)


class Answer(Record):
    """What became of a command: the run, or why there is none."""

    run: RunRecord | None = None
    failure: Failure | None = None


class Picture(Record):
    """What goes on in the coordinator at a moment."""

    now: Now
    diaries: Mapping[str, Mapping[str, Entry]]
    """What the clients of each open round have done so far, by run and client."""
