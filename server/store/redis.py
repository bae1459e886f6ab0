"""The shared store: a Redis server, when several processes or hosts use one state.

A call is durable when it returns only if the server runs with `appendonly yes` and `appendfsync always`; `open` warns when it does not.
Its `maxmemory-policy` must be noeviction, which is the default: any other lets it forget records.
One server, with replicas or without, not a Redis Cluster: a transaction touches several keys.

Keys, each after "choral:":

    runs            hash, run id to document          run_order        list of run ids, by submission
    rounds:<run>    sorted set of documents           clients          hash, identity to document
    events          stream of documents, id n-0       events:<run>     the same, of one run
    event_count     number of the last event          lease            name of the holder, expires with the lease
    summary:<run>   hash, number to document          participation:<run>  hash, identity to document
    tokens          hash, name to document            token_uses        hash, name to time of last use
    written:<call>  number of the last event after a write; makes a repeated write harmless, expires

Source: Redis documentation, "Scripting with Lua" and "Redis persistence", https://redis.io/docs/latest/
"""

import asyncio
import logging
import math
import uuid
from collections.abc import Sequence, Set

from redis.exceptions import ResponseError

from server.errors import LeaseTakenError, NotFoundError
from server.records import (
    ClientRecord,
    EventRecord,
    Participation,
    RoundRecord,
    RoundSummary,
    RunRecord,
    TokenRecord,
)
from server.store.connection import BLOCK_SECONDS, LEASE, PREFIX, Connection
from server.store.documents import KeptRecords, from_document, from_documents, no_such_token, to_document, token_exists
from server.tallies import summarized, takers, tallied

logger = logging.getLogger(__name__)

CONNECTION_COUNT = 8
TOKEN_KEYS = (PREFIX + "tokens", PREFIX + "token_uses")
FOLLOWED_COUNT = 500  # most events that a follower is given at a time

Change = tuple[str, str, int | str, str]
"""Kind of record, identity, number or second identity, and document."""

# A script runs alone and reaches the append-only file as one transaction. A lost connection makes the client send it
# again, perhaps after it took place: then the marker of the call says so.
WRITE = """
local prefix, marker = KEYS[1], KEYS[2]
local written = redis.call('GET', marker)
if written then return tonumber(written) end
local last = 0
for i = 1, #ARGV, 4 do
    local kind, id, number, document = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
    if kind == 'run' then
        local is_new = redis.call('HSET', prefix .. 'runs', id, document) == 1
        if is_new then redis.call('RPUSH', prefix .. 'run_order', id) end
    elseif kind == 'round' then
        redis.call('ZREMRANGEBYSCORE', prefix .. 'rounds:' .. id, number, number)
        redis.call('ZADD', prefix .. 'rounds:' .. id, number, document)
    elseif kind == 'summary' or kind == 'participation' then
        redis.call('HSET', prefix .. kind .. ':' .. id, number, document)
    else
        last = redis.call('INCR', prefix .. 'event_count')
        redis.call('XADD', prefix .. 'events', last .. '-0', 'document', document)
        if id ~= '' then redis.call('XADD', prefix .. 'events:' .. id, last .. '-0', 'document', document) end
    end
end
redis.call('SET', marker, last, 'EX', 60)
return last
"""

