"""What a round needs of its clients, wherever they are: behind gRPC sessions, or in an engine of the simulation."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from privacy.secagg.coordinator import CoordinatorSession
from privacy.secagg.session import grid_of
from server.aggregation import WeightedMean
from server.inbox import Ballot, Inbox
from server.masking.replies import Replies
from server.model import Model
from server.records import Moments
from server.signal import Signal
from wire import federation_pb2 as pb
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
        if self.spec.secure is not None:
            return grid_of(self.spec.secure, self.cohort_size)
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


Kind = Literal["train", "evaluate"]
"""What clients do before a session of secure aggregation sums what they found."""


class Exchange(Protocol):
    """The exchanges of one session of secure aggregation with its clients. Each ends when every client has settled, or by cancellation."""

    async def offer(self, client_ids: Sequence[str], replies: Replies) -> None:
        """Ask clients to train or evaluate, and to advertise when they are ready."""

    async def ask(self, messages: Mapping[str, pb.JoinResponse], replies: Replies) -> None:
        """Send each client a message, and bring its reply to `replies`."""

    async def collect(self, messages: Mapping[str, pb.JoinResponse], inbox: Inbox) -> None:
        """Send each client a message, and bring the masked vector that it answers with to `inbox`."""


class Cohort(Protocol):
    """The clients of a federation.

    Attributes:
        speaks_secagg: Whether clients take part in secure aggregation. Where they do not, in a simulation, contributions are summed in
            the clear on the same grid, which gives the same model.
    """

    speaks_secagg: bool = False

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

    async def draw(self, run_id: str, spec: RunSpec, client_id: str, inbox: Inbox) -> None:
        """Ask a client to draw a run's first model and bring it to `inbox`, until it has settled there or the caller cancels."""
        raise TypeError(f"{type(self).__name__} must draw first models, it does not.")

    def moments(self, run_id: str) -> dict[str, Moments]:
        """Return when the clients of a run's open round did what; nothing in a simulation, where they work one after the other."""
        return {}

    def identity_of(self, client_id: str) -> str:
        """Return the identity that follows from a client's key, 32 hexadecimal digits: its name here, where clients have keys."""
        return client_id

    def session(
        self, order: Order, kind: Kind, session: CoordinatorSession, client_ids: Sequence[str]
    ) -> contextlib.AbstractContextManager[Exchange]:
        """Hold a session of secure aggregation with clients while the context is open; at its end they are told that it is over."""
        raise TypeError(f"{type(self).__name__} must speak secure aggregation, it does not.")
