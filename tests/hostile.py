"""A client that speaks the contract itself and can break it at every step, for tests of what a coordinator bears.

Nothing of `client` is used: whatever goes over the wire is built here from the generated messages. Run as a program, it joins, uploads
half of its contribution, and waits to be killed.
"""

import asyncio
import contextlib
import hashlib
import sys
from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc
import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import Message

from wire import federation_pb2 as pb
from wire.identity import client_id_of, sign_hello
from wire.protocol import CLIENT_OPTIONS, HEARTBEAT_SECONDS, PROTOCOL_VERSION

ANSWER_SECONDS = 20.0
"""Longest wait for any one answer of the coordinator."""

SERVICE = "/choral.v1.FederationService"

HALF_SENT = 0.5
"""Progress that the program reports when half of its contribution is on its way."""

Vector: TypeAlias = npt.NDArray[np.float32]
Sent: TypeAlias = Message | bytes
"""A message, or bytes that go over the wire as they are."""


class Calls:
    """The three calls of the contract, on one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.join = channel.stream_stream(
            f"{SERVICE}/Join", request_serializer=_serialize, response_deserializer=pb.JoinResponse.FromString
        )
        self.download = channel.unary_stream(
            f"{SERVICE}/Download", request_serializer=_serialize, response_deserializer=pb.DownloadResponse.FromString
        )
        self.upload = channel.stream_stream(
            f"{SERVICE}/Upload", request_serializer=_serialize, response_deserializer=pb.UploadResponse.FromString
        )


class Upload:
    """One upload, step by step. Nothing of what the contract asks for is checked or put right."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._verdict: pb.UploadVerdict | None = None

    async def begin(self, header: pb.UploadHeader) -> int | None:
        """Send a header and return the granted offset; None when the verdict came instead."""
        await self.send(pb.UploadRequest(header=header))
        return await self.grant()

    async def grant(self) -> int | None:
        """Return the offset of the next grant; None when the verdict came instead."""
        response = await self._read()
        if response.HasField("verdict"):
            self._verdict = response.verdict
            return None
        return int(response.grant.offset)

    async def slice(self, offset: int, data: bytes) -> None:
        """Send one slice."""
        await self.send(pb.UploadRequest(slice=pb.Slice(offset=offset, data=data)))

    async def slices(self, data: bytes, start: int = 0, end: int | None = None, size: int = 64) -> None:
        """Send what lies between `start` and `end` in slices."""
        end = len(data) if end is None else end
        for offset in range(start, end, size):
            await self.slice(offset, data[offset : min(offset + size, end)])

    async def send(self, message: Sent) -> None:
        """Send anything. What comes after the coordinator's end of the call is lost, as it would be for any client."""
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await self._call.write(message)

    async def close(self) -> None:
        """Close this side."""
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await self._call.done_writing()

    async def verdict(self) -> pb.UploadVerdict:
        """Return the verdict, when it comes."""
        while self._verdict is None:
            await self.grant()
        return self._verdict

    def abort(self) -> None:
        """Break the call off."""
        self._call.cancel()

    async def _read(self) -> pb.UploadResponse:
        async with asyncio.timeout(ANSWER_SECONDS):
            response = await self._call.read()
        assert isinstance(response, pb.UploadResponse), (
            f"the upload ended with {response!r} and {await self._call.code()}"
        )
        return response


class Session:
    """One open session. Made by `joined`."""

    def __init__(self, calls: Calls, call: Any, welcome: pb.Welcome) -> None:
        self.client_id = welcome.client_id
        self.token = welcome.session_token
        self.calls = calls
        self.call = call
        self._writing = asyncio.Lock()

    async def send(self, message: Sent) -> None:
        """Send anything on the session."""
        async with self._writing:
            await self.call.write(message)

    async def receive(self) -> pb.JoinResponse | None:
        """Return the next message that is no heartbeat; None when the coordinator has ended the session."""
        async with asyncio.timeout(ANSWER_SECONDS):
            while isinstance(message := await self.call.read(), pb.JoinResponse):
                if not message.HasField("heartbeat"):
                    return message
        return None

    async def task(self) -> pb.Task:
        """Return the next task."""
        while (message := await self.receive()) is not None:
            if message.HasField("task"):
                return message.task
        raise AssertionError("the session ended without a task")

    async def end(self) -> grpc.StatusCode:
        """Read the session to its end, and return its status."""
        with contextlib.suppress(grpc.aio.AioRpcError):
            while await self.receive() is not None:
                pass
        code = await self.call.code()
        assert isinstance(code, grpc.StatusCode)
        return code

    async def beat(self) -> None:
        """Send heartbeats until cancelled, or until the session has ended."""
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while True:
                await asyncio.sleep(HEARTBEAT_SECONDS)
                await self.send(pb.JoinRequest(heartbeat=pb.Heartbeat()))

    def header(self, task: pb.Task, data: bytes, **changes: Any) -> pb.UploadHeader:
        """Return the header that the contract asks for, with some fields changed."""
        right: dict[str, Any] = {
            "session_token": self.token,
            "task_id": task.task_id,
            "run_id": task.run_id,
            "round": task.round,
            "base_sha256": task.base.sha256,
            "layout_sha256": task.base.layout_sha256,
            "encoding": pb.VECTOR_ENCODING_FLOAT32,
            "total_bytes": len(data),
            "sha256": hashlib.sha256(data).digest(),
            "weight": 1,
            "example_count": 1,
        }
        return pb.UploadHeader(**(right | changes))

    def upload(self) -> Upload:
        """Open an upload."""
        return Upload(self.calls.upload())

    async def contribute(self, task: pb.Task, vector: Vector, **changes: Any) -> pb.UploadVerdict:
        """Upload a vector as the contract asks, under a header with some fields changed."""
        data = vector.astype("<f4").tobytes()
        upload = self.upload()
        offset = await upload.begin(self.header(task, data, **changes))
        if offset is not None:
            await upload.slices(data, offset)
            await upload.close()
        return await upload.verdict()


