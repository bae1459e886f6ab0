"""What only a store in a file can get wrong."""

import asyncio
import sqlite3
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from server.errors import LeaseTakenError, StoreError
from server.records import EventRecord, Record, RoundRecord, RoundState
from server.store import documents, open_store
from server.store.documents import from_document
from server.store.sqlite import SqliteStore
from tests.server.store.samples import make_event, make_round, make_run, make_token, run_python


async def test_commit_round_failing_halfway_changes_nothing(tmp_path: Path) -> None:
    store = await open_store(str(tmp_path / "choral.db"))
    await store.put_run(make_run())
    await store.put_round(make_round(1))
    with closing(sqlite3.connect(tmp_path / "choral.db")) as other:
        other.execute(
            "CREATE TRIGGER break_events BEFORE INSERT ON events WHEN (SELECT count(*) FROM events) = 1 "
            "BEGIN SELECT RAISE(ABORT, 'broken on purpose'); END"
        )
    commit = make_run(round_number=1), make_round(1, state=RoundState.COMMITTED), make_event("a"), make_event("b")
    with pytest.raises(StoreError, match=r"choral\.db: must be .* got: broken on purpose"):
        await store.commit_round(*commit)
    assert await store.runs() == [make_run()]
    assert await store.rounds("run-1") == [make_round(1)]
    assert list(await store.events()) == []

    with closing(sqlite3.connect(tmp_path / "choral.db")) as other:
        other.execute("DROP TRIGGER break_events")
    await store.commit_round(*commit)
    assert await store.run("run-1") == make_run(round_number=1)
    assert [event.kind for event in await store.events()] == ["a", "b"]
    await store.close()


FILL_DISK = """
import asyncio, resource, sys
from server.errors import StoreError
from server.records import EventRecord
from server.store import open_store


async def main():
    store = await open_store(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    count = 0
    try:
        while count < 1000:
            await store.append_event(EventRecord(time=1.0, kind="x", detail="y" * 5000))
            count += 1
    except StoreError as error:
        print(count, len(await store.events()), error)

asyncio.run(main())
"""


async def test_full_disk_raises_and_keeps_what_was_written(tmp_path: Path) -> None:
    result = run_python(FILL_DISK, str(tmp_path / "choral.db"))
    assert result.returncode == 0, result.stderr
    acknowledged, readable, message = result.stdout.split(maxsplit=2)
    assert acknowledged == readable
    assert "choral.db: must be a SQLite database that can be read and written" in message

    store = await open_store(str(tmp_path / "choral.db"))
    assert len(await store.events()) == int(acknowledged) > 10
    await store.append_event(make_event("x"))
    await store.close()


@pytest.mark.parametrize("kind", [RoundRecord, EventRecord])
async def test_commit_takes_place_while_a_page_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Record]
) -> None:
    store = await open_store(str(tmp_path / "choral.db"))
    await store.put_round(make_round(1), make_event("a"))
    is_parsing, committed = threading.Event(), threading.Event()

    def held_up(wanted: type[Record], document: str) -> Record:
        is_parsing.set()
        assert committed.wait(10), "the commit waits for the page"
        return from_document(wanted, document)

    monkeypatch.setattr(documents, "from_document", held_up)
    monkeypatch.setattr(documents, "SHORT_LENGTH", 0)
    reading: asyncio.Future[Sequence[Record]] = asyncio.ensure_future(
        store.rounds("run-1") if kind is RoundRecord else store.events()
    )
    assert await asyncio.to_thread(is_parsing.wait, 10)
    await store.put_round(make_round(2))
    committed.set()
    assert len(await reading) == 1
    assert len(await store.rounds("run-1")) == 2
    await store.close()


class LateStore(SqliteStore):
    """Has an event appended between an empty answer and the one who waits for it."""

    async def events(
        self, run_id: str = "", after: int = 0, limit: int = 1000, is_newest_first: bool = False
    ) -> Sequence[EventRecord]:
        found = await super().events(run_id, after, limit, is_newest_first)
        if not found:
            await self.append_event(make_event("late"))
        return found


