"""Nothing that comes over the wire stops the coordinator: random bytes, mutated messages, and well-formed messages of odd values.

After each batch the coordinator plays a whole run with an honest client, answers on REST, has no task more than before and has no exception
that nobody looked at.
"""

import asyncio
import contextlib
import gc
import math
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast

import grpc
import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from server.coordinator import Coordinator
from server.records import RunState
from tests.hostile import ANSWER_SECONDS, Calls, Session, calling, drawn_vector, joined, make_hello
from tests.loopback import WAIT_SECONDS, run_in_state, serving, small_spec, until
from wire import federation_pb2 as pb

SIZE = 67
# Nobody is expected back: each batch has clients of its own.
SOLO = {"size": 1, "quorum": 1, "return_seconds": 0}
BATCHES = settings(
    max_examples=6,
    # A batch that fails is reported as it is: each smaller one would wait for what never comes.
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

Kind = TypeVar("Kind", bound=Message)
Item = TypeVar("Item")


class Batch(list[Item]):
    """A list that shows only its beginning when an example is reported."""

    def __repr__(self) -> str:
        return list.__repr__(self)[:2000]


Thrown: TypeAlias = tuple[str, list[bytes]]
"""A call by its name, and what is sent on it."""


# --- Odd messages ---

TEXTS = (
    st.sampled_from(["", "mlp", "\x00", "\x1b[2J", "[/red]", "../../etc/passwd", "💥" * 50, "x" * 70_000]) | st.text()
)
NUMBERS = st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**32 - 1])
LARGE_NUMBERS = NUMBERS | st.sampled_from([2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1])
SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.CPPTYPE_UINT32: NUMBERS,
    FieldDescriptor.CPPTYPE_UINT64: LARGE_NUMBERS,
    FieldDescriptor.CPPTYPE_DOUBLE: st.floats() | st.sampled_from([1.7e308, -1.7e308]),
    FieldDescriptor.CPPTYPE_FLOAT: st.floats(width=32),
    FieldDescriptor.CPPTYPE_ENUM: st.integers(-3, 25) | st.sampled_from([-(2**31), 2**31 - 1]),
}


@st.composite
def odd(draw: st.DrawFn, kind: type[Kind]) -> Kind:
    """Draw a well-formed message with any of its fields set, to anything that their types allow."""
    message = kind()
    for field in kind.DESCRIPTOR.fields:
        if draw(st.booleans()):
            _set(message, field, draw(_values(cast(FieldDescriptor, field))))
    return message


def _values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return st.dictionaries(TEXTS, SCALARS[FieldDescriptor.CPPTYPE_DOUBLE], max_size=5)
    if field.message_type is not None:
        part = odd(GetMessageClass(field.message_type))
        return st.lists(part, max_size=3) if field.is_repeated else part
    if field.type == FieldDescriptor.TYPE_BYTES:
        value: st.SearchStrategy[Any] = st.sampled_from([b"", bytes(32), bytes(64), b"x" * 100_000]) | st.binary()
    elif field.type == FieldDescriptor.TYPE_STRING:
        value = TEXTS
    else:
        value = SCALARS[field.cpp_type]
    return st.lists(value, max_size=5) if field.is_repeated else value


def _set(message: Message, field: Any, value: Any) -> None:
    if isinstance(value, Message):
        getattr(message, field.name).CopyFrom(value)
    elif isinstance(value, dict):
        getattr(message, field.name).update(value)
    elif isinstance(value, list):
        getattr(message, field.name).extend(value)
    else:
        setattr(message, field.name, value)


@st.composite
def mutated(draw: st.DrawFn, right: bytes) -> bytes:
    """Draw the bytes of a message with some of them changed, dropped or doubled."""
    data = bytearray(right)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 8)))
        data[start:end] = draw(st.sampled_from([b"", bytes(data[start:end]) * 2]) | st.binary(max_size=8))
    return bytes(data)


