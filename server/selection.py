"""Who takes part in a round: a seeded ranking of the clients, the same before and after a restart (law L8).

Each client's rank in a round depends on nothing but seed, round and identity, so one that comes or goes does not move the others.

Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates", IEEE/ACM Transactions on Networking 6(1), 1998
(rendezvous hashing). https://doi.org/10.1109/90.663936
"""

import heapq
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from server.cohort import Member
from wire.seeds import client_seeds
from wire.spec import RunSpec


@dataclass(frozen=True, slots=True)
class Choice:
    """What selection makes of the clients as they are now.

    Attributes:
        client_ids: The clients to ask, best rank first; some may be absent for a moment.
        want: Clients that the round needs.
        absent: Those of `client_ids` that are expected back.
        back_by: When the first of `absent` is given up, on the clock of `now`; infinite when none is absent.
    """

    client_ids: tuple[str, ...]
    want: int
    absent: frozenset[str]
    back_by: float

    @property
    def is_ready(self) -> bool:
        """Whether enough clients are chosen and all of them are present."""
        return len(self.client_ids) >= self.want and not self.absent

    @property
    def present(self) -> tuple[str, ...]:
        """The chosen clients that can be asked at once."""
        return tuple(client_id for client_id in self.client_ids if client_id not in self.absent)


def choose(
    members: Sequence[Member], spec: RunSpec, round_number: int, now: float, last_choice: Collection[str] = ()
) -> Choice:
    """Choose the clients of a round.

    Args:
        members: Free clients, and those that left lately; others are passed over.
        spec: The run's spec; its cohort says how many.
        round_number: 1 or more.
        now: Seconds on the clock of `Member.absent_since`.
        last_choice: Clients to ask only when no others are left, because they were refused in an earlier attempt.
    """
    cohort = spec.cohort
    candidates = [
        member
        for member in members
        if not member.claimed_by
        and (member.learners is None or spec.learner.name in member.learners)
        and (member.is_present or now < member.absent_since + cohort.return_seconds)
    ]
    size = cohort.size or math.ceil((cohort.fraction or 1.0) * len(candidates))
    want = max(1, size, cohort.fewest if cohort.size is None else 0)
    seed_of = client_seeds(spec.seed, "select", round_number)
    chosen = heapq.nsmallest(
        max(want, math.ceil(size * cohort.over_selection)),
        candidates,
        key=lambda member: (member.client_id in last_choice, seed_of(member.client_id)),
    )
    absent = [member for member in chosen if not member.is_present]
    return Choice(
        tuple(member.client_id for member in chosen),
        want,
        frozenset(member.client_id for member in absent),
        min((member.absent_since + cohort.return_seconds for member in absent), default=math.inf),
    )
