"""The contract of `server.store.contract`, against a SQLite file and a real Redis server."""

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable

import pytest

from server.errors import ConflictError, LeaseTakenError, NotFoundError
from server.records import (
    ClientRecord,
    EventRecord,
    Participation,
    RoundRecord,
    RoundState,
    RoundSummary,
    RunState,
)
from server.store import Store, open_store
from server.store.documents import from_document
from tests.server.store.conftest import Backend
from tests.server.store.samples import make_client, make_event, make_round, make_run, make_token, run_python


async def acquire_when_free(store: Store, holder: str) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                return await store.acquire_lease(holder, 60)
            except LeaseTakenError:
                continue


async def test_put_every_record_reads_back_equal(store: Store) -> None:
    run, record, client, event = make_run(), make_round(1), make_client("ana"), make_event("client_joined")
    await store.put_run(run)
    await store.put_round(record)
    await store.put_client(client)
    await store.append_event(event)
    assert await store.run("run-1") == run
    assert await store.runs() == [run]
    assert await store.round("run-1", 1) == record
    assert await store.rounds("run-1") == [record]
    assert await store.clients() == [client]
    assert await store.events() == [event.with_(event_id=1)]


async def test_put_round_nan_metric_reads_back_nan(store: Store) -> None:
    await store.put_round(make_round(1).with_(metrics={"loss": float("nan")}))
    assert str((await store.round("run-1", 1)).metrics["loss"]) == "nan"


def test_round_of_before_failed_evaluations_were_kept_is_read() -> None:
    document = make_round(1).model_dump(mode="json")
    del document["evaluation_failures"]
    assert from_document(RoundRecord, json.dumps(document)) == make_round(1)


async def test_empty_store_returns_nothing(store: Store) -> None:
    assert list(await store.runs()) == []
    assert list(await store.rounds("run-1")) == []
    assert list(await store.events()) == []
    assert list(await store.events("run-1")) == []
    assert list(await store.clients()) == []
    assert list(await store.tokens()) == []


async def test_put_again_replaces_and_keeps_the_order_of_submission(store: Store) -> None:
    for run_id in ("c", "a", "b"):
        await store.put_run(make_run(run_id))
    finished = make_run("a").with_(state=RunState.FINISHED, ended_time=9.0)
    await store.put_run(finished)
    assert await store.runs() == [make_run("c"), finished, make_run("b")]

    await store.put_round(make_round(1))
    await store.put_round(make_round(1).with_(attempt=3))
    assert await store.rounds("run-1") == [make_round(1).with_(attempt=3)]

    for client_id in ("zoe", "ana", "Ben"):
        await store.put_client(make_client(client_id))
    await store.put_client(make_client("ana", name="south"))
    expected = [make_client("Ben"), make_client("ana", name="south"), make_client("zoe")]
    assert await store.clients() == expected


async def test_missing_record_raises_not_found(store: Store) -> None:
    await store.put_round(make_round(2))
    with pytest.raises(NotFoundError, match=r"^Run 'nope': must be in the store"):
        await store.run("nope")
    with pytest.raises(NotFoundError, match=r"^Round 1 of run 'run-1': must be in the store"):
        await store.round("run-1", 1)
    with pytest.raises(NotFoundError, match=r"^Round 2 of run 'other': must be in the store"):
        await store.round("other", 2)


async def test_rounds_pages_are_ascending_and_of_one_run(store: Store) -> None:
    for number in (10, 9, 2, 1, 11):
        await store.put_round(make_round(number))
    await store.put_round(make_round(3, run_id="run-10"))
    assert [record.number for record in await store.rounds("run-1")] == [1, 2, 9, 10, 11]
    assert [record.number for record in await store.rounds("run-1", limit=2)] == [1, 2]
    assert [record.number for record in await store.rounds("run-1", after=2, limit=2)] == [9, 10]
    assert [record.number for record in await store.rounds("run-1", after=3)] == [9, 10, 11]
    assert list(await store.rounds("run-1", after=11)) == []
    assert list(await store.rounds("run-1", limit=0)) == []


