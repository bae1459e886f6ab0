"""Places for uploads (law L4) and what ends an upload before its time."""

import asyncio
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.aggregation import WeightedMean
from server.clients.transfers import Interruption, Key, Places, Reception, Transfers
from server.inbox import Binding, Inbox
from server.model import Model
from server.signal import Signal
from wire.grid import Grid
from wire.memory import VectorPool
from wire.slices import Assembly
from wire.tensors import Entry, Layout

BYTES = 8


def key_of(name: str, run_id: str = "run") -> Key:
    return (name, run_id, 1, b"", BYTES)


def new_buffer() -> memoryview:
    return memoryview(bytearray(BYTES))


async def settle() -> None:
    """Let everything run that can run."""
    for _ in range(10):
        await asyncio.sleep(0)


class Uploads:
    """Uploads that hold a place until they are told how to leave."""

    def __init__(self, count: int) -> None:
        self.places = Places(count)
        self.count = count
        self.buffers: weakref.WeakSet[Assembly] = weakref.WeakSet()
        self.held: list[str] = []
        self.queue: list[str] = []
        self.offsets: dict[str, int] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._leave: dict[str, asyncio.Future[str]] = {}

    async def start(self, name: str, client: str | None = None) -> None:
        """Begin an upload of a client, and let it come as far as it can."""
        self._leave[name] = asyncio.get_running_loop().create_future()
        self._tasks[name] = asyncio.create_task(self._hold(name, key_of(client or name)))
        await settle()

    async def leave(self, name: str, how: str = "finish") -> None:
        """Let an upload end: "finish", "park" or "cancel"."""
        if how == "cancel":
            self._tasks[name].cancel()
        else:
            self._leave[name].set_result(how)
        await asyncio.wait([self._tasks.pop(name)])
        await settle()

    async def end(self) -> None:
        """Cancel whatever is left."""
        for name in list(self._tasks):
            await self.leave(name, "cancel")

    def check(self) -> None:
        """Check what holds at every moment."""
        assert len(self.buffers) <= self.count
        assert len(self.held) <= self.count
        assert not self.queue or len(self.held) == self.count

    async def _hold(self, name: str, key: Key) -> None:
        self.queue.append(name)
        try:
            async with self.places.take(key, bytes(32), new_buffer) as assembly:
                self.buffers.add(assembly)
                if assembly.received_bytes == 0:
                    assert self.queue[0] == name, f"{name} went before {self.queue}"
                self.queue.remove(name)
                self.held.append(name)
                self.offsets[name] = assembly.received_bytes
                try:
                    if await self._leave[name] == "park":
                        if not assembly.is_complete:
                            assembly.write(assembly.received_bytes, b"x")
                        self.places.park(key, assembly)
                finally:
                    self.held.remove(name)
        finally:
            if name in self.queue:
                self.queue.remove(name)


@asynccontextmanager
async def uploading(count: int) -> AsyncIterator[Uploads]:
    uploads = Uploads(count)
    yield uploads
    uploads.check()
    await uploads.end()
    # Nothing leaked: all places are there, and no more.
    uploads.places.clear("run")
    for index in range(count + 1):
        await uploads.start(f"last-{index}")
    assert uploads.held == [f"last-{index}" for index in range(count)]
    await uploads.end()


async def test_take_lends_no_more_than_count_and_lets_the_next_in_order_of_arrival() -> None:
    async with uploading(2) as uploads:
        for name in "abcd":
            await uploads.start(name)
        assert (uploads.held, uploads.queue) == (["a", "b"], ["c", "d"])
        await uploads.leave("b")
        assert (uploads.held, uploads.queue) == (["a", "c"], ["d"])
        await uploads.leave("a", "cancel")
        assert (uploads.held, uploads.queue) == (["c", "d"], [])


async def test_park_keeps_the_buffer_for_the_same_client_and_leaves_the_other_place_free() -> None:
    async with uploading(2) as uploads:
        await uploads.start("a")
        await uploads.leave("a", "park")
        assert len(uploads.buffers) == 1
        await uploads.start("b")
        await uploads.start("a-again", client="a")
        assert uploads.offsets == {"a": 0, "b": 0, "a-again": 1}


async def test_take_evicts_the_longest_parked_for_one_that_waits() -> None:
    async with uploading(2) as uploads:
        for name in "ab":
            await uploads.start(name)
        for name in "ba":
            await uploads.leave(name, "park")
        await uploads.start("c")
        assert uploads.held == ["c"]
        assert len(uploads.buffers) == 2
        await uploads.start("a-again", client="a")
        assert uploads.offsets["a-again"] == 1
        await uploads.leave("c")
        await uploads.start("b-again", client="b")
        assert uploads.offsets["b-again"] == 0


