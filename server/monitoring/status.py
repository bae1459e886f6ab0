"""What a run is doing now: every wait has a name, a deadline and a visible state (law L7)."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Wait:
    """Something that is waited for.

    Attributes:
        purpose: What, such as "updates".
        have: How many there are, asked anew whenever it is shown.
        want: How many end the wait.
        until_time: When the wait ends by itself, UTC seconds since the epoch; None when it does not.
    """

    purpose: str
    have: Callable[[], int]
    want: int
    until_time: float | None

    def sentence(self, now: float) -> str:
        """Return, for instance, "waiting for 3 of 10 updates, 41 s left"."""
        missing = max(0, self.want - self.have())
        text = f"waiting for {missing} of {self.want} {self.purpose}"
        return text if self.until_time is None else f"{text}, {max(0.0, self.until_time - now):.0f} s left"


class Status:
    """The phase and wait of one run. Written by the run's task alone.

    Attributes:
        round_number: Round that is played; 0 between rounds.
        committed_number: Last committed round; 0 before the first.
    """

    def __init__(self, committed_number: int = 0) -> None:
        self.round_number = 0
        self.committed_number = committed_number
        self.phase = "queued"
        self.wait: Wait | None = None

    def enter(self, phase: str, round_number: int) -> None:
        """Say what the run does from now on."""
        self.phase, self.round_number = phase, round_number

    @contextlib.contextmanager
    def waiting(self, purpose: str, have: Callable[[], int], want: int, seconds: float | None) -> Iterator[None]:
        """Show a wait while the context is open."""
        self.wait = Wait(purpose, have, want, None if seconds is None else time.time() + seconds)
        try:
            yield
        finally:
            self.wait = None

    def sentence(self) -> str:
        """Return, for instance, "round 7: train: waiting for 3 of 10 updates, 41 s left"."""
        place = f"round {self.round_number}: {self.phase}" if self.round_number else self.phase
        return f"{place}: {self.wait.sentence(time.time())}" if self.wait else place
