"""One session with the coordinator: the Join stream, and the transfers that its token authorises."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.errors import ConnectionLostError, RejectedError, RoundClosedError
from wire import federation_pb2 as pb
from wire.frames import Part, Stub
from wire.identity import sign_hello
from wire.protocol import (
    CLIENT_OPTIONS,
    HEARTBEAT_SECONDS,
    HELLO_SECONDS,
    PROTOCOL_VERSION,
    SILENCE_SECONDS,
    is_loopback,
)
from wire.slices import Assembly, cut

OUTBOX_SIZE = 64

_REJECTIONS = (
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNAUTHENTICATED,
)
"""Statuses by which a coordinator refuses a client. Before its challenge they are not its own: gRPC makes them of a proxy's HTTP status."""

_BROKEN = (asyncio.InvalidStateError, grpc.aio.BaseError)
"""What gRPC raises beside `AioRpcError` where a call or its channel has come to its end."""

JoinCall: TypeAlias = "grpc.aio.StreamStreamCall[pb.JoinRequest, pb.JoinResponse]"
UploadCall: TypeAlias = "grpc.aio.StreamStreamCall[pb.UploadRequest | Part, pb.UploadResponse]"
Progress = Callable[[float], None]
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the coordinator is and how to trust it.

    Attributes:
        address: Host and port.
        ca: PEM file of the authority that signed the coordinator's certificate; None for plain text.
        certificate: PEM file of this client's certificate, for mutual TLS.
        key: PEM file of that certificate's key.
    """

    address: str
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def channel(self) -> grpc.aio.Channel:
        """Open a channel. Raises `RejectedError` when a certificate is missing, cannot be read or is none."""
        if (self.certificate is None) != (self.key is None) or (self.ca is None and self.key is not None):
            raise RejectedError(
                "TLS: a client's certificate must be given with its key and the coordinator's authority."
            )
        if self.ca is None:
            return grpc.aio.insecure_channel(self.address, options=self._options)
        return grpc.aio.secure_channel(self.address, self._credentials(), options=self._options)

    @property
    def _options(self) -> tuple[tuple[str, int], ...]:
        # A proxy, which the environment may name, is on another machine: there loopback is its own.
        return (*CLIENT_OPTIONS, ("grpc.enable_http_proxy", int(not is_loopback(self.address))))

    @property
    def hint(self) -> str:
        """What may be missing where something listens but closes each connection at once."""
        if self.ca is None:
            return "; if the coordinator uses TLS, give --tls-ca"
        if self.certificate is None:
            return "; if the coordinator asks for certificates, give --tls-cert and --tls-key"
        return "; if it goes on, --tls-cert may have ended, or the coordinator does not trust its authority"

    def _credentials(self) -> grpc.ChannelCredentials:
        files = [path for path in (self.ca, self.certificate, self.key) if path is not None]
        try:
            root, *pair = [path.read_bytes() for path in files]
            # gRPC itself only prints to the terminal what is wrong with a file, and goes on.
            context = ssl.create_default_context(cafile=self.ca)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key, password=str)
        except ssl.SSLError as error:
            names = ", ".join(str(path) for path in files)
            raise RejectedError(
                f"TLS: files must be PEM, and a key that of its certificate, got {names}: {error.reason or error}."
            ) from error
        except OSError as error:
            raise RejectedError(f"Certificate {error.filename}: must be readable, got: {error.strerror}.") from error
        certificate, key = pair or (None, None)
        return grpc.ssl_channel_credentials(root, key, certificate)


class Connection:
    """An open session. Made by `connect`."""

    def __init__(
        self,
        stub: Stub,
        call: JoinCall,
        welcome: pb.Welcome,
    ) -> None:
        self.client_id = welcome.client_id
        self._token = welcome.session_token
        self._stub = stub
        self._call = call
        self._outbox: asyncio.Queue[pb.JoinRequest] = asyncio.Queue(OUTBOX_SIZE)
        self._ended = asyncio.get_running_loop().create_future()

    async def send(self, message: pb.JoinRequest) -> None:
        """Queue a message for the coordinator, in order.

        Raises:
            ConnectionLostError: The session has ended.
        """
        if self._ended.done():
            raise ConnectionLostError("the session has ended")
        await self._while_open(self._outbox.put(message))

    def send_soon(self, message: pb.JoinRequest) -> None:
        """Queue a message that may be lost: when the session has ended, or too many wait to be sent."""
        with contextlib.suppress(asyncio.QueueFull):
            self._outbox.put_nowait(message)

    async def messages(self) -> AsyncIterator[pb.JoinResponse]:
        """Yield what the coordinator pushes, while sending what is queued and heartbeats.

        Raises:
            ConnectionLostError: The stream broke or fell silent.
            RejectedError: The coordinator ended the session for good.
        """
        writing = asyncio.create_task(self._write())
        try:
            while True:
                async with asyncio.timeout(SILENCE_SECONDS):
                    message = await self._call.read()
                if not isinstance(message, pb.JoinResponse):
                    raise ConnectionLostError("the coordinator ended the session")
                if message.HasField("goodbye"):
                    _raise_goodbye(message.goodbye)
                if not message.HasField("heartbeat"):
                    yield message
        except TimeoutError:
            raise ConnectionLostError(f"nothing was heard from the coordinator for {SILENCE_SECONDS:g} s") from None
        except grpc.aio.AioRpcError as error:
            raise _translated(error) from error
        except _BROKEN as error:
            raise ConnectionLostError(f"the stream is closed: {error}") from error
        finally:
            writing.cancel()
            self._ended.set_result(None)

    async def download(self, incoming: Assembly, report: Progress) -> None:
        """Download the rest of a model.

        Raises:
            ConnectionLostError: The connection broke; what has arrived is kept.
            TransferError: What arrived is not that model.
            RoundClosedError: No open round uses the model.
        """
        await self._while_open(self._download(incoming, report))

    async def upload(self, header: pb.UploadHeader, data: memoryview, report: Progress) -> pb.UploadVerdict:
        """Upload a contribution, from where an earlier try stopped, and return the coordinator's verdict.

        Raises:
            ConnectionLostError: The connection broke; a later try goes on from what has arrived.
        """
        return await self._while_open(self._upload(header, data, report))

    async def _while_open(self, transfer: Coroutine[Any, Any, Value]) -> Value:
        """Run a transfer for as long as the session lasts: gRPC lets a call on a closed channel hang, or cancels it."""
        task = asyncio.create_task(transfer)
        # One that ends on its own while it is being cancelled has an error that nobody waits for.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            await asyncio.wait([task, self._ended], return_when=asyncio.FIRST_COMPLETED)
        finally:
            is_over = task.done()
            task.cancel()
        if not is_over or task.cancelled():
            raise ConnectionLostError("the session ended in the middle of a transfer")
        try:
            return task.result()
        except _BROKEN as error:
            raise ConnectionLostError(f"the channel is closed: {error}") from error

    async def _download(self, incoming: Assembly, report: Progress) -> None:
        request = pb.DownloadRequest(session_token=self._token, sha256=incoming.sha256, offset=incoming.received_bytes)
        call = self._stub.Download(request)
        try:
            async for data in call:
                incoming.write(incoming.received_bytes, data)
                report(incoming.received_bytes / len(incoming.buffer))
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise RoundClosedError(error.details()) from error
            raise _translated(error, is_transfer=True) from error
        finally:
            call.cancel()
        incoming.check()

    async def _upload(self, header: pb.UploadHeader, data: memoryview, report: Progress) -> pb.UploadVerdict:
        header.session_token = self._token
        call = self._stub.Upload()
        try:
            await call.write(pb.UploadRequest(header=header))
            response = await call.read()
            if isinstance(response, pb.UploadResponse) and response.HasField("grant"):
                sending = asyncio.create_task(_send_slices(call, data, response.grant.offset, report))
                try:
                    # A refusal in the middle ends the call under the writer, and is lost unless it is being waited for by then.
                    response = await call.read()
                finally:
                    sending.cancel()
            if not isinstance(response, pb.UploadResponse) or not response.HasField("verdict"):
                raise ConnectionLostError("the upload ended without a verdict")
            return response.verdict
        except grpc.aio.AioRpcError as error:
            raise _translated(error, is_transfer=True) from error
        finally:
            call.cancel()

    async def _write(self) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, *_BROKEN):
            while True:
                try:
                    async with asyncio.timeout(HEARTBEAT_SECONDS):
                        message = await self._outbox.get()
                except TimeoutError:
                    message = pb.JoinRequest(heartbeat=pb.Heartbeat())
                await self._call.write(message)


async def _send_slices(call: UploadCall, data: memoryview, offset: int, report: Progress) -> None:
    with contextlib.suppress(grpc.aio.AioRpcError, *_BROKEN):
        for part in cut(data, offset):
            await call.write(part)
            report((part.offset + len(part.data)) / len(data))
        await call.done_writing()


@contextlib.asynccontextmanager
async def connect(endpoint: Endpoint, key: Ed25519PrivateKey, hello: pb.Hello) -> AsyncIterator[Connection]:
    """Open a session and keep it while the context is open.

    Args:
        endpoint: Where to.
        key: This client's identity.
        hello: What to say of this client; version, key and signature are filled in.

    Raises:
        ConnectionLostError: The coordinator cannot be reached, or something else answers in its place.
        RejectedError: It will not have this client.
    """
    async with endpoint.channel() as channel:
        stub = Stub(channel)
        call = stub.Join()
        try:
            try:
                async with asyncio.timeout(HELLO_SECONDS):
                    challenge = await _challenge(call, endpoint)
                    welcome = await _greet(call, key, hello, challenge)
            except TimeoutError:
                raise ConnectionLostError(f"the coordinator did not answer within {HELLO_SECONDS:g} s") from None
            except grpc.aio.AioRpcError as error:
                if any(sign in (error.details() or "") for sign in ("Socket closed", "reset by peer")):
                    raise ConnectionLostError(f"{error.details()}{endpoint.hint}") from error
                raise _translated(error) from error
            except _BROKEN as error:
                raise ConnectionLostError(f"the stream is closed: {error}") from error
            yield Connection(stub, call, welcome)
        finally:
            call.cancel()


async def _challenge(call: JoinCall, endpoint: Endpoint) -> pb.Challenge:
    """Return the coordinator's challenge, the first word that is surely its own: a proxy may answer while it is away."""
    try:
        message = await call.read()
    except grpc.aio.AioRpcError as error:
        if error.code() not in _REJECTIONS:
            raise
        raise ConnectionLostError(
            f"{endpoint.address} answered {error.code().name} instead of a coordinator's challenge, "
            f"{error.details() or 'without a reason'}; if it goes on, check the address and what stands in between"
        ) from error
    if not isinstance(message, pb.JoinResponse):
        raise ConnectionLostError(f"{endpoint.address} ended the call without a coordinator's challenge")
    if not message.HasField("challenge"):
        raise RejectedError("The coordinator must begin a session with a challenge, it did not.")
    return message.challenge


