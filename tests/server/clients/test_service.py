"""Sessions and downloads over real sockets: who is let in, what a second session does, and what is refused."""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from server.coordinator import Coordinator
from server.errors import StoreError
from server.model import ModelShop
from server.records import ClientRecord, RunState
from tests.hostile import ANSWER_SECONDS, Session, calling, drawn_vector, joined
from tests.loopback import (
    absent,
    everyone,
    rest,
    run_in_state,
    serving,
    small_spec,
    until,
)
from wire import federation_pb2 as pb

SIZE = 67


@pytest.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[Coordinator]:
    async with serving(tmp_path) as coordinator:
        yield coordinator


async def refused(address: str, **changes: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with joined(address, **changes):
            pass
    return caught.value


# --- Joining ---


@pytest.mark.parametrize(
    ("changes", "code", "detail"),
    [
        pytest.param(
            {"protocol_version": 7},
            grpc.StatusCode.FAILED_PRECONDITION,
            "protocol version must be the coordinator's, 1, got 7. Install the same release on both sides",
            id="newer-protocol",
        ),
        pytest.param(
            {"protocol_version": 0},
            grpc.StatusCode.FAILED_PRECONDITION,
            "protocol version must be the coordinator's, 1, got 0.",
            id="no-protocol",
        ),
        pytest.param(
            {"signature": bytes(64)}, grpc.StatusCode.UNAUTHENTICATED, "must be signed with the key", id="unsigned"
        ),
        pytest.param(
            {"signature": b""}, grpc.StatusCode.UNAUTHENTICATED, "must be signed with the key", id="no-signature"
        ),
        pytest.param({"public_key": b"short"}, grpc.StatusCode.UNAUTHENTICATED, "must be signed", id="short-key"),
        pytest.param(
            {"public_key": Ed25519PrivateKey.generate().public_key().public_bytes_raw()},
            grpc.StatusCode.UNAUTHENTICATED,
            "must be signed with the key that it names",
            id="key-of-another",
        ),
        pytest.param({"name": ""}, grpc.StatusCode.INVALID_ARGUMENT, "name must be 1 to 64 printable", id="no-name"),
        pytest.param({"name": "x" * 65}, grpc.StatusCode.INVALID_ARGUMENT, "name must be 1 to 64", id="long-name"),
        pytest.param({"name": "a\x1b[2J"}, grpc.StatusCode.INVALID_ARGUMENT, r"got 'a\x1b[2J'", id="unprintable-name"),
        pytest.param(
            {"data": pb.DataSummary(example_count=0)},
            grpc.StatusCode.INVALID_ARGUMENT,
            "data.example_count must be at least 1, got 0",
            id="no-examples",
        ),
    ],
)
async def test_join_bad_hello_is_refused_with_the_rule_and_leaves_no_trace(
    changes: dict[str, Any], code: grpc.StatusCode, detail: str, coordinator: Coordinator
) -> None:
    error = await refused(coordinator.address, **changes)
    assert error.code() is code
    assert detail in (error.details() or "")
    assert coordinator.sessions.clients() == []
    assert await coordinator.store.clients() == []


@pytest.mark.parametrize(
    ("first", "detail"),
    [
        pytest.param(b"\xff\xff", "must be well-formed protobuf", id="garbage"),
        pytest.param(b"", "the first message of a session must be a hello", id="empty"),
        pytest.param(pb.JoinRequest(heartbeat=pb.Heartbeat()).SerializeToString(), "must be a hello", id="not-a-hello"),
    ],
)
async def test_join_first_message_that_is_no_hello_is_refused(
    first: bytes, detail: str, coordinator: Coordinator, caplog: pytest.LogCaptureFixture
) -> None:
    async with calling(coordinator.address) as calls:
        call = calls.join()
        await call.read()
        await call.write(first)
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert detail in await call.details()
    assert [record.levelname for record in caplog.records if "no session began: " in record.getMessage()] == ["WARNING"]


async def closed_side(call: Any) -> None:
    """End this side of a stream, and hear how the other side ends it."""
    await call.done_writing()
    assert await call.code() is grpc.StatusCode.CANCELLED
    assert await call.details() == "the stream ended before its hello"


async def broken_stream(call: Any) -> None:
    """Break a stream off."""
    call.cancel()


@pytest.mark.parametrize("end", [closed_side, broken_stream])
async def test_join_stream_that_ends_before_its_hello_is_not_logged_as_a_refusal(
    end: Callable[[Any], Awaitable[None]], coordinator: Coordinator, caplog: pytest.LogCaptureFixture
) -> None:
    async with calling(coordinator.address) as calls:

        async def noticed() -> list[logging.LogRecord]:
            # Once more if gRPC has cancelled the call before it told of its end: then there is nobody who could log.
            call = calls.join()
            await call.read()
            await end(call)
            await asyncio.sleep(0.1)
            return [record for record in caplog.records if record.name == "server.clients.service"]

        with caplog.at_level(logging.DEBUG, "server.clients.service"):
            records = await until(noticed, "the end of the stream to be noticed")
    found = {(record.levelname, record.getMessage()) for record in records}
    assert found == {("DEBUG", "no session began: the stream ended before its hello")}


async def test_join_silence_before_the_hello_ends_the_call(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.clients.service.HELLO_SECONDS", 0.1)
    async with calling(coordinator.address) as calls:
        joining, uploading = calls.join(), calls.upload()
        await joining.read()
        assert await joining.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert await joining.details() == "a hello must come within 0.1 s"
        assert await uploading.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert await uploading.details() == "a header must come within 0.1 s"


async def test_join_silent_session_ends_with_a_goodbye(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.clients.service.SILENCE_SECONDS", 0.2)
    async with joined(coordinator.address) as session:
        assert await session.end() is grpc.StatusCode.UNAVAILABLE
        assert await session.call.details() == "nothing was heard for 0.2 s"
        await absent(coordinator, session.client_id)


async def test_join_session_that_reads_nothing_ends_although_it_talks(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with joined(coordinator.address) as session:
        monkeypatch.setattr("server.clients.service.SILENCE_SECONDS", 0.5)
        served = coordinator.sessions.by_client(session.client_id)
        assert served is not None
        for _ in range(60):
            served.push(pb.JoinResponse(task=pb.Task(spec_json="x" * 250_000)))

        async def ended() -> bool:
            await session.send(pb.JoinRequest(heartbeat=pb.Heartbeat()))
            return coordinator.sessions.by_client(session.client_id) is None

        with caplog.at_level(logging.INFO, "server.clients.sessions"):
            await until(ended, "the session to end")
        assert "left, it has read nothing for 0.5 s" in caplog.text


@pytest.mark.parametrize(
    ("message", "detail"),
    [
        (b"", "a message on an open session must not be empty"),
        (b"\x0a\xff", "must be well-formed protobuf"),
        (pb.JoinRequest(hello=pb.Hello()), "a message on an open session must not be hello"),
    ],
    ids=["empty", "garbage", "second-hello"],
)
async def test_join_bad_message_ends_the_session_alone(message: Any, detail: str, coordinator: Coordinator) -> None:
    async with joined(coordinator.address) as other, joined(coordinator.address) as session:
        await session.send(message)
        assert await session.end() is grpc.StatusCode.INVALID_ARGUMENT
        assert detail in await session.call.details()
        await absent(coordinator, session.client_id)
        assert coordinator.sessions.by_client(other.client_id) is not None
        assert (await rest(coordinator, "/health"))["client_count"] == 1


async def test_join_second_session_of_one_identity_wins_and_both_sides_say_so(
    coordinator: Coordinator, caplog: pytest.LogCaptureFixture
) -> None:
    key = Ed25519PrivateKey.generate()
    async with joined(coordinator.address, key, name="first") as older:
        with caplog.at_level(logging.WARNING, "server.clients.sessions"):
            async with joined(coordinator.address, key, name="second") as newer:
                assert newer.client_id == older.client_id
                farewell = await older.receive()
                assert farewell is not None
                assert farewell.goodbye.reason == pb.GOODBYE_REASON_SUPERSEDED
                assert "newer session with the same identity" in farewell.goodbye.detail
                assert await older.end() is grpc.StatusCode.ABORTED
                assert f"client {newer.client_id} (second): a newer session takes the place" in caplog.text
                served = coordinator.sessions.by_client(newer.client_id)
                assert served is not None
                assert served.token == newer.token
                assert coordinator.sessions.by_token(older.token) is None
                with pytest.raises(grpc.aio.AioRpcError, match="UNAUTHENTICATED"):
                    await older.upload().begin(pb.UploadHeader(session_token=older.token))
                run = await coordinator.runs.submit(small_spec(cohort={"size": 1, "quorum": 1}, rounds=1))
                task = await newer.task()
                assert (await newer.contribute(task, drawn_vector(1, SIZE))).reason == pb.REFUSAL_REASON_UNSPECIFIED
                await run_in_state(coordinator, run.run_id, RunState.FINISHED)
        await absent(coordinator, newer.client_id)
    assert [client.is_connected for client in await coordinator.store.clients()] == [False]


async def test_join_after_the_goodbyes_is_told_to_come_back(coordinator: Coordinator) -> None:
    async with joined(coordinator.address) as session:
        coordinator.sessions.end_all()
        assert await session.end() is grpc.StatusCode.UNAVAILABLE
        error = await refused(coordinator.address)
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert error.details() == "the coordinator shuts down"
        assert [client.client_id for client in coordinator.sessions.clients()] == [session.client_id]


async def test_join_while_a_round_runs_waits_for_the_next(coordinator: Coordinator) -> None:
    spec = small_spec(cohort={"size": None, "fraction": 1.0, "quorum": 2})
    async with everyone([joined(coordinator.address) for _ in range(2)]) as sessions:
        run = await coordinator.runs.submit(spec)
        tasks = [await session.task() for session in sessions]
        async with joined(coordinator.address) as late:
            verdict = await late.contribute(tasks[0], drawn_vector(3, SIZE))
            assert verdict.reason == pb.REFUSAL_REASON_NOT_INVITED
            for session, task in zip(sessions, tasks, strict=True):
                await session.contribute(task, drawn_vector(1, SIZE))
            task = await late.task()
            assert (task.round, task.cohort_size) == (2, 3)
        first = await coordinator.store.round(run.run_id, 1)
        assert first.selected == sorted(session.client_id for session in sessions)


async def test_join_text_of_a_client_is_cut_and_kept_in_one_line(coordinator: Coordinator) -> None:
    capabilities = pb.Capabilities(
        learners=["mlp", "a\x1b[2Jb", "x" * 1000], device="cuda\n\x07:0" + "y" * 100, thread_count=1
    )
    data = pb.DataSummary(kind="dig\x00its", example_count=2**64 - 1)
    async with joined(coordinator.address, name="Zürich 1", capabilities=capabilities, data=data, release="\n" * 500):
        (client,) = await rest(coordinator, "/clients")
        assert client["name"] == "Zürich 1"
        assert client["device"] == "cuda ?:0" + "y" * 56
        assert client["learners"] == ["mlp", "a?[2Jb", "x" * 64]
        assert client["data_kind"] == "dig?its"
        assert client["example_count"] == 2**64 - 1
        assert client["release"] == ""


async def test_progress_shows_only_for_the_task_of_the_moment(coordinator: Coordinator) -> None:
    async with joined(coordinator.address) as session:
        await coordinator.runs.submit(small_spec(cohort={"size": 1, "quorum": 1}))
        task = await session.task()
        odd = [
            pb.Progress(task_id="another", phase=pb.PHASE_TRAINING, fraction=0.1),
            pb.Progress(task_id=task.task_id, phase=99, fraction=0.2),  # type: ignore[arg-type]
        ]
        for progress in [*odd, pb.Progress(task_id=task.task_id, phase=pb.PHASE_TRAINING, fraction=float("nan"))]:
            await session.send(pb.JoinRequest(progress=progress))

        async def shown() -> dict[str, Any] | None:
            (client,) = await rest(coordinator, "/clients")
            return dict(client) if client["phase"] else None

        client = await until(shown, "the progress to be shown")
        assert (client["task_id"], client["phase"], client["fraction"]) == (task.task_id, "training", 0.0)


async def test_join_store_that_fails_leaves_no_session(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(client: ClientRecord) -> None:
        raise StoreError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(coordinator.store, "put_client", fail)
        error = await refused(coordinator.address)
        assert error.code() is grpc.StatusCode.UNKNOWN
    assert coordinator.sessions.members()[0].is_present is False
    assert coordinator.sessions.by_client(coordinator.sessions.clients()[0].client_id) is None
    async with joined(coordinator.address):
        assert (await rest(coordinator, "/health"))["client_count"] == 1


# --- Downloads ---


async def test_download_gives_the_model_from_any_offset(coordinator: Coordinator) -> None:
    spec = small_spec(cohort={"size": 1, "quorum": 1})
    model = ModelShop(spec).initial().vector.tobytes()
    async with joined(coordinator.address) as session:
        await coordinator.runs.submit(spec)
        task = await session.task()
        for offset in (0, 100, len(model)):
            request = pb.DownloadRequest(session_token=session.token, sha256=task.base.sha256, offset=offset)
            assert b"".join([part.data async for part in session.calls.download(request)]) == model[offset:]


@pytest.mark.parametrize(
    ("changes", "code", "detail"),
    [
        ({"session_token": b"guess"}, grpc.StatusCode.UNAUTHENTICATED, "session_token must be that of an open session"),
        ({"sha256": b"\x01" * 32}, grpc.StatusCode.NOT_FOUND, "model 0101010101010101 must be one of an open round"),
        ({"sha256": b""}, grpc.StatusCode.NOT_FOUND, "must be one of an open round"),
        ({"offset": 269}, grpc.StatusCode.INVALID_ARGUMENT, "offset must be at most 268, got 269"),
        ({"offset": 2**64 - 1}, grpc.StatusCode.INVALID_ARGUMENT, "offset must be at most 268"),
    ],
    ids=["token", "model", "no-model", "offset", "huge-offset"],
)
async def test_download_bad_request_is_refused(
    changes: dict[str, Any], code: grpc.StatusCode, detail: str, coordinator: Coordinator
) -> None:
    async with joined(coordinator.address) as session:
        await coordinator.runs.submit(small_spec(cohort={"size": 1, "quorum": 1}))
        task = await session.task()
        right: dict[str, Any] = {"session_token": session.token, "sha256": task.base.sha256, "offset": 0}
        call = session.calls.download(pb.DownloadRequest(**(right | changes)))
        assert await call.code() is code
        assert detail in await call.details()


LARGE = {"name": "mlp", "inputs": [4], "hidden": [600_000], "classes": 3}
"""19 MB: more than fits into the buffers of a connection that nobody reads from."""


def start_download(session: Session, task: pb.Task) -> AsyncIterator[pb.DownloadResponse]:
    request = pb.DownloadRequest(session_token=session.token, sha256=task.base.sha256)
    return aiter(session.calls.download(request))


async def rest_of(download: AsyncIterator[pb.DownloadResponse], first: bytes = b"") -> bytes:
    """Return the SHA-256 of a download that is read to its end."""
    async with asyncio.timeout(ANSWER_SECONDS):
        return hashlib.sha256(b"".join([first, *[part.data async for part in download]])).digest()


async def test_download_unread_by_one_session_leaves_places_to_others(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    async with (
        serving(tmp_path, download_places=2) as coordinator,
        joined(coordinator.address) as other,
        joined(coordinator.address, key) as greedy,
    ):
        await coordinator.runs.submit(small_spec(learner=LARGE, cohort={"size": 2}))
        task = await other.task()
        unread = start_download(greedy, task)
        first = await anext(unread)
        for _ in range(2):
            with pytest.raises(grpc.aio.AioRpcError, match="a session must download one model at a time") as caught:
                await anext(start_download(greedy, task))
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await rest_of(start_download(other, task)) == task.base.sha256
        assert await rest_of(unread, first.data) == task.base.sha256
        assert await rest_of(start_download(greedy, task)) == task.base.sha256


async def test_download_in_a_new_session_does_not_wait_for_that_of_the_old_one(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    async with serving(tmp_path) as coordinator, joined(coordinator.address, key) as session:
        await coordinator.runs.submit(small_spec(learner=LARGE, cohort={"size": 1, "quorum": 1}))
        unread = start_download(session, await session.task())
        await anext(unread)
        async with joined(coordinator.address, key) as again:
            task = await again.task()
            assert await rest_of(start_download(again, task)) == task.base.sha256


async def test_download_ends_with_its_round(tmp_path: Path) -> None:
    async with serving(tmp_path) as coordinator, joined(coordinator.address) as session:
        run = await coordinator.runs.submit(small_spec(learner=LARGE, cohort={"size": 1, "quorum": 1}))
        unread = start_download(session, await session.task())
        await anext(unread)
        await coordinator.runs.stop(run.run_id)
        with pytest.raises(grpc.aio.AioRpcError, match="the round or the session has ended") as caught:
            await rest_of(unread)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
