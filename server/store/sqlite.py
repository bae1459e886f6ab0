"""The embedded store: one SQLite file, in write-ahead mode, for a coordinator with a sync to disk at every commit.

One thread owns the connection, so that calls take place one after the other and a coordinator's event loop never waits for a disk.
Other processes may open the same file; SQLite's locks order their transactions, and the lease says who serves.

Source: SQLite documentation, "Write-Ahead Logging", https://www.sqlite.org/wal.html
"""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

from server.errors import LeaseTakenError, NotFoundError, StoreError
from server.records import (
    ClientRecord,
    EventRecord,
    Participation,
    RoundRecord,
    RoundSummary,
    RunRecord,
    TokenRecord,
)
from server.signal import Signal
from server.store.documents import (
    KeptRecords,
    R,
    from_document,
    from_documents,
    no_such_token,
    to_document,
    token_exists,
)
from server.tallies import summarized, takers, tallied

T = TypeVar("T")

SCHEMA_VERSION = 1
APPLICATION_ID = 0x43484F52  # "CHOR"; tells our files from those of other programs
FOLLOWED_COUNT = 500  # most events that a follower is given at a time
BUSY_SECONDS = 10.0  # longest wait for another process's transaction

SCHEMA = (
    "CREATE TABLE runs (position INTEGER PRIMARY KEY, run_id TEXT NOT NULL UNIQUE, document TEXT NOT NULL)",
    "CREATE TABLE rounds (run_id TEXT, number INTEGER, document TEXT NOT NULL, PRIMARY KEY (run_id, number))",
    "CREATE TABLE events (event_id INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT NOT NULL, document TEXT NOT NULL)",
    "CREATE INDEX events_by_run ON events (run_id, event_id)",
    "CREATE TABLE clients (client_id TEXT PRIMARY KEY, document TEXT NOT NULL)",
    "CREATE TABLE leases (name TEXT PRIMARY KEY, holder TEXT NOT NULL, expires_time REAL NOT NULL)",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)

# Earlier releases of this version do without, and leave it alone.
ADDED = (
    "CREATE TABLE IF NOT EXISTS tokens (name TEXT PRIMARY KEY, document TEXT NOT NULL, last_used_time REAL)",
    "CREATE TABLE IF NOT EXISTS summaries (run_id TEXT, number INTEGER, document TEXT NOT NULL, PRIMARY KEY (run_id, number))",
    "CREATE TABLE IF NOT EXISTS participations "
    "(run_id TEXT, client_id TEXT, document TEXT NOT NULL, PRIMARY KEY (run_id, client_id))",
    "CREATE INDEX IF NOT EXISTS participations_by_client ON participations (client_id)",
)


