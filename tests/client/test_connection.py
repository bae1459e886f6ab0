import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.connection import OUTBOX_SIZE, Connection, Endpoint, connect
from client.errors import ConnectionLostError, RejectedError
from tests.client.proxy import proxying
from tests.client.scripted import ScriptedCoordinator
from tests.client.sites import make_agent, running, until_true, within
from wire import federation_pb2 as pb
from wire.frames import Stub

KEY = Ed25519PrivateKey.generate()
HELLO = pb.Hello(name="ana", data=pb.DataSummary(example_count=1))


@pytest.fixture(autouse=True)
def soon_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients come back soon."""
    monkeypatch.setattr("client.agent.LONGEST_WAIT_SECONDS", 0.1)


# --- Opening a session ---


async def opened(script: ScriptedCoordinator) -> Connection:
    """Try to open a session and return at once."""
    async with connect(Endpoint(script.address), KEY, HELLO) as connection:
        return connection


async def refused(trying: "asyncio.Task[Connection]") -> Exception:
    """Return why a session was not opened."""
    with pytest.raises((ConnectionLostError, RejectedError)) as caught:
        await within(trying, "the client to give up")
    return caught.value


async def test_connect_coordinator_that_begins_with_something_else_is_left_for_good(
    script: ScriptedCoordinator,
) -> None:
    trying = asyncio.create_task(opened(script))
    await (await script.call()).send(pb.JoinResponse(heartbeat=pb.Heartbeat()))
    error = await refused(trying)
    assert isinstance(error, RejectedError)
    assert "must begin a session with a challenge" in str(error)


async def test_connect_coordinator_that_does_not_welcome_is_tried_again(script: ScriptedCoordinator) -> None:
    trying = asyncio.create_task(opened(script))
    session = await script.call()
    await session.send(pb.JoinResponse(challenge=pb.Challenge(protocol_version=1, nonce=bytes(32))))
    await session.receive()
    # The call stays open: nothing but the wrong answer tells the client.
    await session.send(pb.JoinResponse(heartbeat=pb.Heartbeat()))
    error = await refused(trying)
    assert isinstance(error, ConnectionLostError)
    assert str(error) == "the coordinator did not answer the hello with a welcome"


@pytest.mark.parametrize("challenges", [0, 1])
async def test_connect_coordinator_that_says_nothing_is_given_up_in_time(
    script: ScriptedCoordinator, monkeypatch: pytest.MonkeyPatch, challenges: int
) -> None:
    monkeypatch.setattr("client.connection.HELLO_SECONDS", 0.2)
    trying = asyncio.create_task(opened(script))
    session = await script.call()
    for _ in range(challenges):
        await session.send(pb.JoinResponse(challenge=pb.Challenge(protocol_version=1, nonce=bytes(32))))
    error = await refused(trying)
    assert isinstance(error, ConnectionLostError)
    assert str(error) == "the coordinator did not answer within 0.2 s"


async def test_connect_server_without_the_service_is_tried_again_and_named() -> None:
    server = grpc.aio.server()
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        with pytest.raises(ConnectionLostError) as caught:
            async with connect(Endpoint(address), KEY, HELLO):
                pass
    finally:
        await server.stop(None)
    assert str(caught.value) == (
        f"{address} answered UNIMPLEMENTED instead of a coordinator's challenge, Method not found!; "
        "if it goes on, check the address and what stands in between"
    )


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            grpc.StatusCode.PERMISSION_DENIED,
            "answered PERMISSION_DENIED instead of a coordinator's challenge, go away;",
        ),
        (grpc.StatusCode.OK, "ended the call without a coordinator's challenge"),
    ],
)
async def test_connect_call_that_ends_before_a_challenge_is_tried_again(
    script: ScriptedCoordinator, code: grpc.StatusCode, words: str
) -> None:
    trying = asyncio.create_task(opened(script))
    (await script.call()).close(code, "go away")
    error = await refused(trying)
    assert isinstance(error, ConnectionLostError)
    assert words in str(error)


@pytest.mark.parametrize("status", ["401", "403", "404"])
async def test_run_comes_back_after_a_proxy_has_answered_for_the_coordinator(
    script: ScriptedCoordinator, tmp_path: Path, caplog: pytest.LogCaptureFixture, status: str
) -> None:
    async with proxying(script.address, status) as proxy, running(make_agent(tmp_path, proxy.address)) as client:
        await until_true(lambda: proxy.answer_count >= 3, "three answers of the proxy")
        assert not client.done()
        proxy.is_open = True
        await script.session()
    assert f"cannot reach the coordinator, {proxy.address} answered " in caplog.text
    assert f"status: {status}" in caplog.text


class SlowCall:
    """A call of a client that takes its time over a challenge, so that the call has ended when it wants to answer."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.write, self.cancel = call.write, call.cancel

    async def read(self) -> object:
        message = await self._call.read()
        if isinstance(message, pb.JoinResponse) and message.HasField("challenge"):
            await until_true(self._call.done, "the call to end")
        return message


