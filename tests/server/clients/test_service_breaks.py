"""Uploads whose connection breaks: parked, never half-added, and resumed where they stopped."""

import asyncio
import contextlib
import gc
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from server import inbox
from server.aggregation import WeightedMean
from server.coordinator import Coordinator
from server.model import ModelShop
from server.records import RunRecord, RunState
from tests.federation import Process
from tests.hostile import (
    HALF_SENT,
    Session,
    Upload,
    client_id,
    drawn_vector,
    joined,
)
from tests.loopback import (
    WAIT_SECONDS,
    absent,
    committed_round,
    everyone,
    exact_model,
    model_after,
    rest,
    run_in_state,
    serving,
    small_spec,
    until,
)
from wire import federation_pb2 as pb
from wire.frames import Part
from wire.slices import Assembly
from wire.tensors import Vector

SIZE = 67


@pytest.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[Coordinator]:
    async with serving(tmp_path) as coordinator:
        yield coordinator


@contextlib.asynccontextmanager
async def half_uploaded(
    coordinator: Coordinator, key: Ed25519PrivateKey
) -> AsyncIterator[tuple[Session, Upload, pb.Task]]:
    """Join, take the task and upload half of vector 2, in slices that have arrived."""
    async with joined(coordinator.address, key) as session:
        task = await session.task()
        data = drawn_vector(2, SIZE).tobytes()
        upload = session.upload()
        assert await upload.begin(session.header(task, data)) == 0
        await upload.slices(data, 0, 134, size=10)
        yield session, upload, task


async def killed_process(coordinator: Coordinator, key: Ed25519PrivateKey) -> None:
    """Let a process upload half of vector 2, and kill it."""
    command = [sys.executable, "-m", "tests.hostile", coordinator.address, key.private_bytes_raw().hex(), "2"]
    process = await asyncio.to_thread(Process, command, Path(os.devnull), is_forked=True)

    async def half_sent() -> bool:
        assert process.is_alive, process.output
        served = coordinator.sessions.by_client(client_id(key))
        return served is not None and served.progress is not None and served.progress.fraction == HALF_SENT

    try:
        await until(half_sent, "half of the contribution")
    finally:
        await asyncio.to_thread(process.kill)


async def cancelled_call(coordinator: Coordinator, key: Ed25519PrivateKey) -> None:
    """Upload half of vector 2, break the call off, and leave."""
    async with half_uploaded(coordinator, key) as (session, upload, task):
        await settled_progress(coordinator, session, task)
        upload.abort()


async def closed_channel(coordinator: Coordinator, key: Ed25519PrivateKey) -> None:
    """Upload half of vector 2, and close the connection under it."""
    async with half_uploaded(coordinator, key) as (session, _, task):
        await settled_progress(coordinator, session, task)


async def settled_progress(coordinator: Coordinator, session: Session, task: pb.Task) -> None:
    """Wait until the coordinator has heard what was sent up to now on this connection."""
    progress = pb.Progress(task_id=task.task_id, phase=pb.PHASE_UPLOADING, fraction=HALF_SENT)
    await session.send(pb.JoinRequest(progress=progress))

    async def heard() -> bool:
        served = coordinator.sessions.by_client(session.client_id)
        return served is not None and served.progress is not None

    await until(heard, "the progress to be heard")


@pytest.mark.parametrize("break_off", [killed_process, cancelled_call, closed_channel])
async def test_upload_of_a_broken_connection_is_parked_and_goes_on_where_it_stopped(
    break_off: Callable[[Coordinator, Ed25519PrivateKey], Any], coordinator: Coordinator, tmp_path: Path
) -> None:
    key = Ed25519PrivateKey.generate()
    vectors = [drawn_vector(client, SIZE) for client in range(3)]
    async with everyone([joined(coordinator.address) for _ in range(2)]) as sessions:
        run = await coordinator.runs.submit(small_spec(rounds=1, cohort={"quorum": 3}))
        await break_off(coordinator, key)
        await absent(coordinator, client_id(key))
        assert (await rest(coordinator, f"/runs/{run.run_id}"))["status"].startswith(
            "round 1: train: waiting for 3 of 3 updates"
        )
        for client, session in enumerate(sessions):
            await session.contribute(await session.task(), vectors[client], weight=1 + client)
        async with joined(coordinator.address, key) as again:
            task, data = await again.task(), vectors[2].tobytes()
            upload = again.upload()
            offset = await upload.begin(again.header(task, data, weight=3))
            assert offset is not None
            assert 0 < offset <= 134
            await upload.slices(data, offset)
            assert (await upload.verdict()).reason == pb.REFUSAL_REASON_UNSPECIFIED
        await run_in_state(coordinator, run.run_id, RunState.FINISHED)
    record = await coordinator.store.round(run.run_id, 1)
    assert record.refusals == []
    assert len(record.contributions) == 3
    base = ModelShop(run.spec).initial().vector
    expected = exact_model(run.spec, base, [(vector, 1 + client) for client, vector in enumerate(vectors)], 3)
    assert model_after(tmp_path, run, 1).vector.tobytes() == expected.tobytes()


async def test_upload_holds_no_slice_that_is_written_while_it_waits_for_the_next(coordinator: Coordinator) -> None:
    await coordinator.runs.submit(small_spec(cohort={"size": 1, "quorum": 1}))

    async def half_received() -> bool:
        return any(type(found) is Assembly and found.received_bytes == 134 for found in gc.get_objects())

    async with half_uploaded(coordinator, Ed25519PrivateKey.generate()):
        await until(half_received, "half of the contribution")
        assert not any(type(found) is Part for found in gc.get_objects())


