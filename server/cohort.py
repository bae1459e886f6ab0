"""What a round needs of its clients, wherever they are: behind gRPC sessions, or in an engine of the simulation.

Secure aggregation needs several small exchanges in a round: they are further methods of the same shape as `train` and `evaluate`, each
with an object that takes the replies and says when it is settled.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from server.aggregation import WeightedMean
from server.inbox import Ballot, Inbox
from server.model import Model
from server.signal import Signal
from wire.grid import Grid
from wire.spec import RunSpec


@dataclass(frozen=True, slots=True)
class Order:
    """What the clients of one attempt at a round are asked for."""

    run_id: str
    round_number: int
    attempt: int
    spec: RunSpec
    model: Model
    cohort_size: int

    @property
    def enough(self) -> int:
        """Contributions that close the round at once."""
        return min(self.spec.cohort.size or self.cohort_size, self.cohort_size)

    @property
    def grid(self) -> Grid:
        """The grid that contributions are rounded to."""
        limits = self.spec.limits
        return Grid(limits.coordinate_bound, limits.weight_cap, self.cohort_size)


@dataclass(frozen=True, slots=True)
class Member:
    """A client as selection sees it.

    Attributes:
        client_id: Its identity.
        name: Its name for people.
        is_present: Whether it can be asked now.
        absent_since: When it was last present, on the loop's clock; meaningless while present.
        claimed_by: The run that it works for in this moment, or empty.
        learners: Learners that it can and may run; None for all.
    """

    client_id: str
    name: str
    is_present: bool
    absent_since: float
    claimed_by: str = ""
    learners: frozenset[str] | None = None


class Cohort(Protocol):
    """The clients of a federation."""

    @property
    def changed(self) -> Signal:
        """Notified when `members` may have changed."""

    def members(self) -> Sequence[Member]:
        """Return every client that is present or was so lately, by identity."""

    def member(self, client_id: str) -> Member | None:
        """Return one client as `members` would, or None when it is not among them."""

    def claim(self, client_ids: Sequence[str], run_id: str) -> contextlib.AbstractContextManager[None]:
        """Keep clients for one run while the context is open; another run does not select them."""

    def empty_sum(self, grid: Grid, size: int) -> WeightedMean:
        """Return an empty sum of contributions with `size` coordinates, where this cohort's contributions lie."""
        return WeightedMean(grid, size)

    async def train(self, order: Order, client_ids: Sequence[str], inbox: Inbox) -> None:
        """Ask clients to train and bring their contributions to `inbox`, until each has settled there or the caller cancels."""

    async def evaluate(self, order: Order, client_ids: Sequence[str], ballot: Ballot) -> None:
        """Ask clients to evaluate `order.model` and bring the results to `ballot`, until each has settled there or the caller cancels."""