ACQUIRE = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return {holder, redis.call('PTTL', KEYS[1])} end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return false
"""

# Sent again after a lost connection, it finds its own document.
ADD_TOKEN = """
local is_new = redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2]) == 1
if is_new then redis.call('HDEL', KEYS[2], ARGV[1]) end
return is_new or redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2]
"""

USE_TOKEN = "if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then redis.call('HSET', KEYS[2], ARGV[1], ARGV[2]) end"

RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"


class RedisStore:
    """A `Store` in a Redis server. Make one with `open`.

    When the connection is lost during a write and does not come back, `StoreError` cannot say whether the write took place.
    """

    def __init__(self, server: Connection) -> None:
        self._server = server
        self._client = server.client
        self._call = server.call
        self._runs = KeptRecords(RunRecord)

    @classmethod
    async def open(cls, url: str) -> "RedisStore":
        """Connect to a server, at an address as `Connection` takes it.

        Raises:
            StoreError: The address cannot be read, or the server does not answer or lets us in.
        """
        store = cls(Connection(url, CONNECTION_COUNT))
        try:
            await store._check_durability()
        except BaseException:
            await store.close()
            raise
        return store

    async def put_run(self, run: RunRecord, *events: EventRecord) -> None:
        """Insert or replace a run, and append events."""
        await self._write(_run(run), *map(_event, events))

    async def run(self, run_id: str) -> RunRecord:
        """Return one run. Raises `NotFoundError`."""
        async with self._call():
            document = await self._client.hget(PREFIX + "runs", run_id)
        if document is None:
            raise NotFoundError(f"Run {run_id!r}: must be in the store, got no such run.")
        return from_document(RunRecord, document)

    async def runs(self) -> Sequence[RunRecord]:
        """Return all runs, in the order of their first `put_run`."""
        async with self._call():  # not in MULTI, which a server without memory left refuses; no run is ever removed
            order = await self._client.lrange(PREFIX + "run_order", 0, -1)
            documents = await self._client.hmget(PREFIX + "runs", order) if order else []
        return await self._runs.read(documents)

    async def put_round(self, record: RoundRecord, *events: EventRecord) -> None:
        """Insert or replace a round that is open, and append events."""
        await self._write(_round(record), *map(_event, events))

    async def commit_round(self, run: RunRecord, record: RoundRecord, *events: EventRecord) -> None:
        """Replace a run and its round, append events, and count the round, in one transaction."""
        counted = await self._counted(record)
        await self._write(_run(run), _round(record), *counted, *map(_event, events))

    async def round(self, run_id: str, number: int) -> RoundRecord:
        """Return one round. Raises `NotFoundError`."""
        found = await self.rounds(run_id, after=number - 1, limit=1)
        if not found or found[0].number != number:
            raise NotFoundError(f"Round {number} of run {run_id!r}: must be in the store, got no such round.")
        return found[0]

    async def rounds(self, run_id: str, after: int = 0, limit: int = 1000) -> Sequence[RoundRecord]:
        """Return up to `limit` rounds with a number above `after`, ascending."""
        async with self._call():
            documents = await self._client.zrangebyscore(PREFIX + "rounds:" + run_id, f"({after}", "+inf", 0, limit)
        return await from_documents(RoundRecord, documents)

    async def summaries(self, run_id: str, after: int = 0, limit: int = 1000) -> Sequence[RoundSummary]:
        """Return the summaries of up to `limit` rounds from number `after` + 1 on, ascending."""
        if limit < 1:  # which HMGET refuses
            return []
        async with self._call():
            numbers = range(after + 1, after + limit + 1)
            documents = await self._client.hmget(PREFIX + "summary:" + run_id, numbers)
        return await from_documents(RoundSummary, [document for document in documents if document is not None])

    async def summary_count(self, run_id: str) -> int:
        """Return how many rounds have a summary."""
        async with self._call():
            return int(await self._client.hlen(PREFIX + "summary:" + run_id))

    async def summarized_numbers(self, run_id: str) -> Set[int]:
        """Return the numbers of the rounds that have a summary."""
        async with self._call():
            return {int(number) for number in await self._client.hkeys(PREFIX + "summary:" + run_id)}

    async def participations(self, run_id: str) -> Sequence[Participation]:
        """Return what the clients of one run have done, by identity."""
        async with self._call():
            documents = await self._client.hgetall(PREFIX + "participation:" + run_id)
        return await from_documents(Participation, [documents[client_id] for client_id in sorted(documents)])

    async def participations_of(self, client_id: str) -> Sequence[Participation]:
        """Return what one client has done, by run in the order of their submission."""
        async with self._call():
            pipeline = self._client.pipeline(transaction=False)
            for run_id in await self._client.lrange(PREFIX + "run_order", 0, -1):
                pipeline.hget(PREFIX + "participation:" + run_id, client_id)
            documents = await pipeline.execute()
        return await from_documents(Participation, [document for document in documents if document is not None])

    async def append_event(self, event: EventRecord) -> EventRecord:
        """Append an event and return it with its number."""
        return event.with_(event_id=await self._write(_event(event)))

    async def events(
        self, run_id: str = "", after: int = 0, limit: int = 1000, is_newest_first: bool = False
    ) -> Sequence[EventRecord]:
        """Return up to `limit` events with a number above `after`, ascending or, the last of them, descending; of one run if given."""
        if limit < 1:  # which XRANGE refuses
            return []
        stream = PREFIX + "events" + (f":{run_id}" if run_id else "")
        async with self._call():
            if is_newest_first:
                entries = await self._client.xrevrange(stream, "+", f"({after}-0", limit)
            else:
                entries = await self._client.xrange(stream, f"({after}-0", "+", limit)
        return await _read_events(entries)

    async def last_event_id(self) -> int:
        """Return the number of the last event; 0 if there is none."""
        async with self._call():
            return int(await self._client.get(PREFIX + "event_count") or 0)

    async def follow(self, after: int, seconds: float) -> Sequence[EventRecord]:
        """Return some events with a number above `after`, ascending, as soon as there are any; none after `seconds`, perhaps sooner."""
        block = math.ceil(1000 * min(max(seconds, 0.001), BLOCK_SECONDS))
        async with self._call():
            streams = await self._client.xread({PREFIX + "events": f"{after}-0"}, count=FOLLOWED_COUNT, block=block)
        return await _read_events(streams[0][1]) if streams else []

    async def put_client(self, client: ClientRecord) -> None:
        """Insert or replace a client."""
        async with self._call():
            await self._client.hset(PREFIX + "clients", client.client_id, to_document(client))

    async def clients(self) -> Sequence[ClientRecord]:
        """Return all clients, by identity."""
        async with self._call():
            documents = await self._client.hgetall(PREFIX + "clients")
        return await from_documents(ClientRecord, [documents[client_id] for client_id in sorted(documents)])

    async def add_token(self, token: TokenRecord) -> None:
        """Insert a token. Raises `ConflictError` when there is one of that name."""
        async with self._call():
            is_added = await self._client.eval(ADD_TOKEN, 2, *TOKEN_KEYS, token.name, to_document(token))
        if not is_added:
            raise token_exists(token.name)

    async def tokens(self) -> Sequence[TokenRecord]:
        """Return all tokens, by name."""
        async with self._call():
            documents, uses = [await self._client.hgetall(key) for key in TOKEN_KEYS]
        tokens = [from_document(TokenRecord, documents[name]) for name in sorted(documents)]
        return [
            token.with_(last_used_time=float(uses[token.name])) if token.name in uses else token for token in tokens
        ]

    async def note_token_use(self, name: str, when: float) -> None:
        """Note when a token was last used. One that was removed meanwhile stays so."""
        async with self._call():
            await self._client.eval(USE_TOKEN, 2, *TOKEN_KEYS, name, when)

    async def remove_token(self, name: str) -> None:
        """Remove a token. Raises `NotFoundError`."""
        async with self._call():
            count = await self._client.hdel(TOKEN_KEYS[0], name)
        if not count:
            raise no_such_token(name)

    async def acquire_lease(self, holder: str, seconds: float) -> None:
        """Take or prolong the lease. Raises `LeaseTakenError` while somebody else holds it."""
        async with self._call():
            taken = await self._client.eval(ACQUIRE, 1, LEASE, holder, math.ceil(seconds * 1000))
        if taken:
            raise LeaseTakenError(
                f"Store {self._server.address}: lease must be free or held by {holder!r}, "
                f"got {taken[0]!r} for {taken[1] / 1000:.1f} s more. "
                "Stop that coordinator, or wait until its lease has run out."
            )

    async def release_lease(self, holder: str) -> None:
        """Give the lease back, if `holder` has it."""
        async with self._call():
            await self._client.eval(RELEASE, 1, LEASE, holder)

    async def close(self) -> None:
        """Close the connections."""
        await self._server.close()

    async def _counted(self, record: RoundRecord) -> Sequence[Change]:
        """Return a committed round's summary and what its clients have done by now, unless that is stored already.

        The holder of the lease is the only one who commits rounds, so that nothing changes between this and the write.
        """
        client_ids, key = takers(record), f":{record.run_id}"
        async with self._call():
            if await self._client.hexists(PREFIX + "summary" + key, record.number):
                return []
            documents = await self._client.hmget(PREFIX + "participation" + key, client_ids) if client_ids else []

        def count() -> Sequence[Change]:
            found = zip(client_ids, documents, strict=True)
            known = {client_id: from_document(Participation, text) for client_id, text in found if text is not None}
            tallies = tallied(record, known).values()
            return [_summary(record), *map(_participation, tallies)]

        return await asyncio.to_thread(count)

    async def _write(self, *changes: Change) -> int:
        marker = f"{PREFIX}written:{uuid.uuid4().hex}"
        async with self._call():
            arguments = [str(part) for change in changes for part in change]
            return int(await self._client.eval(WRITE, 2, PREFIX, marker, *arguments))

    async def _check_durability(self) -> None:
        async with self._call():
            await self._client.ping()
            try:
                settings = await self._client.config_get("append*")
            except ResponseError:  # hosted servers often forbid CONFIG
                settings = {}
        found = settings.get("appendonly", "unknown"), settings.get("appendfsync", "unknown")
        if found != ("yes", "always"):
            logger.warning(
                "Store %s: appendonly must be yes and appendfsync always for rounds to survive a crash, got %s and %s.",
                self._server.address,
                *found,
            )


def _run(run: RunRecord) -> Change:
    return "run", run.run_id, 0, to_document(run)


def _round(record: RoundRecord) -> Change:
    return "round", record.run_id, record.number, to_document(record)


def _summary(record: RoundRecord) -> Change:
    return "summary", record.run_id, record.number, to_document(summarized(record))


def _participation(found: Participation) -> Change:
    return "participation", found.run_id, found.client_id, to_document(found)


def _event(event: EventRecord) -> Change:
    return "event", event.run_id, 0, to_document(event)


async def _read_events(entries: Sequence[tuple[str, dict[str, str]]]) -> list[EventRecord]:
    events = await from_documents(EventRecord, [fields["document"] for _, fields in entries])
    numbers = [int(entry_id.partition("-")[0]) for entry_id, _ in entries]
    return [event.with_(event_id=number) for event, number in zip(events, numbers, strict=True)]
