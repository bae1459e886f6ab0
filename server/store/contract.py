"""What a store does: runs, rounds, events, clients, tokens and the coordinator's lease, durable before a call returns.

SQLite is the embedded default; Redis when several processes or hosts share the state. Both pass the same contract test.
"""

from collections.abc import Sequence, Set
from typing import Protocol

from server.records import (
    ClientRecord,
    EventRecord,
    Participation,
    RoundRecord,
    RoundSummary,
    RunRecord,
    TokenRecord,
)


class Store(Protocol):
    """Durable state of a coordinator. Every method is one transaction: it takes place whole, or raises `StoreError` and did not."""

    async def put_run(self, run: RunRecord, *events: EventRecord) -> None:
        """Insert or replace a run, and append events."""

    async def run(self, run_id: str) -> RunRecord:
        """Return one run. Raises `NotFoundError`."""

    async def runs(self) -> Sequence[RunRecord]:
        """Return all runs, in the order of their submission."""

    async def put_round(self, record: RoundRecord, *events: EventRecord) -> None:
        """Insert or replace a round that is open, and append events."""

    async def commit_round(self, run: RunRecord, record: RoundRecord, *events: EventRecord) -> None:
        """Replace a run and its round and append events, in one transaction: the commit of a round.

        The round is summarized and counted for its clients in the same transaction, once: committed again, it is only replaced.
        """

    async def round(self, run_id: str, number: int) -> RoundRecord:
        """Return one round. Raises `NotFoundError`."""

    async def rounds(self, run_id: str, after: int = 0, limit: int = 1000) -> Sequence[RoundRecord]:
        """Return up to `limit` rounds with a number above `after`, ascending."""

    async def summaries(self, run_id: str, after: int = 0, limit: int = 1000) -> Sequence[RoundSummary]:
        """Return the summaries of up to `limit` rounds from number `after` + 1 on, ascending; those of earlier releases have none."""

    async def summary_count(self, run_id: str) -> int:
        """Return how many rounds have a summary."""

    async def summarized_numbers(self, run_id: str) -> Set[int]:
        """Return the numbers of the rounds that have a summary: they are those that participations count."""

    async def participations(self, run_id: str) -> Sequence[Participation]:
        """Return what the clients of one run have done, by identity."""

    async def participations_of(self, client_id: str) -> Sequence[Participation]:
        """Return what one client has done, by run in the order of their submission."""

    async def append_event(self, event: EventRecord) -> EventRecord:
        """Append an event and return it with its number."""

    async def events(
        self, run_id: str = "", after: int = 0, limit: int = 1000, is_newest_first: bool = False
    ) -> Sequence[EventRecord]:
        """Return up to `limit` events with a number above `after`, ascending or, the last of them, descending; of one run if given."""

    async def last_event_id(self) -> int:
        """Return the number of the last event; 0 if there is none."""

    async def follow(self, after: int, seconds: float) -> Sequence[EventRecord]:
        """Return some events with a number above `after`, ascending, as soon as there are any; none after `seconds`, perhaps sooner."""

    async def put_client(self, client: ClientRecord) -> None:
        """Insert or replace a client."""

    async def clients(self) -> Sequence[ClientRecord]:
        """Return all clients, by identity."""

    async def add_token(self, token: TokenRecord) -> None:
        """Insert a token. Raises `ConflictError` when there is one of that name."""

    async def tokens(self) -> Sequence[TokenRecord]:
        """Return all tokens, by name."""

    async def note_token_use(self, name: str, when: float) -> None:
        """Note when a token was last used. One that was removed meanwhile stays so."""

    async def remove_token(self, name: str) -> None:
        """Remove a token. Raises `NotFoundError`."""

    async def acquire_lease(self, holder: str, seconds: float) -> None:
        """Take or prolong the lease that makes `holder` the one coordinator of this store.

        Raises:
            LeaseTakenError: Somebody else holds it and it has not run out.
        """

    async def release_lease(self, holder: str) -> None:
        """Give the lease back, if `holder` has it."""

    async def close(self) -> None:
        """Let go of files and connections. The store must not be used afterwards."""