class SlowStub(Stub):
    def __init__(self, channel: grpc.aio.Channel) -> None:
        super().__init__(channel)
        join: Any = self.Join
        self.Join: Any = lambda: SlowCall(join())


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, ConnectionLostError),
        (grpc.StatusCode.UNKNOWN, ConnectionLostError),
        (grpc.StatusCode.OK, ConnectionLostError),
        (grpc.StatusCode.FAILED_PRECONDITION, RejectedError),
        (grpc.StatusCode.UNAUTHENTICATED, RejectedError),
    ],
)
async def test_connect_call_that_ends_between_challenge_and_hello_says_why(
    script: ScriptedCoordinator, monkeypatch: pytest.MonkeyPatch, code: grpc.StatusCode, kind: type[Exception]
) -> None:
    monkeypatch.setattr("client.connection.Stub", SlowStub)
    trying = asyncio.create_task(opened(script))
    session = await script.call()
    await session.send(pb.JoinResponse(challenge=pb.Challenge(protocol_version=1, nonce=bytes(32))))
    session.close(code, "the test says so")
    error = await refused(trying)
    assert isinstance(error, kind)
    assert "the test says so" in str(error) or code is grpc.StatusCode.OK


# --- An open session ---


async def test_messages_silence_ends_the_session(
    script: ScriptedCoordinator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("client.connection.SILENCE_SECONDS", 0.3)
    async with running(make_agent(tmp_path, script.address)):
        await script.session()
        await script.session()
    assert "lost the coordinator, nothing was heard from the coordinator for 0.3 s" in caplog.text


async def test_messages_heartbeats_keep_the_session(
    script: ScriptedCoordinator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("client.connection.SILENCE_SECONDS", 1.0)
    monkeypatch.setattr("client.connection.HEARTBEAT_SECONDS", 0.02)
    async with running(make_agent(tmp_path, script.address)):
        session = await script.session()
        start = asyncio.get_running_loop().time()
        # As many as it takes to outlast the silence that would end the session.
        while asyncio.get_running_loop().time() < start + 1.5:
            await session.reply("heartbeat")
            await session.send(pb.JoinResponse(heartbeat=pb.Heartbeat()))
    assert "lost the coordinator" not in caplog.text


@pytest.mark.parametrize(
    "message", [pb.JoinResponse(), pb.JoinResponse(challenge=pb.Challenge()), pb.JoinResponse(welcome=pb.Welcome())]
)
async def test_messages_that_a_client_does_not_know_are_ignored(
    script: ScriptedCoordinator, tmp_path: Path, message: pb.JoinResponse
) -> None:
    async with running(make_agent(tmp_path, script.address)):
        session = await script.session()
        await session.send(message)
        await session.push(script.task(kind="evaluate"))
        assert (await session.reply("evaluate_result")).example_count == 26


@pytest.mark.parametrize(
    "reason", [pb.GOODBYE_REASON_SHUTDOWN, pb.GOODBYE_REASON_SILENT, pb.GOODBYE_REASON_UNSPECIFIED]
)
async def test_messages_goodbye_brings_the_client_back(
    script: ScriptedCoordinator, tmp_path: Path, reason: pb.GoodbyeReason
) -> None:
    async with running(make_agent(tmp_path, script.address)):
        session = await script.session()
        await session.send(pb.JoinResponse(goodbye=pb.Goodbye(reason=reason, detail="see you")))
        await script.session()


async def listen(connection: Connection) -> None:
    async for _ in connection.messages():
        pass


async def test_send_on_a_session_that_has_ended_raises_instead_of_waiting(script: ScriptedCoordinator) -> None:
    greeting = asyncio.create_task(script.session())
    async with connect(Endpoint(script.address), KEY, HELLO) as connection:
        session = await greeting
        session.close(grpc.StatusCode.UNAVAILABLE, "gone")
        with pytest.raises(ConnectionLostError, match="gone"):
            await listen(connection)
        for _ in range(OUTBOX_SIZE + 1):
            with pytest.raises(ConnectionLostError, match="the session has ended"):
                await within(connection.send(pb.JoinRequest(heartbeat=pb.Heartbeat())), "the message to be refused")


async def test_send_that_waits_for_room_ends_with_the_session(script: ScriptedCoordinator) -> None:
    greeting = asyncio.create_task(script.session())
    async with connect(Endpoint(script.address), KEY, HELLO) as connection:
        session = await greeting
        # Nothing is written yet, so the outbox fills up.
        for _ in range(OUTBOX_SIZE):
            await within(connection.send(pb.JoinRequest(heartbeat=pb.Heartbeat())), "room")
        waiting = asyncio.create_task(connection.send(pb.JoinRequest(heartbeat=pb.Heartbeat())))
        await asyncio.sleep(0)
        assert not waiting.done()
        session.close(grpc.StatusCode.UNAVAILABLE, "gone")
        await until_true(lambda: connection._call.done(), "the call to end")
        with pytest.raises(ConnectionLostError, match="gone"):
            await listen(connection)
        with pytest.raises(ConnectionLostError):
            await within(waiting, "the message to be refused")


@pytest.mark.parametrize("ticks", range(1, 7))
async def test_transfer_that_has_hardly_begun_ends_with_the_session(script: ScriptedCoordinator, ticks: int) -> None:
    # gRPC lets a call wait for ever whose channel is closed before its first bytes are out.
    greeting = asyncio.create_task(script.session())
    async with connect(Endpoint(script.address), KEY, HELLO) as connection:
        await greeting
        listening = asyncio.create_task(listen(connection))
        upload = asyncio.create_task(connection.upload(pb.UploadHeader(), memoryview(bytes(4)), lambda fraction: None))
        for _ in range(ticks):
            await asyncio.sleep(0)
        listening.cancel()
        await asyncio.wait([listening])
    with pytest.raises(ConnectionLostError):
        await within(upload, "the upload to end")