async def test_commit_summarizes_the_round_and_counts_it_for_its_clients_once(store: Store) -> None:
    await store.put_run(make_run("run-2"))
    await store.commit_round(make_run(), make_round(1, state=RoundState.COMMITTED))
    # Committed again, as after a lost connection, it is not counted again.
    await store.commit_round(make_run(), make_round(1, state=RoundState.COMMITTED))
    await store.commit_round(make_run(), make_round(3, state=RoundState.COMMITTED).with_(selected=["ben"]))
    await store.commit_round(make_run("run-2"), make_round(2, "run-2", state=RoundState.COMMITTED))
    await store.put_round(make_round(4))

    (first, third) = await store.summaries("run-1")
    assert first == RoundSummary(
        number=1,
        attempt=2,
        started_time=1720000000.123456,
        ended_time=None,
        selected=2,
        contributed=1,
        refused={"not_finite": 1},
        bytes=1 << 40,
        phase_seconds={"train": 1.25},
        metrics={"accuracy": 1 / 3, "train_loss": float("-inf")},
        spread={"train_loss": [float("inf")] * 5},
    )
    assert (third.number, third.selected) == (3, 1)
    assert await store.summaries("run-1", after=1, limit=1) == []
    assert await store.summaries("run-1", after=1, limit=2) == [third]
    assert await store.summaries("run-1", limit=0) == []
    assert await store.summarized_numbers("run-1") == {1, 3}
    assert await store.summary_count("run-1") == 2
    assert [await store.summary_count(run_id) for run_id in ("run-2", "run-3")] == [1, 0]

    seconds = 0.1 + 0.2
    ana = Participation(
        run_id="run-1",
        client_id="ana",
        asked=1,
        contributed=2,
        bytes=2 << 40,
        train_seconds=seconds + seconds,
        last_round=1,
    )
    ben = Participation(run_id="run-1", client_id="ben", asked=2, refused={"not_finite": 2}, last_round=3)
    assert await store.participations("run-1") == [ana, ben]
    of_another_run = ben.with_(run_id="run-2", asked=1, refused={"not_finite": 1}, last_round=2)
    assert await store.participations_of("ben") == [of_another_run, ben]
    assert await store.participations("nope") == []
    assert await store.participations_of("nope") == []


async def test_events_are_numbered_across_runs_paged_and_filtered(store: Store) -> None:
    await store.put_run(make_run("run-1"), make_event("run_submitted"), make_event("run_started"))
    await store.put_round(make_round(1, run_id="run-2"), make_event("round_started", run_id="run-2"))
    joined = await store.append_event(make_event("client_joined", run_id=""))
    await store.commit_round(make_run("run-1"), make_round(1), make_event("round_committed"))
    assert joined.event_id == 4

    kinds = {event.event_id: event.kind for event in await store.events()}
    assert list(kinds.items()) == [
        (1, "run_submitted"),
        (2, "run_started"),
        (3, "round_started"),
        (4, "client_joined"),
        (5, "round_committed"),
    ]
    assert [event.event_id for event in await store.events(after=1, limit=2)] == [2, 3]
    assert [event.event_id for event in await store.events("run-1", after=1)] == [2, 5]
    assert [event.event_id for event in await store.events("run-1", limit=1)] == [1]
    assert [event.event_id for event in await store.events("run-2")] == [3]
    assert list(await store.events(after=5)) == []
    assert list(await store.events(limit=0)) == []


async def test_events_numbers_go_on_after_reopening(backend: Backend) -> None:
    for number in (1, 2):
        store = await open_store(backend.address)
        assert (await store.append_event(make_event("x"))).event_id == number
        await store.close()
        backend.crash()


async def test_last_events_come_newest_first(store: Store) -> None:
    assert await store.last_event_id() == 0
    for run_id in ("run-1", "run-2", "run-1", "run-1"):
        await store.append_event(make_event("x", run_id=run_id))
    assert await store.last_event_id() == 4
    assert [event.event_id for event in await store.events(limit=2, is_newest_first=True)] == [4, 3]
    assert [event.event_id for event in await store.events("run-1", 1, is_newest_first=True)] == [4, 3]
    assert list(await store.events("run-2", 2, is_newest_first=True)) == []


