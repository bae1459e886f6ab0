"""What the committed rounds of a run were like, in numbers: from their summaries, and from rounds of earlier releases, which have none."""

import asyncio
from collections.abc import Sequence

from server.records import Participation, RoundRecord, RoundState, RoundSummary, RunRecord
from server.store import Store
from server.tallies import summarized, tallied

PIECE_ROUNDS = 8
"""Rounds that are read at a time: each may hold a thousand contributions."""


LATEST_ROUNDS = 24
"""Rounds that are read to tell how a client fared of late."""


async def summaries(store: Store, run: RunRecord, after: int, limit: int) -> Sequence[RoundSummary]:
    """Return the summaries of up to `limit` committed rounds from number `after` + 1 on, ascending."""
    stored = await store.summaries(run.run_id, after, limit)
    expected = range(after + 1, min(after + limit, run.round_number) + 1)
    if len(stored) >= len(expected):
        return stored
    found = {summary.number: summary for summary in stored}
    for page in _pages([number for number in expected if number not in found]):
        for record in await _read(store, run, page):
            found[record.number] = await asyncio.to_thread(summarized, record)
    return [found[number] for number in sorted(found)]


async def participations(store: Store, run: RunRecord) -> Sequence[Participation]:
    """Return what the clients of a run have done, by identity."""
    tallies = {found.client_id: found for found in await store.participations(run.run_id)}
    # Ten thousand numbers take their time to read, and only rounds of earlier releases are missing among them.
    if await store.summary_count(run.run_id) >= run.round_number:
        return [tallies[client_id] for client_id in sorted(tallies)]
    counted = await store.summarized_numbers(run.run_id)
    for page in _pages([number for number in range(1, run.round_number + 1) if number not in counted]):
        for record in await _read(store, run, page):
            tallies |= await asyncio.to_thread(tallied, record, tallies)
    return [tallies[client_id] for client_id in sorted(tallies)]


def _pages(numbers: Sequence[int]) -> Sequence[range]:
    """Return runs of successive numbers, none longer than a piece."""
    pages: list[range] = []
    for number in numbers:
        if pages and pages[-1].stop == number and len(pages[-1]) < PIECE_ROUNDS:
            pages[-1] = range(pages[-1].start, number + 1)
        else:
            pages.append(range(number, number + 1))
    return pages


async def _read(store: Store, run: RunRecord, numbers: range) -> Sequence[RoundRecord]:
    records = await store.rounds(run.run_id, numbers.start - 1, len(numbers))
    return [record for record in records if record.number in numbers and record.state is RoundState.COMMITTED]


async def latest_rounds(store: Store, runs: Sequence[Participation]) -> Sequence[RoundRecord]:
    """Return the last committed rounds up to those that asked a client last, newest first; few, as each may be large.

    `runs` is what the client has done, by run, newest first.
    """
    found: list[RoundRecord] = []
    for one in runs:
        last = one.last_round
        while last > 0 and len(found) < LATEST_ROUNDS:
            count = min(PIECE_ROUNDS, last, LATEST_ROUNDS - len(found))
            page = await store.rounds(one.run_id, last - count, count)
            found += [record for record in reversed(page) if record.state is RoundState.COMMITTED]
            last -= count
    return found