async def test_park_gives_the_place_away_when_somebody_waits() -> None:
    async with uploading(1) as uploads:
        await uploads.start("a")
        await uploads.start("b")
        await uploads.leave("a", "park")
        assert uploads.held == ["b"]
        assert len(uploads.buffers) == 1


@pytest.mark.parametrize("how", ["finish", "park", "cancel"])
async def test_park_of_an_older_upload_of_the_same_contribution_costs_no_place(how: str) -> None:
    async with uploading(2) as uploads:
        await uploads.start("a")
        await uploads.start("a-again", client="a")
        await uploads.leave("a", "park")
        await uploads.leave("a-again", how)


async def test_take_cancelled_after_its_turn_was_passed_over_leaks_nothing() -> None:
    async with uploading(1) as uploads:
        for name in "abc":
            await uploads.start(name)
        # Both in one turn of the loop: the place of "a" is freed while "b" has been cancelled and does not know it yet.
        for name in "ab":
            uploads._tasks[name].cancel()
        await settle()
        assert uploads.held == ["c"]
        for name in "ab":
            with pytest.raises(asyncio.CancelledError):
                await uploads._tasks.pop(name)


async def test_take_cancelled_in_its_turn_passes_the_place_on() -> None:
    async with uploading(1) as uploads:
        for name in "abc":
            await uploads.start(name)
        uploads._tasks["a"].cancel()
        # Two turns: "a" frees its place, and "b" is told, but does not run yet.
        await asyncio.sleep(0)
        uploads._tasks["b"].cancel()
        await settle()
        assert uploads.held == ["c"]
        for name in "ab":
            await asyncio.wait([uploads._tasks.pop(name)])


async def test_clear_drops_what_is_parked_for_one_run() -> None:
    places = Places(2)
    for run_id in ("run", "other"):
        async with places.take(key_of("a", run_id), bytes(32), new_buffer) as assembly:
            assembly.write(0, b"xy")
            places.park(key_of("a", run_id), assembly)
    places.clear("run")
    async with places.take(key_of("a"), bytes(32), new_buffer) as assembly:
        assert assembly.received_bytes == 0
        async with places.take(key_of("a", "other"), bytes(32), new_buffer) as kept:
            assert kept.received_bytes == 2


async def test_take_without_memory_gives_the_place_back() -> None:
    def too_large() -> memoryview:
        return VectorPool().take(1 << 60).data

    places = Places(1)
    with pytest.raises(MemoryError):
        async with places.take(key_of("a"), bytes(32), too_large):
            pass
    async with asyncio.timeout(1), places.take(key_of("a"), bytes(32), new_buffer):
        pass


actions = st.lists(
    st.one_of(
        st.tuples(st.just("start"), st.sampled_from("abc")),
        st.tuples(st.sampled_from(["finish", "park", "cancel"]), st.integers(0, 10)),
    ),
    max_size=40,
)


@given(count=st.integers(1, 3), steps=actions)
def test_places_never_exceed_count_keep_the_order_and_leak_nothing(
    count: int, steps: list[tuple[str, str | int]]
) -> None:
    async def play() -> None:
        async with uploading(count) as uploads:
            for number, (verb, argument) in enumerate(steps):
                candidates = uploads.held + (uploads.queue if verb == "cancel" else [])
                if isinstance(argument, str):
                    await uploads.start(f"{argument}{number}", client=argument)
                elif candidates:
                    await uploads.leave(candidates[argument % len(candidates)], verb)
                uploads.check()

    asyncio.run(play())


# --- What ends an upload ---


def make_inbox(run_id: str = "run", *invited: str) -> Inbox:
    binding = Binding(run_id, 1, bytes(32), bytes(32))
    return Inbox(binding, invited or ("ana",), WeightedMean(Grid(1.0, 1, 1), 2), Signal(), VectorPool())


class Attempt:
    """An upload of one client that is under way."""

    def __init__(self, transfers: Transfers, inbox: Inbox, client_id: str = "ana") -> None:
        self.upload: Reception | None = None
        self.finish = asyncio.Event()
        self.task = asyncio.create_task(self._receive(transfers, inbox, client_id))

    async def _receive(self, transfers: Transfers, inbox: Inbox, client_id: str) -> None:
        async with transfers.upload(client_id, inbox) as self.upload:
            await self.finish.wait()

    async def ended_by(self) -> Interruption:
        """Return what interrupted it."""
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await self.task
        assert self.upload is not None
        return self.upload.interruption