HELLO = make_hello(Ed25519PrivateKey.from_private_bytes(bytes(range(32))), bytes(32))
SAMPLES: dict[str, list[Message]] = {
    "join": [
        pb.JoinRequest(hello=HELLO),
        pb.JoinRequest(progress=pb.Progress(task_id="run/1/0/train", phase=pb.PHASE_TRAINING, fraction=0.5)),
        pb.JoinRequest(
            evaluate_result=pb.EvaluateResult(task_id="run/1/0/evaluate", example_count=3, metrics={"loss": 1.0})
        ),
    ],
    "download": [pb.DownloadRequest(session_token=bytes(32), sha256=bytes(32), offset=5)],
    "upload": [
        pb.UploadRequest(
            header=pb.UploadHeader(session_token=bytes(32), run_id="run", total_bytes=268, metrics={"a": 1.0})
        ),
        pb.UploadRequest(slice=pb.Slice(offset=0, data=bytes(20))),
    ],
}
SENT = {
    name: st.binary(max_size=200)
    | st.sampled_from([sample.SerializeToString() for sample in samples]).flatmap(mutated)
    | st.sampled_from([type(sample) for sample in samples[:1]])
    .flatmap(odd)
    .map(lambda message: message.SerializeToString())
    for name, samples in SAMPLES.items()
}
BATCH: st.SearchStrategy[Batch[Thrown]] = st.lists(
    st.sampled_from(sorted(SENT)).flatmap(
        lambda name: st.tuples(st.just(name), st.lists(SENT[name], min_size=1, max_size=4))
    ),
    min_size=5,
    max_size=15,
).map(Batch)


# --- What must still hold ---


class Watch:
    """A coordinator, what it had before a batch, and what must hold after it."""

    def __init__(self, coordinator: Coordinator) -> None:
        self.coordinator = coordinator
        self._unseen: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self._unseen.append(str(context)))

    @contextlib.asynccontextmanager
    async def batch(self) -> AsyncIterator[None]:
        """Check that whatever is done in the context leaves the coordinator as it was."""
        before = len(served_tasks())
        yield
        await until(self._is_deserted, "the clients to be gone")
        await self._play_a_run()
        await self._read_everything()

        async def back_to_before() -> bool:
            return len(served_tasks()) <= before

        await until(back_to_before, lambda: f"at most {before} tasks to be left, not {served_tasks()}")
        gc.collect()
        assert self._unseen == []

    async def _is_deserted(self) -> bool:
        return not any(member.is_present for member in self.coordinator.sessions.members())

    async def _play_a_run(self) -> None:
        async with joined(self.coordinator.address, name="honest") as session:
            run = await self.coordinator.runs.submit(small_spec(cohort=SOLO, rounds=1))
            verdict = await session.contribute(await session.task(), drawn_vector(1, SIZE))
            assert verdict.reason == pb.REFUSAL_REASON_UNSPECIFIED
            await run_in_state(self.coordinator, run.run_id, RunState.FINISHED)

    async def _read_everything(self) -> None:
        url = f"http://{self.coordinator.http_address}/api/v1"
        async with httpx.AsyncClient(base_url=url, timeout=WAIT_SECONDS) as client:
            for path in ("/health", "/clients", "/runs"):
                assert (await client.get(path)).status_code == 200


def served_tasks() -> list[asyncio.Task[Any]]:
    """Return all tasks but those of gRPC's client side, which are this test's own."""
    return [task for task in asyncio.all_tasks() if "_AioCall" not in repr(task)]


@pytest.fixture
async def watch(tmp_path: Path) -> AsyncIterator[Watch]:
    async with serving(tmp_path) as coordinator:
        yield Watch(coordinator)


async def finish(call: Any, sent: list[bytes]) -> None:
    """Send everything on a call, close it, and read it to its end."""
    async with asyncio.timeout(ANSWER_SECONDS):
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            for data in sent:
                await call.write(data)
            await call.done_writing()
        with contextlib.suppress(grpc.aio.AioRpcError):
            while isinstance(await call.read(), Message):
                pass
        assert await call.code() is not None


async def throw(calls: Calls, name: str, sent: list[bytes]) -> None:
    if name == "download":
        call = calls.download(sent[0])
        with contextlib.suppress(grpc.aio.AioRpcError):
            async with asyncio.timeout(ANSWER_SECONDS):
                assert [part async for part in call] == []
    else:
        await finish(calls.join() if name == "join" else calls.upload(), sent)


@BATCHES
@given(batch=BATCH)
async def test_calls_of_strangers_leave_the_coordinator_as_it_was(batch: Batch[Thrown], watch: Watch) -> None:
    async with watch.batch(), calling(watch.coordinator.address) as calls:
        for name, sent in batch:
            await throw(calls, name, sent)


