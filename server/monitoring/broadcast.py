"""Events for everybody who watches, as server-sent events.

One task follows the store and writes each event as text once, whoever watches. The last of them are kept, so that a viewer is a place in
their order and no queue: one that does not read holds up nobody, and is given what it missed from the store when it reads again.

Beside the events goes what changes all the time, such as how far a client is: looked at twice a second while somebody watches.

Source: WHATWG, "HTML Living Standard", section 9.2, "Server-sent events", https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from fastapi.sse import format_sse_event
from pydantic_core import to_json

from server.errors import BusyError, NotFoundError, StoreError
from server.monitoring.now import ClientNow, Now
from server.outage import Outage
from server.records import EventRecord
from server.replicas.desk import Desk
from server.signal import Signal
from server.store import Store
from server.tasks import task_group

log = logging.getLogger(__name__)

STATUS_SECONDS = 0.5
"""Time between two looks at what goes on."""

GATHER_SECONDS = 0.1
"""Time in which events gather before the store is asked for them again."""

TELL_SECONDS = 0.5
"""Time in which news gather before viewers are woken again: to wake them all is what they cost."""

HEARTBEAT_SECONDS = 15.0
FOLLOW_SECONDS = 10.0
RETRY_SECONDS = 1.0
"""Time until the store is asked again, when it did not answer; and until a viewer comes back."""

MOST_VIEWERS = 1_000
"""Viewers at a time, each of which takes a connection and its buffers."""

KEPT_COUNT = 2_000
"""Last events that are kept as text."""

PAGE_EVENTS = 200
"""Events that a viewer is given from the store at a time."""


@dataclass(frozen=True, slots=True)
class _Frame:
    event_id: int
    run_id: str
    text: bytes


class Broadcast:
    """Tells viewers what happens. One per process; used from its event loop alone."""

    def __init__(self, store: Store, desk: Desk) -> None:
        self._store = store
        self._desk = desk
        self._changed = Signal()
        self._has_news = asyncio.Event()
        self._frames: deque[_Frame] = deque(maxlen=KEPT_COUNT)
        self._kept_after = self._last_id = 0
        self._pictures = _Pictures()
        self._looking = asyncio.Lock()
        self._watched = asyncio.Event()
        self._viewer_count = 0
        self._is_closed = False
        self._unheard = Outage(log, "the events cannot be followed")
        self._unseen = Outage(log, "what goes on cannot be seen")

    async def serve(self) -> None:
        """Follow the store and what goes on until cancelled."""
        async with task_group() as group:
            group.create_task(self._follow())
            group.create_task(self._look_again())
            group.create_task(self._tell())

    def close(self) -> None:
        """End every view: the process shuts down."""
        self._is_closed = True
        self._changed.notify()

    async def view(self, run_id: str, after: int | None) -> AsyncGenerator[bytes, None]:
        """Yield what a viewer is to read, until `close`.

        Args:
            run_id: The run that it watches; empty for all.
            after: Number of the last event that it has; None for the present.

        Raises:
            BusyError: There are too many viewers.
            StoreError: The store does not answer.
        """
        if self._viewer_count >= MOST_VIEWERS:
            raise BusyError(
                f"Events: at most {MOST_VIEWERS} viewers must read them at a time, got one more. Try again later."
            )
        self._viewer_count += 1
        self._watched.set()
        try:
            last_id = await self._store.last_event_id()
            # A number beyond the last one is from another store.
            after = last_id if after is None else min(after, last_id)
            yield format_sse_event(id=str(after), retry=int(RETRY_SECONDS * 1000))
            await self._look()
            async for text in self._news(run_id, after):
                yield text
        finally:
            self._viewer_count -= 1
            if not self._viewer_count:
                self._watched.clear()

    async def _news(self, run_id: str, after: int) -> AsyncGenerator[bytes, None]:
        clock = asyncio.get_running_loop().time
        seen, quiet_until = None, clock() + HEARTBEAT_SECONDS
        while not self._is_closed:
            text, after = await self._events_after(run_id, after)
            text += self._pictures.since(seen, run_id)
            seen = self._pictures.number
            if not text and clock() >= quiet_until:
                text = format_sse_event(comment="still here")
            if text:
                yield text
                quiet_until = clock() + HEARTBEAT_SECONDS
            # While it was read, more may have come.
            if after >= self._last_id and seen == self._pictures.number and not self._is_closed:
                await self._changed.wait(quiet_until - clock())

    async def _events_after(self, run_id: str, after: int) -> tuple[bytes, int]:
        """Return events with a number above `after`, and the number up to which there are no others."""
        last_id = self._last_id
        if after >= self._kept_after:
            frames = []
            for frame in reversed(self._frames):
                if frame.event_id <= after:
                    break
                if not run_id or frame.run_id == run_id:
                    frames.append(frame.text)
            return b"".join(reversed(frames)), max(after, last_id)
        page = await self._store.events(run_id, after, PAGE_EVENTS)
        end = page[-1].event_id if page else after
        # A page that is not full holds all that there was when the store was asked.
        return b"".join(map(_text, page)), end if len(page) == PAGE_EVENTS else max(end, last_id)

    async def _follow(self) -> None:
        is_begun = False
        while True:
            try:
                if not is_begun:
                    self._kept_after = self._last_id = await self._store.last_event_id()
                    is_begun = True
                self._take(await self._store.follow(self._last_id, FOLLOW_SECONDS))
                self._unheard.end()
                await asyncio.sleep(GATHER_SECONDS)
            except StoreError as error:
                self._unheard.note(error)
                await asyncio.sleep(RETRY_SECONDS)

    def _take(self, events: Sequence[EventRecord]) -> None:
        if not events:
            return
        frames = [_Frame(event.event_id, event.run_id, _text(event)) for event in events]
        for frame in frames:
            if len(self._frames) == KEPT_COUNT:
                self._kept_after = self._frames[0].event_id
            self._frames.append(frame)
        self._last_id = events[-1].event_id
        self._has_news.set()

    async def _tell(self) -> None:
        while True:
            await self._has_news.wait()
            self._has_news.clear()
            self._changed.notify()
            await asyncio.sleep(TELL_SECONDS)

    async def _look_again(self) -> None:
        while True:
            await self._watched.wait()
            await self._look()
            await asyncio.sleep(STATUS_SECONDS)

    async def _look(self) -> None:
        """Take a new picture of what goes on, unless the last is still new."""
        async with self._looking:
            if time.monotonic() < self._pictures.taken + STATUS_SECONDS / 2:
                return
            try:
                now = await self._desk.now()
                changes = await self._changes(now)
            except StoreError as error:
                self._unseen.note(error)
                return
            self._unseen.end()
        if self._pictures.take(now, changes):
            self._has_news.set()

    async def _changes(self, now: Now) -> Now:
        """Return what has changed since the last picture, with what became of runs and clients that are not named any more."""
        before = self._pictures.now
        changes = now.changes(before)
        runs, clients = dict(changes.runs), dict(changes.clients)
        for run_id in before.runs.keys() - now.runs.keys():
            try:
                runs[run_id] = now.run(await self._store.run(run_id))
            except NotFoundError:
                continue
        clients |= {client_id: ClientNow() for client_id in before.clients.keys() - now.clients.keys()}
        return changes.model_copy(update={"runs": runs, "clients": clients})


class _Pictures:
    """The last picture of what goes on, and what was new in it, each written as text once for all viewers of a run.

    Attributes:
        number: How many were taken.
        now: The last.
        taken: When it was taken, by the monotonic clock.
    """

    def __init__(self) -> None:
        self.number = 0
        self.now = Now()
        self.taken = float("-inf")
        self._changes = Now()
        self._before = Now()
        self._texts: dict[tuple[bool, str], bytes] = {}

    def take(self, now: Now, changes: Now) -> bool:
        """Take a picture. Tell whether there is something new in it."""
        self.taken = time.monotonic()
        before, self.now = self.now, now
        if not changes.runs and not changes.clients:
            return False
        self._before, self._changes = before, changes
        self.number += 1
        self._texts.clear()
        return True

    def since(self, seen: int | None, run_id: str) -> bytes:
        """Return what is new to a viewer who has seen the picture of a number, or none."""
        if seen == self.number:
            return b""
        is_whole = seen != self.number - 1
        if (text := self._texts.get((is_whole, run_id))) is None:
            text = self._texts[is_whole, run_id] = self._written(
                self.now if is_whole else self._changes, run_id, is_whole
            )
        return text

    def _written(self, shown: Now, run_id: str, is_whole: bool) -> bytes:
        runs, clients = dict(shown.runs), dict(shown.clients)
        if run_id:
            runs = {key: run for key, run in runs.items() if key == run_id}
            was = self._before.clients
            clients = {
                key: client
                for key, client in clients.items()
                if client.is_of(run_id) or (key in was and was[key].is_of(run_id))
            }
        if not is_whole and not runs and not clients:
            return b""
        return format_sse_event(event="status", data_str=to_json({"runs": runs, "clients": clients}).decode())


def _text(event: EventRecord) -> bytes:
    return format_sse_event(event=event.kind, id=str(event.event_id), data_str=event.model_dump_json())
