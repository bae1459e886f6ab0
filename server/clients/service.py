"""The gRPC service: sessions, downloads and uploads, as `proto/choral/v1/federation.proto` describes them."""

import asyncio
import contextlib
import logging
import math
import secrets
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from server.clients.enrolment import Doorkeeper
from server.clients.hello import client_of, printable
from server.clients.sessions import Session, Sessions
from server.clients.transfers import Interruption, Reception, Transfers, check_header
from server.errors import ContributionRefused, reason_name
from server.inbox import Arrival, Binding, Inbox
from server.records import ClientRecord
from wire import federation_pb2 as pb
from wire.errors import TransferError
from wire.federation_pb2_grpc import FederationServiceServicer
from wire.frames import Part
from wire.identity import is_hello_signed
from wire.logs import about
from wire.protocol import (
    HEARTBEAT_SECONDS,
    HELLO_SECONDS,
    PROTOCOL_VERSION,
    SILENCE_SECONDS,
    STALL_BYTES,
)
from wire.slices import Assembly, cut

log = logging.getLogger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
TEXT_LENGTH = 1000

_FAREWELLS = {
    pb.GOODBYE_REASON_SUPERSEDED: grpc.StatusCode.ABORTED,
    pb.GOODBYE_REASON_REVOKED: grpc.StatusCode.PERMISSION_DENIED,
}
"""Status of a session that ends for good, by the goodbye's reason; the client comes back after any other."""