async def test_follower_is_woken_by_whatever_appends_events(store: Store) -> None:
    async def append(event: EventRecord) -> None:
        await store.append_event(event)

    writes: list[Callable[[], Awaitable[None]]] = [
        lambda: append(make_event("a")),
        lambda: store.put_run(make_run(), make_event("b"), make_event("c")),
        lambda: store.put_round(make_round(1), make_event("d")),
        lambda: store.commit_round(make_run(), make_round(1, state=RoundState.COMMITTED), make_event("e")),
    ]
    after, kinds = 0, ""
    async with asyncio.timeout(10):  # less than the follower would wait
        for write in writes:
            waiting = asyncio.create_task(store.follow(after, 60))
            await asyncio.sleep(0)
            await write()
            while not (found := await waiting):  # a follower may be sent away sooner
                waiting = asyncio.create_task(store.follow(after, 60))
            after, kinds = found[-1].event_id, kinds + "".join(event.kind for event in found)
    assert (after, kinds) == (5, "abcde")


async def test_follower_misses_nothing_between_two_looks(store: Store) -> None:
    count = 200

    async def follow() -> list[int]:
        seen: list[int] = []
        while len(seen) < count:
            seen += [event.event_id for event in await store.follow(seen[-1] if seen else 0, 60)]
        return seen

    async with asyncio.timeout(20):
        following = asyncio.create_task(follow())
        for _ in range(count):
            await store.append_event(make_event("x"))
        assert await following == list(range(1, count + 1))


async def test_follower_of_nothing_is_sent_away(store: Store) -> None:
    assert list(await store.follow(0, 0.01)) == []


async def test_concurrent_calls_each_take_place_once(store: Store) -> None:
    writes = [store.append_event(make_event(f"e{i}", run_id=f"run-{i % 3}")) for i in range(40)]
    rounds = [store.put_round(make_round(i + 1), make_event(f"r{i}")) for i in range(20)]
    appended = await asyncio.gather(*writes)
    await asyncio.gather(*rounds, *(store.put_client(make_client(f"c{i}")) for i in range(20)))

    stored = await store.events()
    assert [event.event_id for event in stored] == list(range(1, 61))
    assert sorted(appended, key=lambda event: event.event_id) == stored[:40]
    assert sorted(event.kind for event in stored[40:]) == sorted(f"r{i}" for i in range(20))
    assert [record.number for record in await store.rounds("run-1")] == list(range(1, 21))
    assert len(await store.clients()) == 20


async def test_cancelled_calls_leave_the_store_usable(store: Store) -> None:
    tasks = [asyncio.create_task(store.put_client(make_client(f"c{i:02}"))) for i in range(40)]
    await tasks[0]
    for task in tasks[::2]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    names = {client.client_id for client in await store.clients()}
    assert names >= {f"c{i:02}" for i in range(1, 40, 2)}
    reads = await asyncio.gather(*(store.rounds(f"run-{i}") for i in range(10)), store.clients())
    assert [list(records) for records in reads[:10]] == [[]] * 10
    assert {record.client_id for record in reads[10] if isinstance(record, ClientRecord)} == names


async def test_tokens_have_names_of_their_own_and_another_process_sees_them_at_once(backend: Backend) -> None:
    ours, theirs = await open_store(backend.address), await open_store(backend.address)
    for name in ("zoe", "ana", "Ben"):
        await ours.add_token(make_token(name))
    assert await theirs.tokens() == [make_token("Ben"), make_token("ana"), make_token("zoe")]
    with pytest.raises(ConflictError, match=r"^Token 'ana': name must be new, got one that there is\."):
        await theirs.add_token(make_token("ana", sha256="cd" * 32))
    outcomes = await asyncio.gather(
        ours.add_token(make_token("new", "aa" * 32)),
        theirs.add_token(make_token("new", "bb" * 32)),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes if outcome is not None] == [ConflictError]

    await theirs.remove_token("ana")
    await theirs.remove_token("new")
    assert await ours.tokens() == [make_token("Ben"), make_token("zoe")]
    with pytest.raises(NotFoundError, match=r"^Token 'ana': must be in the store, got no such token\."):
        await ours.remove_token("ana")
    await ours.close()
    await theirs.close()