def make_hello(key: Ed25519PrivateKey, nonce: bytes, **changes: Any) -> pb.Hello:
    """Return the signed hello that the contract asks for, with some fields changed after signing."""
    right: dict[str, Any] = {
        "protocol_version": PROTOCOL_VERSION,
        "public_key": key.public_key().public_bytes_raw(),
        "signature": sign_hello(key, PROTOCOL_VERSION, nonce),
        "name": "hostile",
        "capabilities": pb.Capabilities(learners=["mlp"], device="cpu", thread_count=1),
        "data": pb.DataSummary(kind="digits", example_count=10, held_out_count=2, example_shape=[4]),
        "release": "0.1.0",
    }
    return pb.Hello(**(right | changes))


def client_id(key: Ed25519PrivateKey) -> str:
    """Return the identity of a key."""
    return client_id_of(key.public_key().public_bytes_raw())


@contextlib.asynccontextmanager
async def calling(address: str) -> AsyncIterator[Calls]:
    """Connect, without a session."""
    # Without the honest client's own limit on what it sends.
    options = [(name, value) for name, value in CLIENT_OPTIONS if name != "grpc.max_send_message_length"]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        # The first attempt may be lost on a busy machine. An honest client would try again, too.
        async with asyncio.timeout(ANSWER_SECONDS):
            await channel.channel_ready()
        yield Calls(channel)


@contextlib.asynccontextmanager
async def joined(address: str, key: Ed25519PrivateKey | None = None, **changes: Any) -> AsyncIterator[Session]:
    """Join on a connection of its own, with some fields of the hello changed, and stay while the context is open.

    Raises:
        AioRpcError: The coordinator will not have this client.
    """
    async with calling(address) as calls:
        call = calls.join()
        async with asyncio.timeout(ANSWER_SECONDS):
            challenge = await call.read()
            assert isinstance(challenge, pb.JoinResponse)
            hello = make_hello(key or Ed25519PrivateKey.generate(), challenge.challenge.nonce, **changes)
            await call.write(pb.JoinRequest(hello=hello))
            welcome = await call.read()
        assert isinstance(welcome, pb.JoinResponse), f"no welcome came, but {welcome!r}"
        session = Session(calls, call, welcome.welcome)
        beating = asyncio.create_task(session.beat())
        try:
            yield session
        finally:
            beating.cancel()
            call.cancel()


async def _upload_half(address: str, key: Ed25519PrivateKey, vector_seed: int) -> None:
    async with joined(address, key) as session:
        task = await session.task()
        data = drawn_vector(vector_seed, task.base.total_bytes // 4).tobytes()
        upload = session.upload()
        await upload.begin(session.header(task, data))
        await upload.slices(data, 0, len(data) // 2)
        await session.send(
            pb.JoinRequest(progress=pb.Progress(task_id=task.task_id, phase=pb.PHASE_UPLOADING, fraction=HALF_SENT))
        )
        await session.end()


def drawn_vector(seed: int, size: int) -> Vector:
    """Return a vector of moderate numbers, float32 (size,), the same in every process."""
    return np.random.default_rng(seed).normal(size=size).astype("<f4")


def _serialize(message: Sent) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


if __name__ == "__main__":
    asyncio.run(
        _upload_half(sys.argv[1], Ed25519PrivateKey.from_private_bytes(bytes.fromhex(sys.argv[2])), int(sys.argv[3]))
    )
