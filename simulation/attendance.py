"""Who of a population is there, kept from one look to the next: a look costs what has changed since, not what there is."""

import heapq
import math
from collections.abc import Mapping, Sequence

from server.cohort import Member
from simulation.population import Population


class Attendance:
    """The clients of a population at a moment that only moves on."""

    def __init__(self, population: Population, client_ids: Sequence[str]) -> None:
        self._population = population
        self._present = [Member(client_id, client_id, is_present=True, absent_since=0.0) for client_id in client_ids]
        self._places = {client_id: place for place, client_id in enumerate(client_ids)}
        self._members = list(self._present)
        self._turns = [(-math.inf, place) for place in range(len(client_ids))]

    def members(self, now: float, fallen_out: Mapping[str, float]) -> list[Member]:
        """Return all clients, in their order.

        Args:
            now: Seconds since the run's start, not before those of the last look.
            fallen_out: When clients have fallen out, or will.
        """
        self._catch_up(now)
        members = list(self._members)
        for client_id in fallen_out:
            members[self._places[client_id]] = self.member(client_id, now, fallen_out)
        return members

    def member(self, client_id: str, now: float, fallen_out: Mapping[str, float]) -> Member:
        """Return one client; arguments as of `members`."""
        presence = self._population.presence(client_id, now)
        fell = fallen_out.get(client_id, math.inf)
        if presence.is_present and now < fell:
            return self._present[self._places[client_id]]
        since = fell if presence.is_present else min(fell, presence.since)
        return Member(client_id, client_id, is_present=False, absent_since=since)

    def next_turn(self, now: float) -> float:
        """Return when the next client comes or goes by itself; infinite if none does."""
        self._catch_up(now)
        return self._turns[0][0] if self._turns else math.inf

    def _catch_up(self, now: float) -> None:
        while self._turns and self._turns[0][0] <= now:
            _, place = heapq.heappop(self._turns)
            client_id = self._present[place].client_id
            self._members[place] = self.member(client_id, now, {})
            until = self._population.presence(client_id, now).until
            if until < math.inf:
                heapq.heappush(self._turns, (until, place))