async def test_event_appended_while_a_follower_is_told_of_none_wakes_it(tmp_path: Path) -> None:
    store = await LateStore.open(tmp_path / "choral.db")
    async with asyncio.timeout(10):  # less than the follower would wait
        assert [event.kind for event in await store.follow(0, 60)] == ["late"]
    await store.close()


async def test_file_is_in_write_ahead_mode(tmp_path: Path) -> None:
    store = await open_store(str(tmp_path / "choral.db"))
    with closing(sqlite3.connect(tmp_path / "choral.db")) as other:
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    await store.close()


async def test_lease_runs_out_by_the_clock(tmp_path: Path) -> None:
    now = [1000.0]
    store = await SqliteStore.open(tmp_path / "choral.db", clock=lambda: now[0])
    await store.acquire_lease("a", 15)
    now[0] = 1014.9
    with pytest.raises(LeaseTakenError, match=r"got 'a' for 0\.1 s more"):
        await store.acquire_lease("b", 15)
    now[0] = 1015.0
    await store.acquire_lease("b", 15)
    await store.close()


async def test_open_file_of_another_kind_raises_and_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "choral.db"
    path.write_bytes(b"not a database\n" * 100)
    with pytest.raises(StoreError, match=r"choral\.db: must be a SQLite database .*, got: file is not a database"):
        await open_store(str(path))
    assert path.read_bytes() == b"not a database\n" * 100


@pytest.mark.parametrize("name", ["missing/choral.db", "."])
async def test_open_path_that_cannot_be_a_file_raises(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match=r"must be a SQLite database .*, got: unable to open database file"):
        await open_store(str(tmp_path / name))


async def test_open_database_of_another_program_raises_and_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "choral.db"
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE runs (mine TEXT)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"choral\.db: application_id must be \d+, got 0: another program's"):
        await open_store(str(path))
    assert path.read_bytes() == before


async def test_open_database_of_newer_release_raises_and_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "choral.db"
    store = await open_store(str(path))
    await store.close()
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA user_version = 7")
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"choral\.db: user_version must be at most 1, got 7"):
        await open_store(str(path))
    assert path.read_bytes() == before


async def test_document_of_newer_release_raises(tmp_path: Path) -> None:
    path = tmp_path / "choral.db"
    store = await open_store(str(path))
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("""INSERT INTO clients VALUES ('ana', '{"colour": "red"}')""")
    with pytest.raises(
        StoreError, match="Stored ClientRecord: client_id must be readable by this release, got: Field req"
    ):
        await store.clients()
    await store.close()


async def test_new_file_opened_several_times_at_once_is_shared(tmp_path: Path) -> None:
    stores = await asyncio.gather(*(open_store(str(tmp_path / "choral.db")) for _ in range(4)))
    await asyncio.gather(*(store.append_event(make_event("x")) for store in stores))
    assert [event.event_id for event in await stores[0].events()] == [1, 2, 3, 4]
    for store in stores:
        await store.close()


async def test_open_does_not_need_redis(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys; sys.modules['redis'] = None\n"
        "from server.store import open_store; asyncio.run(open_store(sys.argv[1]))"
    )
    result = run_python(code, str(tmp_path / "choral.db"))
    assert result.returncode == 0, result.stderr


async def test_open_file_of_before_there_were_tokens_makes_room_for_them(tmp_path: Path) -> None:
    path = tmp_path / "choral.db"
    store = await SqliteStore.open(path)
    await store.put_run(make_run())
    await store.close()
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("DROP TABLE tokens")
    store = await SqliteStore.open(path)
    await store.add_token(make_token("ana"))
    assert await store.tokens() == [make_token("ana")]
    assert await store.runs() == [make_run()]
    await store.close()
