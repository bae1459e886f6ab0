"""Law L5: whatever one client brings, it is refused with its reason in the round's record, and the mean is that of the others.

A real coordinator, real sockets, and clients that speak the contract themselves; the expected model is worked out in fractions.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from server.coordinator import Coordinator
from server.errors import reason_name
from server.model import ModelShop
from server.records import RunRecord, RunState
from tests.hostile import Session, drawn_vector, joined
from tests.loopback import (
    Part,
    committed_round,
    everyone,
    exact_model,
    model_after,
    run_in_state,
    serving,
    small_spec,
    until,
)
from wire import federation_pb2 as pb
from wire.protocol import MESSAGE_LIMIT_BYTES, SLICE_BYTES
from wire.tensors import Vector

SIZE = 67
BYTES = 4 * SIZE
WEIGHTS = (3, 5, 7, 2)

Act = Callable[[Session, pb.Task], Awaitable[pb.UploadVerdict]]


def honest_vector(client: int, round_number: int) -> Vector:
    return drawn_vector(100 * round_number + client, SIZE)


def with_value(value: float) -> Vector:
    vector = honest_vector(2, 1)
    vector[40] = value
    return vector


@dataclass
class Scene:
    """A round under way: its clients have their tasks, and nobody has contributed."""

    coordinator: Coordinator
    folder: Path
    run: RunRecord
    sessions: list[Session]
    tasks: list[pb.Task]

    async def contribute(self, client: int, number: int = 1) -> Part:
        """Let one client bring what it should."""
        vector, weight = honest_vector(client, number), WEIGHTS[client]
        verdict = await self.sessions[client].contribute(self.tasks[client], vector, weight=weight)
        assert verdict.reason == pb.REFUSAL_REASON_UNSPECIFIED, verdict.detail
        return vector, weight

    async def next_round(self) -> None:
        """Wait until everyone has a task again."""
        self.tasks = [await session.task() for session in self.sessions]

    def vector_after(self, number: int) -> Vector:
        """Return the committed model."""
        return model_after(self.folder, self.run, number).vector

    def expected(self, base: Vector, *parts: Part) -> bytes:
        """Return the bytes of the model that these parts make of `base`."""
        return exact_model(self.run.spec, base, parts, len(self.sessions)).tobytes()

    async def plays_on(self, base: Vector) -> None:
        """Play the second round with everyone, and check that it ends as it should."""
        await self.next_round()
        assert {task.round for task in self.tasks} == {2}
        parts = [await self.contribute(client, 2) for client in range(len(self.sessions))]
        run = await run_in_state(self.coordinator, self.run.run_id, RunState.FINISHED)
        second = await self.coordinator.store.round(run.run_id, 2)
        assert second.refusals == []
        assert self.vector_after(2).tobytes() == self.expected(base, *parts)


@contextlib.asynccontextmanager
async def started(folder: Path, **config: Any) -> AsyncIterator[Scene]:
    async with (
        serving(folder, **config) as coordinator,
        everyone([joined(coordinator.address) for _ in range(3)]) as sessions,
    ):
        run = await coordinator.runs.submit(small_spec())
        tasks = [await session.task() for session in sessions]
        yield Scene(coordinator, folder, run, sessions, tasks)


def initial_vector() -> Vector:
    return ModelShop(small_spec()).initial().vector


def vector_of(value: float) -> Act:
    return lambda session, task: session.contribute(task, with_value(value))


def header_with(**changes: Any) -> Act:
    return lambda session, task: session.contribute(task, honest_vector(2, 1), **changes)


def steps(*parts: tuple[int, bytes] | bytes, close: bool = False) -> Act:
    """Open an upload as it should be, then send slices (offset, data) and raw bytes as they are given."""

    async def act(session: Session, task: pb.Task) -> pb.UploadVerdict:
        upload = session.upload()
        assert await upload.begin(session.header(task, honest_vector(2, 1).tobytes())) == 0
        for part in parts:
            await (upload.send(part) if isinstance(part, bytes) else upload.slice(*part))
        if close:
            await upload.close()
        return await upload.verdict()

    return act


def flipped_bit() -> Act:
    data = bytearray(honest_vector(2, 1).tobytes())
    data[100] ^= 0x10
    return steps((0, bytes(data[:200])), (200, bytes(data[200:])))


HONEST = honest_vector(2, 1).tobytes()
WRONG_SHA256 = bytes(32)
OPEN_SLICE = pb.UploadRequest(slice=pb.Slice(offset=0, data=HONEST[:10]))

CASES = [
    pytest.param(vector_of(np.nan), "not_finite", "finite, got nan", id="nan"),
    pytest.param(vector_of(np.inf), "not_finite", "finite, got inf", id="infinity"),
    pytest.param(vector_of(-np.inf), "not_finite", "finite, got inf", id="minus-infinity"),
    pytest.param(vector_of(128.25), "out_of_range", "at most 128 in magnitude, got 128.25", id="out-of-range"),
    pytest.param(vector_of(-3e38), "out_of_range", r"at most 128 in magnitude, got 3e\+38", id="far-out-of-range"),
    pytest.param(
        header_with(layout_sha256=WRONG_SHA256), "wrong_layout", "layout must be .*, got 0{16}", id="wrong-layout"
    ),
    pytest.param(header_with(layout_sha256=b""), "wrong_layout", "layout must be .*, got none", id="no-layout"),
    pytest.param(
        header_with(base_sha256=WRONG_SHA256), "wrong_base", "base model must be .*, got 0{16}", id="wrong-base"
    ),
    pytest.param(header_with(base_sha256=b""), "wrong_base", "base model must be .*, got none", id="no-base"),
    pytest.param(header_with(total_bytes=BYTES + 4), "wrong_size", f"must be {BYTES}, got {BYTES + 4}", id="oversize"),
    pytest.param(
        header_with(total_bytes=2**64 - 1), "wrong_size", f"must be {BYTES}, got {2**64 - 1}", id="absurd-size"
    ),
    pytest.param(header_with(total_bytes=BYTES - 4), "wrong_size", f"must be {BYTES}, got {BYTES - 4}", id="undersize"),
    pytest.param(header_with(weight=0), "wrong_weight", "weight must be 1 to 1048576, got 0", id="no-weight"),
    pytest.param(header_with(weight=2**64 - 1), "wrong_weight", f"got {2**64 - 1}", id="huge-weight"),
    pytest.param(header_with(encoding=0), "malformed", "encoding must be FLOAT32, got 0", id="no-encoding"),
    pytest.param(header_with(encoding=999), "malformed", "encoding must be FLOAT32, got 999", id="unknown-encoding"),
    pytest.param(header_with(sha256=b"short"), "malformed", "sha256 must be 32 bytes, got 5", id="short-sha256"),
    pytest.param(header_with(sha256=WRONG_SHA256), "corrupted", "SHA-256 must be 0{64}, got", id="wrong-sha256"),
    pytest.param(flipped_bit(), "corrupted", "SHA-256 must be .*, got", id="bit-flipped"),
    pytest.param(steps(close=True), "truncated", f"must have {BYTES} bytes, .* after 0$", id="truncated-to-nothing"),
    pytest.param(
        steps((0, HONEST[:200]), close=True), "truncated", f"must have {BYTES} bytes, .* after 200$", id="truncated"
    ),
    pytest.param(steps((0, HONEST[:8]), (4, HONEST[4:])), "malformed", "offset must be 8, got 4", id="slice-overlaps"),
    pytest.param(steps((8, HONEST[8:])), "malformed", "offset must be 0, got 8", id="slice-leaves-a-gap"),
    pytest.param(steps((2**64 - 1, HONEST)), "malformed", f"offset must be 0, got {2**64 - 1}", id="slice-far-off"),
    pytest.param(steps((0, b"")), "malformed", f"length must be 1 to {SLICE_BYTES} bytes, got 0", id="slice-empty"),
    pytest.param(
        steps((0, HONEST + b"more")), "malformed", f"at most {BYTES}, got {BYTES + 4}", id="slice-past-the-end"
    ),
    pytest.param(steps((0, bytes(SLICE_BYTES + 1))), "malformed", f"got {SLICE_BYTES + 1}", id="slice-too-large"),
    pytest.param(steps(b""), "malformed", "every message after the header must be a slice", id="empty-message"),
    pytest.param(steps(b"\xff" * 50), "malformed", "must be well-formed protobuf", id="garbage"),
    pytest.param(
        steps(OPEN_SLICE.SerializeToString()[:-1]), "malformed", "must be well-formed protobuf", id="cut-message"
    ),
]


@pytest.mark.parametrize(("act", "reason", "detail"), CASES)
async def test_round_bad_contribution_is_refused_and_mean_is_that_of_the_others(
    act: Act, reason: str, detail: str, tmp_path: Path
) -> None:
    async with started(tmp_path) as scene:
        verdict = await act(scene.sessions[2], scene.tasks[2])
        assert reason_name(verdict.reason) == reason
        assert re.search(detail, verdict.detail)
        parts = [await scene.contribute(0), await scene.contribute(1)]
        record = await committed_round(scene.coordinator, scene.run.run_id, 1)
        refused = [(refusal.client_id, refusal.reason, refusal.detail) for refusal in record.refusals]
        assert refused == [(scene.sessions[2].client_id, reason, verdict.detail)]
        assert record.metrics[f"refused_{reason}"] == 1.0
        contributors = {part.client_id: part.weight for part in record.contributions}
        assert contributors == {scene.sessions[0].client_id: 3, scene.sessions[1].client_id: 5}
        assert scene.vector_after(1).tobytes() == scene.expected(initial_vector(), *parts)
        await scene.plays_on(scene.vector_after(1))


@pytest.mark.parametrize(
    ("changes", "reason", "detail"),
    [
        pytest.param({"round": 2}, "wrong_round", "round must be 1, got 2", id="later-round"),
        pytest.param({"round": 0}, "wrong_round", "round must be 1, got 0", id="no-round"),
        pytest.param({"round": 2**32 - 1}, "wrong_round", f"got {2**32 - 1}", id="absurd-round"),
        pytest.param({"run_id": "another"}, "wrong_run", "got another", id="another-run"),
        pytest.param({"run_id": "x" * 5000}, "wrong_run", "got x{900}", id="long-run"),
    ],
)
async def test_round_contribution_of_another_round_is_refused_and_the_right_one_still_counts(
    changes: dict[str, Any], reason: str, detail: str, tmp_path: Path
) -> None:
    async with started(tmp_path) as scene:
        verdict = await header_with(**changes)(scene.sessions[2], scene.tasks[2])
        assert reason_name(verdict.reason) == reason
        assert re.search(detail, verdict.detail)
        assert len(verdict.detail) <= 1000
        parts = [await scene.contribute(client) for client in range(3)]
        record = await committed_round(scene.coordinator, scene.run.run_id, 1)
        refused = [(refusal.client_id, refusal.reason, refusal.detail) for refusal in record.refusals]
        assert refused == [(scene.sessions[2].client_id, reason, verdict.detail)]
        assert len(record.contributions) == 3
        assert scene.vector_after(1).tobytes() == scene.expected(initial_vector(), *parts)
        await scene.plays_on(scene.vector_after(1))


async def test_round_second_contribution_is_refused_and_the_first_counts(tmp_path: Path) -> None:
    async with started(tmp_path) as scene:
        first = await scene.contribute(2)
        verdict = await scene.sessions[2].contribute(scene.tasks[2], with_value(100.0), weight=1000)
        assert verdict.reason == pb.REFUSAL_REASON_DUPLICATE
        assert "once per round, got a second one" in verdict.detail
        parts = [first, await scene.contribute(0), await scene.contribute(1)]
        record = await committed_round(scene.coordinator, scene.run.run_id, 1)
        assert [(refusal.client_id, refusal.reason) for refusal in record.refusals] == [
            (scene.sessions[2].client_id, "duplicate")
        ]
        assert scene.vector_after(1).tobytes() == scene.expected(initial_vector(), *parts)
        await scene.plays_on(scene.vector_after(1))


async def test_round_contribution_that_is_in_the_sum_is_accepted_again_and_counts_once(tmp_path: Path) -> None:
    async with started(tmp_path) as scene:
        first, session = await scene.contribute(2), scene.sessions[2]
        again = session.upload()
        # No grant: nothing is transferred again.
        assert await again.begin(session.header(scene.tasks[2], HONEST, weight=1000)) is None
        assert await again.verdict() == pb.UploadVerdict()
        parts = [first, await scene.contribute(0), await scene.contribute(1)]
        record = await committed_round(scene.coordinator, scene.run.run_id, 1)
        assert record.refusals == []
        assert [part.weight for part in record.contributions if part.client_id == session.client_id] == [first[1]]
        assert scene.vector_after(1).tobytes() == scene.expected(initial_vector(), *parts)
        await scene.plays_on(scene.vector_after(1))


@pytest.mark.parametrize(
    "changes", [{"base_sha256": bytes(32)}, {"layout_sha256": bytes(32)}, {"round": 2}, {"sha256": b""}], ids=str
)
async def test_round_contribution_in_the_sum_under_another_header_is_refused(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    async with started(tmp_path) as scene:
        await scene.contribute(2)
        verdict = await scene.sessions[2].contribute(scene.tasks[2], honest_vector(2, 1), **changes)
        assert verdict.reason == pb.REFUSAL_REASON_DUPLICATE
        await scene.contribute(0)
        await scene.contribute(1)
        record = await committed_round(scene.coordinator, scene.run.run_id, 1)
        assert [refusal.reason for refusal in record.refusals] == ["duplicate"]


async def test_round_refused_client_gets_no_second_try(tmp_path: Path) -> None:
    async with started(tmp_path) as scene:
        await vector_of(np.nan)(scene.sessions[2], scene.tasks[2])
        verdict = await scene.sessions[2].contribute(scene.tasks[2], honest_vector(2, 1))
        assert verdict.reason == pb.REFUSAL_REASON_DUPLICATE
        assert "refused must wait for the next round" in verdict.detail
        parts = [await scene.contribute(0), await scene.contribute(1)]
        record = await committed_round(scene.coordinator, scene.run.run_id, 1)
        assert [refusal.reason for refusal in record.refusals] == ["not_finite", "duplicate"]
        assert scene.vector_after(1).tobytes() == scene.expected(initial_vector(), *parts)


async def test_round_uninvited_client_is_refused_and_mean_is_that_of_the_invited(tmp_path: Path) -> None:
    async with (
        serving(tmp_path) as coordinator,
        everyone([joined(coordinator.address) for _ in range(4)]) as sessions,
    ):
        run = await coordinator.runs.submit(small_spec())

        async def selected() -> list[str]:
            rounds = await coordinator.store.rounds(run.run_id)
            return rounds[0].selected if rounds else []

        invited = await until(selected, "the round's clients to be chosen")
        asked = [session for session in sessions if session.client_id in invited]
        (uninvited,) = [session for session in sessions if session.client_id not in invited]
        tasks = [await session.task() for session in asked]
        scene = Scene(coordinator, tmp_path, run, asked, tasks)
        verdict = await uninvited.contribute(tasks[0], with_value(100.0))
        assert verdict.reason == pb.REFUSAL_REASON_NOT_INVITED
        assert "must have been asked" in verdict.detail
        parts = [await scene.contribute(client) for client in range(3)]
        record = await committed_round(coordinator, run.run_id, 1)
        assert [(refusal.client_id, refusal.reason) for refusal in record.refusals] == [
            (uninvited.client_id, "not_invited")
        ]
        assert sorted(part.client_id for part in record.contributions) == sorted(invited)
        assert scene.vector_after(1).tobytes() == scene.expected(initial_vector(), *parts)


@pytest.mark.parametrize("trickle", [False, True], ids=["silent", "trickling"])
async def test_round_snail_is_refused_after_the_stall_limit(trickle: bool, tmp_path: Path) -> None:
    async with started(tmp_path, stall_seconds=1.0) as scene:
        upload = scene.sessions[2].upload()
        await upload.begin(scene.sessions[2].header(scene.tasks[2], HONEST))
        verdict = asyncio.create_task(upload.verdict())
        sent = 0
        while not verdict.done() and sent < 100:
            await upload.slice(sent, HONEST[sent : sent + 1])
            sent += 1
            await asyncio.wait([verdict], timeout=0.02 if trickle else None)
        assert verdict.done(), "what trickles in must not put the end off"
        assert (await verdict).reason == pb.REFUSAL_REASON_TOO_SLOW
        assert re.search(r"must bring 262144 bytes in 1 s", (await verdict).detail)
        parts = [await scene.contribute(0), await scene.contribute(1)]
        record = await committed_round(scene.coordinator, scene.run.run_id, 1)
        assert [(refusal.client_id, refusal.reason) for refusal in record.refusals] == [
            (scene.sessions[2].client_id, "too_slow")
        ]
        assert scene.vector_after(1).tobytes() == scene.expected(initial_vector(), *parts)
        await scene.plays_on(scene.vector_after(1))


async def test_round_message_beyond_the_limit_ends_the_call_and_counts_for_nothing(tmp_path: Path) -> None:
    async with started(tmp_path) as scene:
        call = scene.sessions[2].calls.upload()
        await call.write(pb.UploadRequest(header=scene.sessions[2].header(scene.tasks[2], HONEST)))
        await call.read()
        with contextlib.suppress(grpc.aio.AioRpcError):
            await call.write(bytes(MESSAGE_LIMIT_BYTES + 1))
        assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        parts = [await scene.contribute(client) for client in range(3)]
        record = await committed_round(scene.coordinator, scene.run.run_id, 1)
        assert record.refusals == []
        assert scene.vector_after(1).tobytes() == scene.expected(initial_vector(), *parts)


@pytest.mark.parametrize(
    ("reason", "recorded"),
    [
        (pb.REFUSAL_REASON_CLIENT_POLICY, "client_policy"),
        (pb.REFUSAL_REASON_CLIENT_DATA, "client_data"),
        (pb.REFUSAL_REASON_CLIENT_ERROR, "client_error"),
        (pb.REFUSAL_REASON_DUPLICATE, "client_error"),
        (12345, "client_error"),
    ],
)
async def test_round_client_that_declines_is_recorded_with_its_word(reason: int, recorded: str, tmp_path: Path) -> None:
    async with started(tmp_path) as scene:
        failure = pb.TaskFailed(
            task_id=scene.tasks[2].task_id,
            reason=reason,  # type: ignore[arg-type]
            detail="min_cohort must be 10,\n\x1b[2Jgot 3. " + "x" * 5000,
        )
        await scene.sessions[2].send(pb.JoinRequest(task_failed=failure))
        parts = [await scene.contribute(0), await scene.contribute(1)]
        record = await committed_round(scene.coordinator, scene.run.run_id, 1)
        (refusal,) = record.refusals
        assert (refusal.client_id, refusal.reason) == (scene.sessions[2].client_id, recorded)
        assert refusal.detail.startswith("min_cohort must be 10, ?[2Jgot 3. xxx")
        assert len(refusal.detail) == 1000
        assert scene.vector_after(1).tobytes() == scene.expected(initial_vector(), *parts)
        await scene.plays_on(scene.vector_after(1))


async def test_round_contribution_after_its_end_is_too_late(tmp_path: Path) -> None:
    async with started(tmp_path) as scene:
        for client in range(3):
            await scene.contribute(client)
        await committed_round(scene.coordinator, scene.run.run_id, 1)
        late = scene.tasks[2]
        await scene.next_round()
        parts = [await scene.contribute(client, 2) for client in range(3)]
        await run_in_state(scene.coordinator, scene.run.run_id, RunState.FINISHED)
        verdict = await scene.sessions[2].contribute(late, honest_vector(2, 1))
        assert verdict.reason == pb.REFUSAL_REASON_TOO_LATE
        assert "must have an open round, it has none" in verdict.detail
        assert scene.vector_after(2).tobytes() == scene.expected(scene.vector_after(1), *parts)


async def test_round_odd_numbers_beside_the_vector_cost_nothing(tmp_path: Path) -> None:
    odd = {"ok": 0.5, "train_loss": np.inf, "bad name": 1.0, "Über": 2.0, "huge": 1.7e308, "nan": np.nan, "": 3.0}
    odd |= {f"many_{index:03d}": float(index) for index in range(60)}
    async with started(tmp_path) as scene:
        parts = [await scene.contribute(0), await scene.contribute(1)]
        verdict = await scene.sessions[2].contribute(
            scene.tasks[2],
            honest_vector(2, 1),
            weight=WEIGHTS[2],
            example_count=2**64 - 1,
            train_seconds=-np.inf,
            metrics=odd,
        )
        assert verdict.reason == pb.REFUSAL_REASON_UNSPECIFIED
        record = await committed_round(scene.coordinator, scene.run.run_id, 1)
        (part,) = [part for part in record.contributions if part.client_id == scene.sessions[2].client_id]
        assert part.train_seconds == 0.0
        assert part.example_count == 2**64 - 1
        assert len(part.metrics) == 62
        assert part.metrics["huge"] == 1.7e308
        assert set(part.metrics).isdisjoint({"train_loss", "bad name", "Über", "nan", ""})
        assert "train_huge" not in record.metrics
        assert record.metrics["train_many_007"] == 7.0
        expected = scene.expected(initial_vector(), *parts, (honest_vector(2, 1), WEIGHTS[2]))
        assert scene.vector_after(1).tobytes() == expected
        await scene.plays_on(scene.vector_after(1))
