"""The post in a Redis server: commands from API replicas to the coordinator, answers back, and pictures of what goes on.

A command is taken at most once, by whoever holds the lease, and only while it is valid. The server's clock alone measures that, so that
hosts need not agree on the time. Who sent it can withdraw it, and is told whether it was taken before.

Keys, each after "choral:":

    commands        list of command ids, a wake-up call for the coordinator
    command:<id>    the command, for as long as it is valid; then for a while "taken" or "withdrawn", which makes a repeated call harmless
    answer:<id>     stream of one answer; who reads it takes nothing away, so that a lost reply can be read again

Pictures go over the channel "choral:pictures". A server writes no such message to its append-only file, and who is not there misses it.

Source: Redis documentation, "Redis Pub/sub" and "Scripting with Lua", https://redis.io/docs/latest/
"""

import asyncio
import math
import uuid
from collections.abc import AsyncGenerator

from server.store.connection import BLOCK_SECONDS, LEASE, PREFIX, Connection

CONNECTION_COUNT = 32
"""Connections at most. Each answer that is waited for takes one."""

VALID_SECONDS = 10.0
"""Time in which a command can be taken."""

KEPT_SECONDS = 60
"""Time for which it is known what became of a command, and what was answered."""

QUEUE = PREFIX + "commands"
CHANNEL = PREFIX + "pictures"

# A lost connection makes the client send a script again, perhaps after it took place.
SEND = """
if redis.call('SET', KEYS[1], ARGV[2], 'NX', 'PX', ARGV[3]) then redis.call('RPUSH', KEYS[2], ARGV[1]) end
"""

TAKE = """
local command = redis.call('GET', KEYS[1])
if redis.call('GET', KEYS[2]) ~= ARGV[1] or not command or command == 'taken' or command == 'withdrawn' then return false end
redis.call('SET', KEYS[1], 'taken', 'EX', ARGV[2])
return command
"""

WITHDRAW = """
if redis.call('GET', KEYS[1]) == 'taken' then return 0 end
redis.call('SET', KEYS[1], 'withdrawn', 'EX', ARGV[1])
return 1
"""

ANSWER = """
redis.call('XADD', KEYS[1], '*', 'answer', ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
"""


class Post:
    """Carries text between processes. Every call raises `StoreError` when the server does not answer."""

    def __init__(self, url: str) -> None:
        """Prepare to connect to the server at `url`. Raises `StoreError` when that cannot be read."""
        self._server = Connection(url, CONNECTION_COUNT)
        self._client = self._server.client
        self._call = self._server.call

    async def send(self, command: str) -> str:
        """Leave a command for the coordinator and return its identity."""
        command_id = uuid.uuid4().hex
        async with self._call():
            valid = math.ceil(1000 * VALID_SECONDS)
            await self._client.eval(SEND, 2, _command(command_id), QUEUE, command_id, command, valid)
        return command_id

    async def withdraw(self, command_id: str) -> bool:
        """Take a command back. Tell whether it was not taken before: then it never will be."""
        async with self._call():
            return bool(await self._client.eval(WITHDRAW, 1, _command(command_id), KEPT_SECONDS))

    async def answer_to(self, command_id: str, seconds: float) -> str | None:
        """Return the answer to a command, or None when none has come within some seconds."""
        deadline = asyncio.get_running_loop().time() + seconds
        while (left := deadline - asyncio.get_running_loop().time()) > 0:
            async with self._call():
                block = math.ceil(1000 * min(left, BLOCK_SECONDS))
                found = await self._client.xread({_answer(command_id): "0"}, count=1, block=block)
            if found:
                return str(found[0][1][0][1]["answer"])
        return None

    async def take(self, holder: str) -> tuple[str, str] | None:
        """Wait a moment for a command, and return its identity and text; None when none has come that `holder` may carry out."""
        async with self._call():
            # Lost on the way, it is not taken, and who sent it is told so.
            found = await self._client.blpop([QUEUE], timeout=BLOCK_SECONDS)
            if found is None:
                return None
            command_id = str(found[1])
            command = await self._client.eval(TAKE, 2, _command(command_id), LEASE, holder, KEPT_SECONDS)
        return None if command is None else (command_id, command)

    async def answer(self, command_id: str, text: str) -> None:
        """Leave the answer to a command."""
        async with self._call():
            await self._client.eval(ANSWER, 1, _answer(command_id), text, KEPT_SECONDS)

    async def is_watched(self) -> bool:
        """Tell whether anybody is there to see a picture."""
        async with self._call():
            return bool((await self._client.pubsub_numsub(CHANNEL))[0][1])

    async def show(self, picture: str) -> None:
        """Show a picture to all who are there."""
        async with self._call():
            await self._client.publish(CHANNEL, picture)

    async def pictures(self, seconds: float) -> AsyncGenerator[str, None]:
        """Yield pictures as they come, until none has come for some seconds: then the connection may be dead, and nobody said so."""
        async with self._client.pubsub() as channel:
            async with self._call():
                await channel.subscribe(CHANNEL)
            while True:
                async with self._call():
                    message = await channel.get_message(timeout=seconds)
                if message is None:
                    return
                if message["type"] == "message":
                    yield message["data"]

    async def close(self) -> None:
        """Close the connections."""
        await self._server.close()


def _command(command_id: str) -> str:
    return f"{PREFIX}command:{command_id}"


def _answer(command_id: str) -> str:
    return f"{PREFIX}answer:{command_id}"