class SqliteStore:
    """A `Store` in one SQLite file. Make one with `open`."""

    def __init__(self, path: Path, clock: Callable[[], float], is_synced: bool) -> None:
        self._path = path
        self._clock = clock
        self._is_synced = is_synced
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="choral-sqlite")
        self._connection: sqlite3.Connection
        self._runs = KeptRecords(RunRecord)
        self._written = Signal()
        self._written_count = 0

    @classmethod
    async def open(cls, path: Path | str, clock: Callable[[], float] = time.time, is_synced: bool = True) -> Self:
        """Open a database file, or create it in a folder that exists.

        Args:
            path: The file; SQLite puts two more next to it, with -wal and -shm after its name.
            clock: UTC seconds since the epoch, for the lease.
            is_synced: Whether each commit waits for the disk. Without, a commit outlives the process, but perhaps not the machine.

        Raises:
            StoreError: The file cannot be opened, is not a database of Choral's, or a newer release wrote it. Nothing
                was changed.
        """
        store = cls(Path(path), clock, is_synced)
        try:
            await store._on_thread(store._connect)
        except BaseException:
            store._thread.shutdown(wait=False)
            raise
        return store

    async def put_run(self, run: RunRecord, *events: EventRecord) -> None:
        """Insert or replace a run, and append events."""
        await self._put(run, None, events)

    async def run(self, run_id: str) -> RunRecord:
        """Return one run. Raises `NotFoundError`."""
        found = await self._read(RunRecord, "SELECT document FROM runs WHERE run_id = ?", run_id)
        if not found:
            raise NotFoundError(f"Run {run_id!r}: must be in the store, got no such run.")
        return found[0]

    async def runs(self) -> Sequence[RunRecord]:
        """Return all runs, in the order of their first `put_run`."""
        rows = await self._rows("SELECT document FROM runs ORDER BY position")
        return await self._runs.read([document for (document,) in rows])

    async def put_round(self, record: RoundRecord, *events: EventRecord) -> None:
        """Insert or replace a round that is open, and append events."""
        await self._put(None, record, events)

    async def commit_round(self, run: RunRecord, record: RoundRecord, *events: EventRecord) -> None:
        """Replace a run and its round, append events, and count the round, in one transaction."""

        def commit(connection: sqlite3.Connection) -> None:
            put_records(connection, run, record, events)
            _count(connection, record)

        await self._write(commit)
        if events:
            self._wake()

    async def round(self, run_id: str, number: int) -> RoundRecord:
        """Return one round. Raises `NotFoundError`."""
        query = "SELECT document FROM rounds WHERE run_id = ? AND number = ?"
        found = await self._read(RoundRecord, query, run_id, number)
        if not found:
            raise NotFoundError(f"Round {number} of run {run_id!r}: must be in the store, got no such round.")
        return found[0]

    async def rounds(self, run_id: str, after: int = 0, limit: int = 1000) -> Sequence[RoundRecord]:
        """Return up to `limit` rounds with a number above `after`, ascending."""
        query = "SELECT document FROM rounds WHERE run_id = ? AND number > ? ORDER BY number LIMIT ?"
        return await self._read(RoundRecord, query, run_id, after, limit)

    async def summaries(self, run_id: str, after: int = 0, limit: int = 1000) -> Sequence[RoundSummary]:
        """Return the summaries of up to `limit` rounds from number `after` + 1 on, ascending."""
        query = "SELECT document FROM summaries WHERE run_id = ? AND number > ? AND number <= ? ORDER BY number"
        return await self._read(RoundSummary, query, run_id, after, after + limit)

    async def summary_count(self, run_id: str) -> int:
        """Return how many rounds have a summary."""
        ((count,),) = await self._rows("SELECT count(*) FROM summaries WHERE run_id = ?", run_id)
        return int(count)

    async def summarized_numbers(self, run_id: str) -> Set[int]:
        """Return the numbers of the rounds that have a summary."""
        return {number for (number,) in await self._rows("SELECT number FROM summaries WHERE run_id = ?", run_id)}

    async def participations(self, run_id: str) -> Sequence[Participation]:
        """Return what the clients of one run have done, by identity."""
        query = "SELECT document FROM participations WHERE run_id = ? ORDER BY client_id"
        return await self._read(Participation, query, run_id)

    async def participations_of(self, client_id: str) -> Sequence[Participation]:
        """Return what one client has done, by run in the order of their submission."""
        query = "SELECT p.document FROM participations p JOIN runs USING (run_id) WHERE client_id = ? ORDER BY position"
        return await self._read(Participation, query, client_id)

    async def append_event(self, event: EventRecord) -> EventRecord:
        """Append an event and return it with its number."""
        event_id = await self._write(lambda connection: _append(connection, event))
        self._wake()
        return event.with_(event_id=event_id)

    async def events(
        self, run_id: str = "", after: int = 0, limit: int = 1000, is_newest_first: bool = False
    ) -> Sequence[EventRecord]:
        """Return up to `limit` events with a number above `after`, ascending or, the last of them, descending; of one run if given."""
        where, parameters = ("run_id = ? AND ", (run_id,)) if run_id else ("", ())
        order = "DESC" if is_newest_first else "ASC"
        query = f"SELECT event_id, document FROM events WHERE {where}event_id > ? ORDER BY event_id {order} LIMIT ?"
        rows = await self._rows(query, *parameters, after, limit)
        found = await from_documents(EventRecord, [document for _, document in rows])
        return [event.with_(event_id=event_id) for event, (event_id, _) in zip(found, rows, strict=True)]

    async def last_event_id(self) -> int:
        """Return the number of the last event; 0 if there is none."""
        ((number,),) = await self._rows("SELECT coalesce(max(event_id), 0) FROM events")
        return int(number)

    async def follow(self, after: int, seconds: float) -> Sequence[EventRecord]:
        """Return some events above `after` as soon as there are any; those that another process appends only after `seconds`."""
        written_count = self._written_count
        found = await self.events(after=after, limit=FOLLOWED_COUNT)
        if found or seconds <= 0:
            return found
        # What was written while the answer was on its way has woken nobody.
        if written_count == self._written_count:
            await self._written.wait(seconds)
        return await self.events(after=after, limit=FOLLOWED_COUNT)

    async def put_client(self, client: ClientRecord) -> None:
        """Insert or replace a client."""
        query = "INSERT OR REPLACE INTO clients VALUES (?, ?)"
        await self._write(lambda connection: connection.execute(query, (client.client_id, to_document(client))))

    async def clients(self) -> Sequence[ClientRecord]:
        """Return all clients, by identity."""
        return await self._read(ClientRecord, "SELECT document FROM clients ORDER BY client_id")

    async def add_token(self, token: TokenRecord) -> None:
        """Insert a token. Raises `ConflictError` when there is one of that name."""

        def add(connection: sqlite3.Connection) -> None:
            row = (token.name, to_document(token), token.last_used_time)
            if not connection.execute("INSERT OR IGNORE INTO tokens VALUES (?, ?, ?)", row).rowcount:
                raise token_exists(token.name)

        await self._write(add)

    async def tokens(self) -> Sequence[TokenRecord]:
        """Return all tokens, by name."""
        rows = await self._rows("SELECT document, last_used_time FROM tokens ORDER BY name")
        return [from_document(TokenRecord, document).with_(last_used_time=when) for document, when in rows]

    async def note_token_use(self, name: str, when: float) -> None:
        """Note when a token was last used. One that was removed meanwhile stays so."""
        query = "UPDATE tokens SET last_used_time = ? WHERE name = ?"
        await self._write(lambda connection: connection.execute(query, (when, name)))

    async def remove_token(self, name: str) -> None:
        """Remove a token. Raises `NotFoundError`."""
        query = "DELETE FROM tokens WHERE name = ?"
        if not await self._write(lambda connection: connection.execute(query, (name,)).rowcount):
            raise no_such_token(name)

    async def acquire_lease(self, holder: str, seconds: float) -> None:
        """Take or prolong the lease. Raises `LeaseTakenError` while somebody else holds it."""

        def acquire(connection: sqlite3.Connection) -> None:
            now = self._clock()
            row = connection.execute("SELECT holder, expires_time FROM leases WHERE name = 'coordinator'").fetchone()
            if row is not None and row[0] != holder and row[1] > now:
                raise LeaseTakenError(
                    f"Store {self._path}: lease must be free or held by {holder!r}, "
                    f"got {row[0]!r} for {row[1] - now:.1f} s more. "
                    "Stop that coordinator, or wait until its lease has run out."
                )
            connection.execute("INSERT OR REPLACE INTO leases VALUES ('coordinator', ?, ?)", (holder, now + seconds))

        await self._write(acquire)

    async def release_lease(self, holder: str) -> None:
        """Give the lease back, if `holder` has it."""
        query = "DELETE FROM leases WHERE name = 'coordinator' AND holder = ?"
        await self._write(lambda connection: connection.execute(query, (holder,)))

    async def close(self) -> None:
        """Close the file, after the calls that are under way."""
        await self._on_thread(self._connection.close)
        self._thread.shutdown()

    async def _put(self, run: RunRecord | None, record: RoundRecord | None, events: Sequence[EventRecord]) -> None:
        await self._write(lambda connection: put_records(connection, run, record, events))
        if events:
            self._wake()

    def _wake(self) -> None:
        self._written_count += 1
        self._written.notify()

    async def _read(self, kind: type[R], query: str, *parameters: object) -> list[R]:
        rows = await self._rows(query, *parameters)
        # Not on the connection's thread: a page of rounds with large cohorts takes long to parse, and commits must go on.
        return await from_documents(kind, [document for (document,) in rows])

    async def _rows(self, query: str, *parameters: object) -> list[Any]:
        return await self._on_thread(lambda: self._connection.execute(query, parameters).fetchall())

    async def _write(self, change: Callable[[sqlite3.Connection], T]) -> T:
        def write() -> T:
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                return change(self._connection)

        return await self._on_thread(write)

    async def _on_thread(self, work: Callable[[], T]) -> T:
        with self._explained():
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Raise `StoreError` for what goes wrong in SQLite."""
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(
                f"Store {self._path}: must be a SQLite database that can be read and written, got: {error}. "
                "Check the path, its permissions and the space on its disk."
            ) from error

    def _connect(self) -> None:
        self._connection = sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None)
        try:
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                self._check_or_create_schema()
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if self._is_synced else 'NORMAL'}")
            self._switch_to_wal()
        except BaseException:
            self._connection.close()
            raise

    def _switch_to_wal(self) -> None:
        try:
            self._connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            # Only for a new file, and only while another process opens it too; that one switches, for all connections.
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise

    def _check_or_create_schema(self) -> None:
        if not self._value("SELECT count(*) FROM sqlite_schema"):
            for statement in SCHEMA:
                self._connection.execute(statement)
        if (owner := self._value("PRAGMA application_id")) != APPLICATION_ID:
            raise StoreError(
                f"Store {self._path}: application_id must be {APPLICATION_ID}, got {owner}: another program's database. "
                "Choose another path."
            )
        if (version := self._value("PRAGMA user_version")) > SCHEMA_VERSION:
            raise StoreError(
                f"Store {self._path}: user_version must be at most {SCHEMA_VERSION}, got {version}. "
                "Start the release of Choral that wrote it, or a newer one."
            )
        for statement in ADDED:
            self._connection.execute(statement)

    def _value(self, query: str) -> Any:
        return self._connection.execute(query).fetchone()[0]


def put_records(
    connection: sqlite3.Connection, run: RunRecord | None, record: RoundRecord | None, events: Sequence[EventRecord]
) -> None:
    """Insert or replace a run and a round, where they are given, and append events, as part of the transaction that is open."""
    if run is not None:
        query = "INSERT INTO runs (run_id, document) VALUES (?, ?)"  # a replaced run keeps its place in the order
        keep_position = " ON CONFLICT (run_id) DO UPDATE SET document = excluded.document"
        connection.execute(query + keep_position, (run.run_id, to_document(run)))
    if record is not None:
        row = (record.run_id, record.number, to_document(record))
        connection.execute("INSERT OR REPLACE INTO rounds VALUES (?, ?, ?)", row)
    for event in events:
        _append(connection, event)


def _count(connection: sqlite3.Connection, record: RoundRecord) -> None:
    """Store a committed round's summary and what its clients have done by now, unless that is done, in the transaction that is open."""
    row = (record.run_id, record.number, to_document(summarized(record)))
    if not connection.execute("INSERT OR IGNORE INTO summaries VALUES (?, ?, ?)", row).rowcount:
        return
    query = "SELECT document FROM participations WHERE run_id = ? AND client_id = ?"
    known = {}
    for client_id in takers(record):
        for (document,) in connection.execute(query, (record.run_id, client_id)):
            known[client_id] = from_document(Participation, document)
    rows = [(record.run_id, key, to_document(found)) for key, found in tallied(record, known).items()]
    connection.executemany("INSERT OR REPLACE INTO participations VALUES (?, ?, ?)", rows)


def _append(connection: sqlite3.Connection, event: EventRecord) -> int:
    row = (event.run_id, to_document(event))
    return connection.execute("INSERT INTO events (run_id, document) VALUES (?, ?)", row).lastrowid or 0
