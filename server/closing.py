"""When a round, or an exchange in it, stops waiting: enough are in, nobody is left, the quorum is in and the rest gone, or it is late."""

import asyncio
from dataclasses import dataclass
from typing import Protocol

from server.cohort import Cohort
from wire.spec import CohortSpec


class Settling(Protocol):
    """Something that clients settle in, one by one."""

    @property
    def count(self) -> int:
        """Clients that have brought what was asked for."""

    @property
    def unsettled(self) -> frozenset[str]:
        """Clients that are still waited for."""


@dataclass(frozen=True, slots=True)
class Until:
    """How long is waited.

    Attributes:
        enough: Clients that end the wait at once.
        fewest: The quorum: with it, clients that have dropped off are waited for no longer than `return_seconds`.
        seconds: Longest wait.
        is_needed: Whether the wait ends as soon as the quorum cannot come about.
    """

    enough: int
    fewest: int
    seconds: float
    is_needed: bool = True


async def wait_until(replies: Settling, until: Until, cohort: Cohort, rules: CohortSpec) -> None:
    """Wait for clients of a cohort to settle."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + until.seconds
    while True:
        unsettled = replies.unsettled
        is_possible = not until.is_needed or replies.count + len(unsettled) >= until.fewest
        if replies.count >= until.enough or not unsettled or not is_possible:
            return
        close_at = deadline
        if replies.count >= until.fewest:
            close_at = min(deadline, _back_by(unsettled, cohort, rules.return_seconds))
        if (seconds := close_at - loop.time()) <= 0:
            return
        await cohort.changed.wait(seconds)


def _back_by(client_ids: frozenset[str], cohort: Cohort, return_seconds: float) -> float:
    """Return when the last of these clients is given up if none comes back; infinite while one of them is present."""
    back_by = 0.0
    for client_id in client_ids:
        member = cohort.member(client_id)
        if member is not None and member.is_present:
            return float("inf")
        if member is not None:
            back_by = max(back_by, member.absent_since + return_seconds)
    return back_by