async def _greet(call: JoinCall, key: Ed25519PrivateKey, hello: pb.Hello, challenge: pb.Challenge) -> pb.Welcome:
    """Answer the coordinator's challenge and return its welcome."""
    message = pb.JoinRequest(hello=hello)
    message.hello.protocol_version = PROTOCOL_VERSION
    message.hello.public_key = key.public_key().public_bytes_raw()
    message.hello.signature = sign_hello(key, PROTOCOL_VERSION, challenge.nonce)
    # The coordinator may have ended the call already; its status, which says why, is still there to be read.
    with contextlib.suppress(*_BROKEN):
        await call.write(message)
    welcome = await call.read()
    if not isinstance(welcome, pb.JoinResponse) or not welcome.HasField("welcome"):
        raise ConnectionLostError("the coordinator did not answer the hello with a welcome")
    return welcome.welcome


def _translated(error: grpc.aio.AioRpcError, is_transfer: bool = False) -> ConnectionLostError | RejectedError:
    detail = f"{error.details() or 'no reason was given'}"
    if error.code() in _REJECTIONS and not is_transfer:
        what = "this client's signature" if error.code() is grpc.StatusCode.UNAUTHENTICATED else "this client"
        return RejectedError(f"The coordinator refused {what}: {detail}.")
    return ConnectionLostError(detail)


def _raise_goodbye(goodbye: pb.Goodbye) -> None:
    if goodbye.reason == pb.GOODBYE_REASON_SUPERSEDED:
        raise RejectedError(
            f"The coordinator ended this session: {goodbye.detail}. Each client must have an identity of its own."
        )
    if goodbye.reason == pb.GOODBYE_REASON_REVOKED:
        raise RejectedError(f"The coordinator ended this session: {goodbye.detail}.")
    raise ConnectionLostError(goodbye.detail)