async def test_note_of_a_tokens_use_is_kept_and_brings_none_back(store: Store) -> None:
    await store.add_token(make_token("ana"))
    await store.note_token_use("ana", 7.25)
    assert await store.tokens() == [make_token("ana").with_(last_used_time=7.25)]
    await store.remove_token("ana")
    await store.note_token_use("ana", 8.0)
    assert list(await store.tokens()) == []
    await store.add_token(make_token("ana"))
    assert await store.tokens() == [make_token("ana")]


WRITE_AND_DIE = """
import asyncio, os, signal, sys
from server.records import EventRecord, RoundRecord, RunRecord
from server.store import open_store


async def main():
    store = await open_store(sys.argv[1])
    run, record = RunRecord.model_validate_json(sys.argv[2]), RoundRecord.model_validate_json(sys.argv[3])
    await store.acquire_lease("coordinator", 600)
    await store.commit_round(run, record, EventRecord(time=1.0, kind="round_committed", run_id=run.run_id))
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def test_commit_round_survives_kill_right_after(backend: Backend) -> None:
    run, record = (
        make_run(round_number=1),
        make_round(1, state=RoundState.COMMITTED).with_(contributions=[], metrics={}),
    )
    died = run_python(WRITE_AND_DIE, backend.address, run.model_dump_json(), record.model_dump_json())
    assert died.returncode == -signal.SIGKILL, died.stderr
    backend.crash()

    store = await open_store(backend.address)
    assert await store.run("run-1") == run
    assert await store.rounds("run-1") == [record]
    assert [event.kind for event in await store.events("run-1")] == ["round_committed"]
    with pytest.raises(LeaseTakenError, match="got 'coordinator'"):
        await store.acquire_lease("another", 1)
    await store.acquire_lease("coordinator", 1)
    await store.close()


PUT_RUNS = """
import asyncio, sys
from server.records import RunRecord
from server.store import open_store

async def main():
    store = await open_store(sys.argv[1])
    for document in sys.argv[2:]:
        await store.put_run(RunRecord.model_validate_json(document))
    await store.close()

asyncio.run(main())
"""


async def test_runs_that_another_process_changes_are_listed_at_once_and_others_not_parsed_again(
    backend: Backend,
) -> None:
    store = await open_store(backend.address)
    old, other = make_run(), make_run("run-2")
    await store.put_run(old)
    await store.put_run(other)
    before = await store.runs()
    assert before == [old, other]

    changed, new = old.with_(state=RunState.PAUSED, metrics={"loss": 0.5}), make_run("run-3")
    written = run_python(PUT_RUNS, backend.address, changed.model_dump_json(), new.model_dump_json())
    assert written.returncode == 0, written.stderr
    after = await store.runs()
    assert after == [changed, other, new]
    assert after[1] is before[1]
    # What it was before is what it may become again.
    await store.put_run(old)
    assert await store.runs() == [old, other, new]
    await store.close()


async def test_lease_has_one_holder_at_a_time(backend: Backend) -> None:
    ours, theirs = await open_store(backend.address), await open_store(backend.address)
    outcomes = await asyncio.gather(ours.acquire_lease("a", 60), theirs.acquire_lease("b", 60), return_exceptions=True)
    winners = [holder for holder, outcome in zip("ab", outcomes, strict=True) if outcome is None]
    assert len(winners) == 1
    holder, other = winners[0], "ab".replace(winners[0], "")

    with pytest.raises(
        LeaseTakenError, match=rf"lease must be free or held by '{other}', got '{holder}' for \d+\.\d s"
    ):
        await theirs.acquire_lease(other, 60)
    await theirs.release_lease(other)
    await ours.acquire_lease(holder, 120)
    with pytest.raises(LeaseTakenError, match=f"got '{holder}' for 1[12]"):
        await theirs.acquire_lease(other, 60)

    await ours.release_lease(holder)
    await theirs.acquire_lease(other, 60)
    with pytest.raises(LeaseTakenError, match=f"got '{other}'"):
        await ours.acquire_lease(holder, 60)
    await ours.close()
    await theirs.close()


async def test_lease_that_ran_out_is_free(store: Store) -> None:
    await store.acquire_lease("a", 0.05)
    await acquire_when_free(store, "b")
    with pytest.raises(LeaseTakenError, match="got 'b'"):
        await store.acquire_lease("a", 60)
