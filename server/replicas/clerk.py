"""The coordinator's side of the post: it carries out what API replicas ask for, and shows them what goes on while there are any."""

import asyncio
import logging

from server.errors import StoreError
from server.outage import Outage
from server.records import RunRecord
from server.replicas.desk import Desk
from server.replicas.letters import Answer, Command, Failure, Picture, Verb
from server.store.documents import from_document, to_document
from server.store.post import Post
from server.tasks import task_group
from wire.errors import ChoralError

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
"""Time between two pictures."""

RETRY_SECONDS = 1.0
"""Time until the post is asked again, when it did not answer."""

PLACES = 4
"""Commands that are carried out at a time. One may have to wait until a run has ended its work."""


class Clerk:
    """Does what comes by post at the coordinator's own desk. Used from its event loop alone."""

    def __init__(self, post: Post, desk: Desk, holder: str) -> None:
        """Take commands in the name of `holder`, and only while it has the lease."""
        self._post = post
        self._desk = desk
        self._holder = holder
        self._untaken = Outage(log, "commands of API replicas cannot be taken or answered")
        self._unshown = Outage(log, "what goes on cannot be shown to API replicas")

    async def serve(self) -> None:
        """Work until cancelled."""
        async with task_group() as group:
            group.create_task(self._show())
            for _ in range(PLACES):
                group.create_task(self._work())

    async def _work(self) -> None:
        while True:
            try:
                if (taken := await self._post.take(self._holder)) is not None:
                    command_id, text = taken
                    await self._post.answer(command_id, to_document(await self._answer(text)))
                self._untaken.end()
            except StoreError as error:
                self._untaken.note(error)
                await asyncio.sleep(RETRY_SECONDS)

    async def _answer(self, text: str) -> Answer:
        try:
            return Answer(run=await self._carry_out(await asyncio.to_thread(from_document, Command, text)))
        except ChoralError as error:
            return Answer(failure=Failure.of(error))
        except Exception as error:
            log.exception("a command of an API replica: unexpected error")
            return Answer(failure=Failure.of(error))

    async def _carry_out(self, command: Command) -> RunRecord:
        match command.verb:
            case Verb.SUBMIT:
                assert command.spec is not None
                return await self._desk.submit(command.spec)
            case Verb.PAUSE:
                return await self._desk.pause(command.run_id)
            case Verb.RESUME:
                return await self._desk.resume(command.run_id)
            case Verb.STOP:
                return await self._desk.stop(command.run_id)

    async def _show(self) -> None:
        while True:
            try:
                if await self._post.is_watched():
                    await self._post.show(to_document(await self._picture()))
                self._unshown.end()
            except StoreError as error:
                self._unshown.note(error)
            await asyncio.sleep(LOOK_SECONDS)

    async def _picture(self) -> Picture:
        now = await self._desk.now()
        return Picture(now=now, diaries={run_id: await self._desk.diary(run_id) for run_id in now.runs})