class _SessionEnded(Exception):
    """The coordinator ends a session, with a gRPC status."""

    def __init__(self, code: grpc.StatusCode, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class FederationService(FederationServiceServicer):
    """Serves the contract. One per coordinator."""

    def __init__(
        self, sessions: Sessions, transfers: Transfers, stall_seconds: float, doorkeeper: Doorkeeper | None = None
    ) -> None:
        self._sessions = sessions
        self._transfers = transfers
        self._stall_seconds = stall_seconds
        self._doorkeeper = doorkeeper

    async def Join(self, requests: AsyncIterator[pb.JoinRequest], context: Context) -> None:  # noqa: N802 - the contract's name
        """Open a session, push tasks and take replies until either side ends it."""
        try:
            client = await self._greet(context)
        except _SessionEnded as refusal:
            # A stream that breaks before its hello breaks no rule.
            level = logging.DEBUG if refusal.code is grpc.StatusCode.CANCELLED else logging.WARNING
            log.log(level, "no session began: %s", refusal)
            await context.abort(refusal.code, str(refusal))
        with about(client_id=client.client_id):
            await self._hold(Session(client), context)

    async def Download(self, request: pb.DownloadRequest, context: Context) -> None:  # noqa: N802 - the contract's name
        """Send a model from an offset to its end."""
        session = await self._session_of(request.session_token, context)
        data = self._transfers.model(request.sha256)
        if data is None:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"model {request.sha256[:8].hex()} must be one of an open round"
            )
        if request.offset > len(data):
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, f"offset must be at most {len(data)}, got {request.offset}"
            )
        # A client comes back from a broken connection with a new session, which nothing that the old one left behind holds up.
        if session.is_downloading:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "a session must download one model at a time")
        session.is_downloading = True
        try:
            async with self._transfers.download_places:
                for part in cut(data, request.offset):
                    if self._transfers.model(request.sha256) is None or self._sessions.by_token(session.token) is None:
                        await context.abort(grpc.StatusCode.NOT_FOUND, "the round or the session has ended")
                    async with asyncio.timeout(self._stall_seconds):
                        await context.write(part.data)
                    self._transfers.observer.note_sent(len(part.data))
            self._sessions.take_download(session)
        except TimeoutError:
            await context.abort(
                grpc.StatusCode.DEADLINE_EXCEEDED, f"a slice must be taken within {self._stall_seconds:g} s"
            )
        finally:
            session.is_downloading = False

    async def Upload(self, requests: AsyncIterator[pb.UploadRequest], context: Context) -> None:  # noqa: N802 - the contract's name
        """Receive one contribution and say whether it entered the sum."""
        header = await self._header_of(context)
        session = await self._session_of(header.session_token, context)
        with about(run_id=header.run_id[:TEXT_LENGTH], round_number=header.round, client_id=session.client.client_id):
            verdict = await self._verdict(session, header, context)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._stall_seconds):
                await context.write(pb.UploadResponse(verdict=verdict))

    async def _hold(self, session: Session, context: Context) -> None:
        """Hold a session until either side ends it."""
        code, reason = grpc.StatusCode.OK, "its stream ended"
        try:
            if self._sessions.is_ending:
                raise _SessionEnded(grpc.StatusCode.UNAVAILABLE, "the coordinator shuts down")
            await self._sessions.open(session)
            welcome = pb.Welcome(client_id=session.client.client_id, session_token=session.token)
            await _say(pb.JoinResponse(welcome=welcome), context)
            self._sessions.start(session)
            async with asyncio.TaskGroup() as group:
                writing = group.create_task(self._write(session, context))
                await self._read(session, context)
                writing.cancel()
        except* _SessionEnded as ends:
            end = _first(ends)
            code, reason = end.code, str(end)
        finally:
            await asyncio.shield(self._sessions.close(session, reason))
        if code is not grpc.StatusCode.OK:
            await context.abort(code, reason)

    async def _greet(self, context: Context) -> ClientRecord:
        """Challenge a client and return who it is.

        Raises:
            _SessionEnded: The client breaks a rule.
        """
        nonce = secrets.token_bytes(32)
        challenge = pb.Challenge(protocol_version=PROTOCOL_VERSION, nonce=nonce)
        await _say(pb.JoinResponse(challenge=challenge), context)
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                message = await _next(context)
        except TimeoutError:
            detail = f"a hello must come within {HELLO_SECONDS:g} s"
            raise _SessionEnded(grpc.StatusCode.DEADLINE_EXCEEDED, detail) from None
        except TransferError as error:
            raise _SessionEnded(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error
        if not isinstance(message, pb.JoinRequest):
            raise _SessionEnded(grpc.StatusCode.CANCELLED, "the stream ended before its hello")
        if not message.HasField("hello"):
            raise _SessionEnded(grpc.StatusCode.INVALID_ARGUMENT, "the first message of a session must be a hello")
        hello = message.hello
        if hello.protocol_version != PROTOCOL_VERSION:
            raise _SessionEnded(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"protocol version must be the coordinator's, {PROTOCOL_VERSION}, got {hello.protocol_version}. "
                "Install the same release on both sides",
            )
        if not is_hello_signed(hello.public_key, hello.signature, hello.protocol_version, nonce):
            raise _SessionEnded(grpc.StatusCode.UNAUTHENTICATED, "the hello must be signed with the key that it names")
        if self._doorkeeper is not None and (problem := await self._doorkeeper.problem_with(hello.public_key)):
            raise _SessionEnded(grpc.StatusCode.PERMISSION_DENIED, problem)
        if not 1 <= len(hello.name) <= 64 or not hello.name.isprintable():
            raise _SessionEnded(
                grpc.StatusCode.INVALID_ARGUMENT, f"name must be 1 to 64 printable characters, got {hello.name[:80]!r}"
            )
        if hello.data.example_count < 1:
            raise _SessionEnded(grpc.StatusCode.INVALID_ARGUMENT, "data.example_count must be at least 1, got 0")
        return client_of(hello)

    async def _write(self, session: Session, context: Context) -> None:
        """Send what is queued for a client, and heartbeats in between."""
        while True:
            try:
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    message = await session.outbox.get()
            except TimeoutError:
                message = pb.JoinResponse(heartbeat=pb.Heartbeat())
            await _say(message, context)
            if message.HasField("goodbye"):
                code = _FAREWELLS.get(message.goodbye.reason, grpc.StatusCode.UNAVAILABLE)
                raise _SessionEnded(code, message.goodbye.detail)

    async def _read(self, session: Session, context: Context) -> None:
        """Take what a client sends, until it ends its side or falls silent."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(SILENCE_SECONDS) as limit:
                while isinstance(message := await _next(context), pb.JoinRequest):
                    limit.reschedule(loop.time() + SILENCE_SECONDS)
                    self._take(session, message)
        except TimeoutError:
            session.end(pb.GOODBYE_REASON_SILENT, f"nothing was heard for {SILENCE_SECONDS:g} s")
            # The goodbye may never arrive; the stream ends here in any case.
            raise _SessionEnded(grpc.StatusCode.UNAVAILABLE, f"nothing was heard for {SILENCE_SECONDS:g} s") from None
        except TransferError as error:
            raise _SessionEnded(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error

    def _take(self, session: Session, message: pb.JoinRequest) -> None:
        match message.WhichOneof("message"):
            case "heartbeat":
                pass
            case "progress":
                self._sessions.take_progress(session, message.progress)
            case "task_failed":
                reply = message.task_failed
                reply.detail = printable(reply.detail, TEXT_LENGTH)
                self._sessions.take_reply(session, reply)
            case "evaluate_result" | "advertise" | "shares" | "survivor_ack" | "unmask" as kind:
                self._sessions.take_reply(session, getattr(message, kind))
            case other:
                detail = f"a message on an open session must not be {other or 'empty'}"
                raise _SessionEnded(grpc.StatusCode.INVALID_ARGUMENT, detail)

    async def _verdict(self, session: Session, header: pb.UploadHeader, context: Context) -> pb.UploadVerdict:
        """Receive the contribution that a header announces, and return what is said to it."""
        client_id = session.client.client_id
        inbox = self._transfers.inbox_for(client_id, header.run_id)
        try:
            if inbox is None:
                raise ContributionRefused(
                    pb.REFUSAL_REASON_TOO_LATE,
                    f"run {header.run_id[:TEXT_LENGTH]!r} must have an open round, it has none",
                )
            await self._receive(session, header, inbox, context)
        except ContributionRefused as refusal:
            log.warning("client %s: contribution refused, %s: %s", client_id, reason_name(refusal.reason), refusal)
            verdict = pb.UploadVerdict(reason=refusal.reason, detail=str(refusal)[:TEXT_LENGTH])
            self._sessions.diary.refuse(client_id, header.run_id, refusal.reason, verdict.detail)
            return verdict
        self._sessions.diary.accept(client_id, header.run_id)
        return pb.UploadVerdict()

    async def _receive(self, session: Session, header: pb.UploadHeader, inbox: Inbox, context: Context) -> None:
        """Receive the vector that a header announces, and offer it to the inbox, unless the inbox has it already.

        Raises:
            ContributionRefused: It did not enter the sum; the inbox has recorded why.
        """
        client_id = session.client.client_id
        binding = Binding(header.run_id[:TEXT_LENGTH], header.round, header.base_sha256, header.layout_sha256)
        try:
            if inbox.holds(client_id, binding, header.sha256):
                return
            inbox.check(client_id, binding)
            check_header(header, inbox)
            self._sessions.diary.bring(client_id, header.run_id)
            async with self._transfers.upload(client_id, inbox) as upload:
                # While an older upload of this client came to its end, the round may have closed or taken that one.
                if inbox.holds(client_id, binding, header.sha256):
                    return
                inbox.check(client_id, binding)
                refusal = await self._fill(client_id, header, upload, context)
        except TimeoutError:
            refusal = self._interrupted(upload)
            if upload.interruption is Interruption.SLOW:
                inbox.refuse(client_id, refusal.reason, str(refusal))
            raise refusal from None
        except ContributionRefused as error:
            inbox.refuse(client_id, error.reason, str(error))
            raise
        if refusal is not None:
            raise refusal

    async def _fill(
        self, client_id: str, header: pb.UploadHeader, upload: Reception, context: Context
    ) -> ContributionRefused | None:
        """Wait for a place, take slices until the vector is whole, and return what the inbox says to it.

        Raises:
            ContributionRefused: A slice breaks a rule, or the client ended its side early. It is not recorded yet.
            TimeoutError: The upload was interrupted.
            CancelledError: The connection broke. The buffer is parked, for the client to go on from it.
        """
        key = (client_id, header.run_id, header.round, header.sha256, header.total_bytes)
        buffer = partial(upload.inbox.buffer, header.total_bytes)
        async with self._transfers.places.take(key, header.sha256, buffer) as assembly:
            try:
                await self._take_slices(assembly, upload, context)
            except (asyncio.CancelledError, grpc.aio.InternalError):
                if upload.is_resumable and self._transfers.is_open(upload.inbox):
                    self._transfers.places.park(key, assembly)
                raise
            except TransferError as error:
                reason = pb.REFUSAL_REASON_CORRUPTED if assembly.is_complete else pb.REFUSAL_REASON_MALFORMED
                raise ContributionRefused(reason, str(error)) from error
            upload.finish()
            self._sessions.diary.arrive(client_id, header.run_id)
            arrival = Arrival(
                client_id,
                upload.inbox.binding,
                header.weight,
                header.example_count,
                dict(header.metrics),
                max(0.0, header.train_seconds) if math.isfinite(header.train_seconds) else 0.0,
                upload.inbox.vector_in(assembly.buffer),
                header.sha256,
                header.signature,
            )
            return await upload.inbox.admit(arrival)

    async def _take_slices(self, assembly: Assembly, upload: Reception, context: Context) -> None:
        """Grant the client its offset and write slices until the vector is whole and checked."""
        upload.allow(self._stall_seconds)
        await context.write(_grant(assembly))
        marked_bytes = assembly.received_bytes
        while not assembly.is_complete:
            message = await _next(context)
            if isinstance(message, pb.UploadRequest):
                raise TransferError("Upload: every message after the header must be a slice.")
            if not isinstance(message, Part):
                # A broken connection looks like the end of the requests too, but nothing can be written to it: the next line then
                # ends with the call's cancellation. A client that closed its side on purpose hears once more how much has arrived.
                await context.write(_grant(assembly))
                raise ContributionRefused(
                    pb.REFUSAL_REASON_TRUNCATED,
                    f"the vector must have {len(assembly.buffer)} bytes, the upload ended after {assembly.received_bytes}",
                )
            assembly.write(message.offset, message.data)
            self._transfers.observer.note_received(len(message.data))
            # Else this slice would be held while the next one arrives.
            del message
            if assembly.received_bytes - marked_bytes >= STALL_BYTES:
                marked_bytes = assembly.received_bytes
                upload.allow(self._stall_seconds)
        assembly.check()

    async def _header_of(self, context: Context) -> pb.UploadHeader:
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                first = await _next(context)
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"a header must come within {HELLO_SECONDS:g} s")
        except TransferError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        if not isinstance(first, pb.UploadRequest) or not first.HasField("header"):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first message of an upload must be its header")
        return first.header

    def _interrupted(self, upload: Reception) -> ContributionRefused:
        match upload.interruption:
            case Interruption.CLOSED:
                return ContributionRefused(pb.REFUSAL_REASON_TOO_LATE, "the round has closed")
            case Interruption.SUPERSEDED:
                return ContributionRefused(pb.REFUSAL_REASON_DUPLICATE, "a newer upload has taken this one's place")
            case Interruption.SLOW:
                return ContributionRefused(
                    pb.REFUSAL_REASON_TOO_SLOW,
                    f"an upload must bring {STALL_BYTES} bytes in {self._stall_seconds:g} s or end, it brought fewer",
                )

    async def _session_of(self, token: bytes, context: Context) -> Session:
        if (session := self._sessions.by_token(token)) is None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "session_token must be that of an open session")
        return session


async def _next(context: Context) -> object:
    """Return a client's next message, or what gRPC has for the end of its side.

    Raises:
        TransferError: The bytes are no message of the contract.
    """
    try:
        return await context.read()
    except DecodeError as error:
        raise TransferError(
            f"Message: must be well-formed protobuf of the contract, got bytes that are not: {error}."
        ) from error


async def _say(message: pb.JoinResponse, context: Context) -> None:
    """Send a message on a session.

    Raises:
        _SessionEnded: The client does not read.
    """
    try:
        async with asyncio.timeout(SILENCE_SECONDS):
            await context.write(message)
    except TimeoutError:
        raise _SessionEnded(grpc.StatusCode.UNAVAILABLE, f"it has read nothing for {SILENCE_SECONDS:g} s") from None


def _grant(assembly: Assembly) -> pb.UploadResponse:
    return pb.UploadResponse(grant=pb.UploadGrant(offset=assembly.received_bytes))


def _first(group: BaseExceptionGroup[_SessionEnded]) -> _SessionEnded:
    for error in group.exceptions:
        return _first(error) if isinstance(error, BaseExceptionGroup) else error
    raise AssertionError("an exception group is never empty")
