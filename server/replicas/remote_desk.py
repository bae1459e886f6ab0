"""The desk of an API replica: the coordinator is another process, perhaps on another host, and is reached through Redis.

The coordinator shows twice a second what goes on, while somebody looks. When it has shown nothing for `SILENCE_SECONDS`, it counts as away.
"""

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence

from server.errors import AwayError, StoreError
from server.monitoring.diary import Entry
from server.monitoring.now import Now
from server.outage import Outage
from server.records import ClientRecord, RunRecord
from server.replicas.letters import Answer, Command, Picture, Verb
from server.store import Store
from server.store.documents import from_document, to_document
from server.store.post import Post
from wire.spec import RunSpec

log = logging.getLogger(__name__)

SILENCE_SECONDS = 3.0
"""Time without a picture after which the coordinator counts as away."""

TAKE_SECONDS = 5.0
"""Time in which the coordinator must take a command; then it is withdrawn."""

ANSWER_SECONDS = 20.0
"""Time in which it must answer a command that it has taken."""

RETRY_SECONDS = 1.0
"""Time until pictures are asked for again, when the store did not answer."""

UNKNOWN = "It may have taken place, or may still: look at the runs before you try again."

NOTHING = Picture(now=Now(), diaries={})


class RemoteDesk:
    """A `Desk` beyond the post. Used from one event loop alone."""

    def __init__(self, store: Store, post: Post) -> None:
        self._store = store
        self._post = post
        self._last = NOTHING
        self._seen = float("-inf")
        self._is_begun = asyncio.Event()
        self._unseen = Outage(log, "what goes on in the coordinator cannot be seen")

    async def serve(self) -> None:
        """Look at what the coordinator shows, until cancelled."""
        while True:
            try:
                async with contextlib.aclosing(self._post.pictures(SILENCE_SECONDS)) as pictures:
                    async for text in pictures:
                        self._unseen.end()
                        self._last = await asyncio.to_thread(from_document, Picture, text)
                        self._seen = _clock()
                        self._is_begun.set()
            except StoreError as error:
                self._unseen.note(error)
                await asyncio.sleep(RETRY_SECONDS)

    async def begin(self) -> None:
        """Wait for the first picture, at most until it is known that none will come."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SILENCE_SECONDS):
                await self._is_begun.wait()

    async def now(self) -> Now:
        """Return what goes on. Raises `StoreError` when it is the store that is away, and not the coordinator."""
        return (await self._picture()).now

    async def clients(self) -> Sequence[ClientRecord]:
        """Return every client that ever joined, by identity. Without a coordinator, none is connected."""
        clients = await self._store.clients()
        if (await self.now()).is_served:
            return clients
        return [client.with_(is_connected=False) for client in clients]

    async def diary(self, run_id: str) -> Mapping[str, Entry]:
        """Return what the clients of a run's open round have done so far."""
        return (await self._picture()).diaries.get(run_id, {})

    async def submit(self, spec: RunSpec) -> RunRecord:
        """Queue a run."""
        return await self._tell(Command(verb=Verb.SUBMIT, spec=spec))

    async def pause(self, run_id: str) -> RunRecord:
        """Pause a run at its last committed round."""
        return await self._tell(Command(verb=Verb.PAUSE, run_id=run_id))

    async def resume(self, run_id: str) -> RunRecord:
        """Queue a paused run again."""
        return await self._tell(Command(verb=Verb.RESUME, run_id=run_id))

    async def stop(self, run_id: str) -> RunRecord:
        """End a run for good."""
        return await self._tell(Command(verb=Verb.STOP, run_id=run_id))

    async def _picture(self) -> Picture:
        if _clock() < self._seen + SILENCE_SECONDS:
            return self._last
        # Silent is the coordinator only if the store speaks.
        await self._store.last_event_id()
        return NOTHING

    async def _tell(self, command: Command) -> RunRecord:
        """Have the coordinator carry out a command.

        Raises:
            AwayError: There is none, or it does not answer in time.
            ChoralError: What the coordinator raised, with nothing changed.
        """
        if not (await self.now()).is_served:
            raise AwayError(
                f"Coordinator: must be running to {command.verb.value} a run, got none that serves this store. "
                "Nothing was changed. Start it with choral serve."
            )
        try:
            text = await self._answer_to(to_document(command))
        except StoreError as error:
            raise AwayError(f"Command {command.verb.value}: its answer was lost. {UNKNOWN} {error}") from error
        answer = await asyncio.to_thread(from_document, Answer, text)
        if answer.failure is not None:
            raise answer.failure.error()
        assert answer.run is not None
        return answer.run

    async def _answer_to(self, command: str) -> str:
        command_id = await self._post.send(command)
        if (text := await self._post.answer_to(command_id, TAKE_SECONDS)) is not None:
            return text
        if await self._post.withdraw(command_id):
            raise AwayError(
                f"Coordinator: must take a command within {TAKE_SECONDS:g} s, and did not. Nothing was changed."
            )
        if (text := await self._post.answer_to(command_id, ANSWER_SECONDS - TAKE_SECONDS)) is not None:
            return text
        raise AwayError(f"Coordinator: must answer a command within {ANSWER_SECONDS:g} s, and did not. {UNKNOWN}")


def _clock() -> float:
    return asyncio.get_running_loop().time()
