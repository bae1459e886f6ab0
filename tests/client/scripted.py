"""A coordinator over real sockets that does what a test tells it, message by message, to show what a client bears."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Generic, TypeAlias, TypeVar

import grpc

from server.model import Model, ModelShop
from tests.client.sites import digits_spec, within
from wire import federation_pb2 as pb
from wire.federation_pb2_grpc import FederationServiceServicer, add_FederationServiceServicer_to_server
from wire.protocol import HEARTBEAT_SECONDS, PROTOCOL_VERSION, SERVER_OPTIONS
from wire.slices import cut
from wire.spec import RunSpec
from wire.tensors import vector_bytes

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Request = TypeVar("Request", pb.JoinRequest, pb.UploadRequest)


class Stream(Generic[Request]):
    """One call of a client, open until the test ends it."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._writing = asyncio.Lock()
        self.end: asyncio.Future[tuple[grpc.StatusCode, str]] = asyncio.get_running_loop().create_future()

    async def receive(self) -> Request:
        """Return the client's next message."""
        message = await within(self._context.read(), "a message of the client")
        assert message is not grpc.aio.EOF, "the client ended its side"
        return message  # type: ignore[no-any-return]

    async def send(self, message: pb.JoinResponse | pb.UploadResponse) -> None:
        """Send any message."""
        async with self._writing:
            await self._context.write(message)

    async def finish(self) -> None:
        """Wait until the test ends the call, and end it."""
        code, detail = await self.end
        if code is not grpc.StatusCode.OK:
            await self._context.abort(code, detail)

    def close(self, code: grpc.StatusCode = grpc.StatusCode.OK, detail: str = "") -> None:
        """End the call, unless the client has."""
        if not self.end.done():
            self.end.set_result((code, detail))


class Session(Stream[pb.JoinRequest]):
    """A client's session."""

    hello: pb.Hello
    is_welcome = False

    async def welcome(self) -> "Session":
        """Greet the client as the contract says."""
        await self.send(
            pb.JoinResponse(challenge=pb.Challenge(protocol_version=PROTOCOL_VERSION, nonce=bytes(range(32))))
        )
        self.hello = (await self.receive()).hello
        await self.send(pb.JoinResponse(welcome=pb.Welcome(client_id="c" * 32, session_token=bytes(32))))
        self.is_welcome = True
        return self

    async def beat(self, seconds: float) -> None:
        """Send heartbeats until the session ends."""
        while not (await asyncio.wait([self.end], timeout=seconds))[0]:
            if self.is_welcome:
                await self.send(pb.JoinResponse(heartbeat=pb.Heartbeat()))

    async def push(self, task: pb.Task) -> None:
        """Ask the client for something."""
        await self.send(pb.JoinResponse(task=task))

    async def withdraw(self, task: pb.Task) -> None:
        """Ask the client no more."""
        await self.send(pb.JoinResponse(cancel_task=pb.CancelTask(task_id=task.task_id, reason="the test says so")))

    async def reply(self, kind: str) -> Any:
        """Return the client's next message of a kind, passing over others."""

        async def found() -> Any:
            while (message := await self.receive()).WhichOneof("message") != kind:
                pass
            return getattr(message, kind)

        return await within(found(), f"a {kind} of the client")


class Upload(Stream[pb.UploadRequest]):
    """A client's upload, with its header."""

    header: pb.UploadHeader

    async def grant(self, offset: int = 0) -> None:
        """Give the client a place."""
        await self.send(pb.UploadResponse(grant=pb.UploadGrant(offset=offset)))

    async def slice(self) -> pb.Slice:
        """Return the next slice."""
        return (await self.receive()).slice

    async def rest(self, data: bytes = b"") -> bytes:
        """Return the whole vector, from what is there already."""
        while len(data) < self.header.total_bytes:
            part = await self.slice()
            assert part.offset == len(data)
            data += part.data
        return data

    async def judge(self, reason: pb.RefusalReason = pb.REFUSAL_REASON_UNSPECIFIED, detail: str = "") -> None:
        """Send the verdict and end the call."""
        await self.send(pb.UploadResponse(verdict=pb.UploadVerdict(reason=reason, detail=detail)))
        self.close()

    async def accept(self) -> bytes:
        """Take the whole vector and thank for it."""
        await self.grant()
        data = await self.rest()
        await self.judge()
        return data