async def test_upload_of_a_closing_round_ends_at_once_and_is_not_resumable() -> None:
    transfers = Transfers(2, 2)
    inbox, other = make_inbox("run"), make_inbox("other", "ben")
    with transfers.receive(other):
        staying = Attempt(transfers, other, "ben")
        with transfers.receive(inbox):
            assert transfers.is_open(inbox)
            attempt = Attempt(transfers, inbox)
            await settle()
        assert not transfers.is_open(inbox)
        assert await attempt.ended_by() is Interruption.CLOSED
        assert attempt.upload is not None
        assert not attempt.upload.is_resumable
        assert not staying.task.done()
        staying.finish.set()
        await staying.task


async def test_upload_ends_for_a_newer_one_that_begins_when_it_has_left() -> None:
    transfers = Transfers(2, 2)
    inbox = make_inbox()
    older = Attempt(transfers, inbox)
    await settle()
    attempts = [Attempt(transfers, inbox) for _ in range(3)]
    assert await older.ended_by() is Interruption.SUPERSEDED
    assert older.upload is not None
    assert older.upload.is_resumable
    # The newest wins.
    for attempt in attempts[:-1]:
        assert await attempt.ended_by() is Interruption.SUPERSEDED
    await settle()
    assert not attempts[-1].task.done()
    attempts[-1].finish.set()
    await attempts[-1].task


async def test_upload_that_is_finished_is_left_alone_and_the_newer_one_waits_for_its_end() -> None:
    transfers = Transfers(2, 2)
    inbox = make_inbox()
    with transfers.receive(inbox):
        older = Attempt(transfers, inbox)
        await settle()
        assert older.upload is not None
        older.upload.finish()
        newer = Attempt(transfers, inbox)
        await settle()
        assert newer.upload is None
        assert not older.task.done()
    await settle()
    assert not older.task.done()
    older.finish.set()
    await older.task
    await settle()
    assert newer.upload is not None
    newer.finish.set()
    await newer.task


async def test_upload_beyond_its_allowance_is_slow_and_not_resumable() -> None:
    attempt = Attempt(Transfers(2, 2), make_inbox())
    await settle()
    assert attempt.upload is not None
    attempt.upload.allow(100)
    attempt.upload.allow(0.01)
    assert await attempt.ended_by() is Interruption.SLOW
    assert not attempt.upload.is_resumable


async def test_upload_whose_task_is_cancelled_is_resumable() -> None:
    attempt = Attempt(Transfers(2, 2), make_inbox())
    await settle()
    attempt.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attempt.task
    assert attempt.upload is not None
    assert attempt.upload.is_resumable


@pytest.mark.parametrize("second", [Interruption.CLOSED, Interruption.SUPERSEDED])
async def test_interrupt_twice_keeps_the_first_reason(second: Interruption) -> None:
    attempt = Attempt(Transfers(2, 2), make_inbox())
    await settle()
    assert attempt.upload is not None
    attempt.upload.interrupt(Interruption.CLOSED)
    attempt.upload.interrupt(second)
    attempt.upload.allow(100)
    assert await attempt.ended_by() is Interruption.CLOSED
    attempt.upload.interrupt(second)
    assert attempt.upload.interruption is Interruption.CLOSED


def test_inbox_for_is_that_of_the_named_run_else_of_the_run_that_asked() -> None:
    transfers = Transfers(2, 2)
    run, other = make_inbox("run", "ana"), make_inbox("other", "ben")
    with transfers.receive(run), transfers.receive(other):
        assert transfers.inbox_for("ana", "run") is run
        assert transfers.inbox_for("ana", "other") is other
        assert transfers.inbox_for("ben", "gone") is other
        assert transfers.inbox_for("zoe", "gone") is None
    assert transfers.inbox_for("ana", "run") is None


@contextmanager
def offered(transfers: Transfers) -> Iterator[Model]:
    layout = Layout((Entry("weight", (2,), "float32", 0),))
    model = Model.of(np.array([1, 2], dtype=np.float32), layout, {}, {})
    with transfers.publish(model):
        yield model


def test_publish_offers_a_model_as_long_as_anyone_does() -> None:
    transfers = Transfers(2, 2)
    with offered(transfers) as model:
        with offered(transfers):
            assert bytes(transfers.model(model.sha256) or b"") == model.vector.tobytes()
        assert bytes(transfers.model(model.sha256) or b"") == model.vector.tobytes()
        assert transfers.model(bytes(32)) is None
    assert transfers.model(model.sha256) is None
