"""Who takes part in a round: a seeded ranking of the clients, the same before and after a restart (law L8).

Each client's rank in a round depends on nothing but seed, round and identity, so one that comes or goes does not move the others. An
identity is hashed once; a round's two keys are mixed into all of them in one go, so that thousands of clients cost a round next to nothing.

Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates", IEEE/ACM Transactions on Networking 6(1), 1998
(rendezvous hashing). https://doi.org/10.1109/90.663936; Appleby, "MurmurHash3", 2011 (the mixing, fmix64).
https://github.com/aappleby/smhasher/wiki/MurmurHash3
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from server.cohort import Member
from wire.seeds import derive_seed
from wire.spec import RunSpec


@dataclass(frozen=True, slots=True)
class Choice:
    """What selection makes of the clients as they are now.

    Attributes:
        client_ids: The clients to ask, best rank first; some may be absent for a moment.
        want: Clients that the round needs.
        absent: Those of `client_ids` that are expected back.
        back_by: When the first of `absent` is given up, on the clock of `now`; infinite when none is absent.
        has_others: Whether there would be enough clients without those that are expected back.
    """

    client_ids: tuple[str, ...]
    want: int
    absent: frozenset[str]
    back_by: float
    has_others: bool

    @property
    def is_ready(self) -> bool:
        """Whether enough of the chosen clients are present: of more than the round needs, some may be absent."""
        return len(self.client_ids) - len(self.absent) >= self.want

    @property
    def present(self) -> tuple[str, ...]:
        """The chosen clients that can be asked at once."""
        return tuple(client_id for client_id in self.client_ids if client_id not in self.absent)


def ranks_of(client_ids: Sequence[str], seed: int, round_number: int) -> npt.NDArray[np.uint64]:
    """Return the rank of each client in a round, lowest first, uint64 (clients,).

    Args:
        client_ids: Their identities, in any order.
        seed: The run's.
        round_number: 1 or more.
    """
    ranks = np.fromiter(map(_hash, client_ids), np.uint64, len(client_ids))
    for purpose in ("select", "select again"):
        ranks = _mixed(ranks ^ np.uint64(derive_seed(seed, purpose, round_number)))
    return ranks


@lru_cache(maxsize=1 << 17)
def _hash(client_id: str) -> int:
    return derive_seed(0, "rank", client_id=client_id)


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return values, each bit of which depends on all bits of one of these, and no two of which are the same."""
    shift = np.uint64(33)
    values = (values ^ (values >> shift)) * np.uint64(0xFF51AFD7ED558CCD)
    values = (values ^ (values >> shift)) * np.uint64(0xC4CEB9FE1A85EC53)
    return values ^ (values >> shift)


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
    ranks = ranks_of([member.client_id for member in candidates], spec.seed, round_number)
    was_refused = np.fromiter((member.client_id in last_choice for member in candidates), bool, len(candidates))
    order = np.lexsort((ranks, was_refused))[: max(want, math.ceil(size * cohort.over_selection))]
    chosen = [candidates[place] for place in order]
    absent = [member for member in chosen if not member.is_present]
    return Choice(
        tuple(member.client_id for member in chosen),
        want,
        frozenset(member.client_id for member in absent),
        min((member.absent_since + cohort.return_seconds for member in absent), default=math.inf),
        sum(member.is_present for member in candidates) >= (cohort.size or cohort.fewest),
    )