async def test_upload_half_received_never_touches_the_sum(coordinator: Coordinator, tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    parts = [(drawn_vector(client, SIZE), 1 + client) for client in range(2)]
    async with everyone([joined(coordinator.address) for _ in range(2)]) as sessions:
        run = await coordinator.runs.submit(small_spec(cohort={"return_seconds": 0.2}))
        await cancelled_call(coordinator, key)
        for session, (vector, weight) in zip(sessions, parts, strict=True):
            await session.contribute(await session.task(), vector, weight=weight)
        record = await committed_round(coordinator, run.run_id, 1)
    assert len(record.selected) == 3
    assert [part.client_id for part in record.contributions] == sorted(session.client_id for session in sessions)
    assert record.refusals == []
    expected = exact_model(run.spec, ModelShop(run.spec).initial().vector, parts, 3)
    assert model_after(tmp_path, run, 1).vector.tobytes() == expected.tobytes()


async def test_upload_that_follows_an_undead_one_takes_its_bytes_over(coordinator: Coordinator) -> None:
    key = Ed25519PrivateKey.generate()
    async with everyone([joined(coordinator.address) for _ in range(2)]) as sessions:
        run = await coordinator.runs.submit(small_spec(rounds=1, cohort={"quorum": 3}))
        async with contextlib.AsyncExitStack() as stack:
            session, older, task = await stack.enter_async_context(half_uploaded(coordinator, key))
            await settled_progress(coordinator, session, task)
            # The older connection is still open, as after a break that nobody has told the coordinator of.
            again = await stack.enter_async_context(joined(coordinator.address, key))
            data = drawn_vector(2, SIZE).tobytes()
            newer = again.upload()
            offset = await newer.begin(again.header(await again.task(), data))
            assert offset is not None
            assert 0 < offset <= 134
            superseded = await older.verdict()
            assert superseded.reason == pb.REFUSAL_REASON_DUPLICATE
            assert superseded.detail == "a newer upload has taken this one's place"
            await newer.slices(data, offset)
            assert (await newer.verdict()).reason == pb.REFUSAL_REASON_UNSPECIFIED
            for other in sessions:
                verdict = await other.contribute(await other.task(), drawn_vector(1, SIZE))
                assert verdict.reason == pb.REFUSAL_REASON_UNSPECIFIED
            await run_in_state(coordinator, run.run_id, RunState.FINISHED)
    record = await coordinator.store.round(run.run_id, 1)
    assert record.refusals == []


async def brings_it_again(again: Session, task: pb.Task) -> pb.UploadVerdict:
    """Send the header of vector 2 once more, and return the verdict, which must come in place of the grant."""
    upload = again.upload()
    assert await upload.begin(again.header(task, drawn_vector(2, SIZE).tobytes())) is None
    return await upload.verdict()


async def finished_with_all(coordinator: Coordinator, run: RunRecord, others: list[Session]) -> None:
    """Let the others contribute, and check that the round has all three contributions and no refusal."""
    for other in others:
        await other.contribute(await other.task(), drawn_vector(1, SIZE))
    await run_in_state(coordinator, run.run_id, RunState.FINISHED)
    record = await coordinator.store.round(run.run_id, 1)
    assert record.refusals == []
    assert len(record.contributions) == 3


async def test_upload_whose_verdict_is_lost_hears_it_in_place_of_the_grant(coordinator: Coordinator) -> None:
    key = Ed25519PrivateKey.generate()
    async with everyone([joined(coordinator.address) for _ in range(2)]) as others:
        run = await coordinator.runs.submit(small_spec(rounds=1, cohort={"quorum": 3}))

        async def is_in() -> bool:
            return "waiting for 2 of 3 updates" in (await rest(coordinator, f"/runs/{run.run_id}"))["status"]

        async with half_uploaded(coordinator, key) as (_, upload, task):
            await upload.slices(drawn_vector(2, SIZE).tobytes(), 134)
            await until(is_in, "the contribution to be in the sum")
        async with joined(coordinator.address, key) as again:
            assert await brings_it_again(again, task) == pb.UploadVerdict()
        await finished_with_all(coordinator, run, others)


async def test_upload_brought_again_while_it_is_added_waits_for_that(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, is_adding, may_add = WeightedMean.add, threading.Event(), threading.Event()

    def held_add(total: WeightedMean, vector: Vector, weight: int) -> None:
        is_adding.set()
        assert may_add.wait(WAIT_SECONDS)
        add(total, vector, weight)

    monkeypatch.setattr(WeightedMean, "add", held_add)
    # In a thread, as a large one is.
    monkeypatch.setattr(inbox, "AT_ONCE", 0)
    key = Ed25519PrivateKey.generate()
    async with everyone([joined(coordinator.address) for _ in range(2)]) as others:
        run = await coordinator.runs.submit(small_spec(rounds=1, cohort={"quorum": 3}))
        async with half_uploaded(coordinator, key) as (_, upload, task):
            await upload.slices(drawn_vector(2, SIZE).tobytes(), 134)
            assert await asyncio.to_thread(is_adding.wait, WAIT_SECONDS)
        async with joined(coordinator.address, key) as again:
            bringing = asyncio.create_task(brings_it_again(again, task))
            await asyncio.wait([bringing], timeout=0.2)
            assert not bringing.done()
            may_add.set()
            assert await bringing == pb.UploadVerdict()
        await finished_with_all(coordinator, run, others)