class ScriptedCoordinator(FederationServiceServicer):
    """Hands every call to the test. Downloads alone are answered by themselves.

    Attributes:
        address: Host and port.
        models: What can be downloaded, by SHA-256.
        downloads: Requests so far.
        refused_downloads: Downloads that are refused before one is served.
        serves_downloads: While it is not set, downloads wait.
        heartbeat_seconds: Time between heartbeats.
    """

    def __init__(self) -> None:
        self.address = ""
        self.models: dict[bytes, bytes] = {}
        self.downloads: list[pb.DownloadRequest] = []
        self.refused_downloads = 0
        self.serves_downloads = asyncio.Event()
        self.serves_downloads.set()
        self.heartbeat_seconds = HEARTBEAT_SECONDS
        self._sessions: asyncio.Queue[Session] = asyncio.Queue()
        self._uploads: asyncio.Queue[Upload] = asyncio.Queue()

    async def call(self) -> Session:
        """Return the next session, not greeted yet."""
        return await within(self._sessions.get(), "a client to join")  # type: ignore[no-any-return]

    async def session(self) -> Session:
        """Return the next session, greeted."""
        return await (await self.call()).welcome()

    async def upload(self) -> Upload:
        """Return the next upload, with its header."""
        upload: Upload = await within(self._uploads.get(), "an upload")
        upload.header = (await upload.receive()).header
        return upload

    def task(self, spec: RunSpec | None = None, kind: str = "train", round_number: int = 1) -> pb.Task:
        """Offer the spec's first model, and return a task that starts from it."""
        spec = spec or digits_spec()
        model = ModelShop(spec).initial()
        self.models[model.sha256] = bytes(vector_bytes(model.vector))
        return make_task(spec, model, kind, round_number)

    async def Join(self, requests: AsyncIterator[pb.JoinRequest], context: Context) -> None:  # noqa: N802 - the contract's name
        """Hand the session to the test."""
        session = Session(context)
        await self._sessions.put(session)
        await session.beat(self.heartbeat_seconds)
        await session.finish()

    async def Upload(self, requests: AsyncIterator[pb.UploadRequest], context: Context) -> None:  # noqa: N802 - the contract's name
        """Hand the upload to the test."""
        upload = Upload(context)
        await self._uploads.put(upload)
        await upload.finish()

    async def Download(self, request: pb.DownloadRequest, context: Context) -> None:  # noqa: N802 - the contract's name
        """Send a model that is on offer."""
        self.downloads.append(request)
        await self.serves_downloads.wait()
        data = self.models.get(request.sha256)
        if data is None or len(self.downloads) <= self.refused_downloads:
            await context.abort(grpc.StatusCode.NOT_FOUND, "model must be one of an open round")
        for part in cut(memoryview(data), request.offset):
            await context.write(pb.DownloadResponse(data=bytes(part.data)))


def make_task(spec: RunSpec, model: Model, kind: str, round_number: int) -> pb.Task:
    """Return a task as a coordinator sends it."""
    task = pb.Task(
        task_id=f"run/{round_number}/0/{kind}",
        run_id="run",
        round=round_number,
        spec_json=spec.canonical_json(),
        base=pb.ModelReference(
            sha256=model.sha256, layout_sha256=model.layout.sha256, total_bytes=model.layout.byte_count
        ),
        cohort_size=1,
    )
    getattr(task, kind).SetInParent()
    return task


@contextlib.asynccontextmanager
async def scripted(address: str = "127.0.0.1:0") -> AsyncIterator[ScriptedCoordinator]:
    """Serve while the context is open, and go away without a goodbye."""
    coordinator = ScriptedCoordinator()
    server = grpc.aio.server(options=SERVER_OPTIONS)
    add_FederationServiceServicer_to_server(coordinator, server)
    coordinator.address = f"127.0.0.1:{server.add_insecure_port(address)}"
    await server.start()
    try:
        yield coordinator
    finally:
        await server.stop(None)