@BATCHES
@given(batch=BATCH)
async def test_calls_of_a_client_leave_the_coordinator_as_it_was(batch: Batch[Thrown], watch: Watch) -> None:
    async with watch.batch():
        for name, sent in batch:
            async with joined(watch.coordinator.address) as session:
                if name == "join":
                    await finish(session.call, sent)
                else:
                    await throw(session.calls, name, [_with_token(name, data, session.token) for data in sent])


def _with_token(name: str, data: bytes, token: bytes) -> bytes:
    """Put a session's token behind a message: of a field that comes twice, the last one counts."""
    if name == "download":
        return data + pb.DownloadRequest(session_token=token).SerializeToString()
    return data + pb.UploadRequest(header=pb.UploadHeader(session_token=token)).SerializeToString()


@BATCHES
@given(hellos=st.lists(odd(pb.Hello), min_size=5, max_size=15).map(Batch))
async def test_odd_hellos_leave_the_coordinator_as_it_was(hellos: Batch[pb.Hello], watch: Watch) -> None:
    async with watch.batch():
        for hello in hellos:
            changes = {field.name: value for field, value in hello.ListFields() if field.name not in SIGNED}
            with contextlib.suppress(grpc.aio.AioRpcError, AssertionError):
                async with joined(watch.coordinator.address, **changes):
                    pass


SIGNED = ("protocol_version", "public_key", "signature")


@BATCHES
@given(
    headers=st.lists(odd(pb.UploadHeader), min_size=5, max_size=10).map(Batch),
    replies=st.lists(odd(pb.JoinRequest), min_size=5, max_size=10).map(Batch),
)
async def test_odd_messages_of_an_asked_client_leave_the_coordinator_as_it_was(
    headers: Batch[pb.UploadHeader], replies: Batch[pb.JoinRequest], watch: Watch
) -> None:
    spec = small_spec(cohort=SOLO | {"retries": 100}, rounds=1000, evaluate={"every": 1})
    async with watch.batch():
        for act in (_upload_odd(headers), _reply_odd(replies)):
            async with joined(watch.coordinator.address) as session:
                run = await watch.coordinator.runs.submit(spec)
                await act(session)
            stopped = await watch.coordinator.runs.stop(run.run_id)
            assert stopped.reason == "Stopped by the operator."


def _upload_odd(headers: list[pb.UploadHeader]) -> Callable[[Session], Any]:
    """Answer each task with a header that has one or several fields of an odd one. A refused client is asked again."""

    async def act(session: Session) -> None:
        data = drawn_vector(1, SIZE).tobytes()
        for header in headers:
            changes = {field.name: value for field, value in header.ListFields() if field.name != "session_token"}
            task = await _next_train_task(session)
            upload = session.upload()
            if await upload.begin(session.header(task, data, **changes)) is not None:
                await upload.slices(data)
            if (await upload.verdict()).reason in (pb.REFUSAL_REASON_WRONG_ROUND, pb.REFUSAL_REASON_WRONG_RUN):
                verdict = await session.contribute(task, drawn_vector(1, SIZE))
                assert verdict.reason == pb.REFUSAL_REASON_UNSPECIFIED

    return act


async def _next_train_task(session: Session) -> pb.Task:
    while not (task := await session.task()).HasField("train"):
        result = pb.EvaluateResult(
            task_id=task.task_id, example_count=2**64 - 1, metrics={"loss": math.inf, "x": 1.7e308}
        )
        await session.send(pb.JoinRequest(evaluate_result=result))
    return task


def _reply_odd(replies: list[pb.JoinRequest]) -> Callable[[Session], Any]:
    """Answer tasks with odd replies that name the task they answer."""

    async def act(session: Session) -> None:
        for reply in replies:
            kind = reply.WhichOneof("message")
            if kind in ("progress", "task_failed", "evaluate_result"):
                task = await session.task()
                getattr(reply, kind).task_id = task.task_id
                await session.send(reply)
                # A reply that settles nothing must not keep the next one waiting.
                failed = pb.TaskFailed(task_id=task.task_id)
                await session.send(pb.JoinRequest(task_failed=failed))

    return act
