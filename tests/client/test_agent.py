import asyncio
import contextlib
import logging
import random
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from client.agent import Agent, AgentConfig, Backoff
from client.connection import Endpoint
from client.data import load_local
from client.errors import ConnectionLostError, RejectedError
from client.policy import Policy
from privacy.enrolment import EnrolmentFile
from privacy.errors import EnrolmentError, IdentityError
from privacy.keys import load_identity
from server.coordinator import Coordinator
from server.records import RunState
from tests.client.relay import relaying
from tests.client.scripted import ScriptedCoordinator, scripted
from tests.client.sites import (
    CPU,
    DIGITS,
    HeldTraining,
    digits_spec,
    make_agent,
    played,
    running,
    until_joined,
    until_true,
    within,
)
from tests.federation import free_port
from tests.loopback import run_in_state, serving
from tests.privacy.rosters import PAST, entry, public, roster, write_roster
from wire import RELEASE
from wire import federation_pb2 as pb
from wire.protocol import PROTOCOL_VERSION

WAIT = re.compile(r"cannot reach the coordinator, .+; trying again in (\d+\.\d) s")
RETURN = re.compile(r"ana: lost the coordinator, .+; trying again in (\d+\.\d) s")


def waits(caplog: pytest.LogCaptureFixture, line: re.Pattern[str] = WAIT) -> list[float]:
    """Return the pauses between tries, as a client has logged them, in seconds."""
    return [float(found[1]) for text in caplog.messages if (found := line.fullmatch(text))]


class Upper(random.Random):
    """Draws the upper bound, always."""

    def uniform(self, a: float, b: float) -> float:
        """Return `b`."""
        return b


def losses(caplog: pytest.LogCaptureFixture) -> int:
    """Return how often a client has logged that its session broke."""
    return sum(text.startswith("ana: lost the coordinator, ") for text in caplog.messages)


# --- Joining ---


async def test_run_hello_says_who_joins_and_with_what(script: ScriptedCoordinator, tmp_path: Path) -> None:
    async with running(make_agent(tmp_path, script.address)):
        hello = (await script.session()).hello
    assert hello.protocol_version == PROTOCOL_VERSION
    assert (hello.name, hello.release) == ("ana", RELEASE)
    assert list(hello.data.example_shape) == [1, 8, 8]
    assert (hello.data.kind, hello.data.example_count, hello.data.held_out_count) == ("digits", 104, 26)
    assert (hello.capabilities.device, hello.capabilities.thread_count) == ("cpu", 1)
    assert {"mlp", "cnn", "lstm"} <= set(hello.capabilities.learners)


async def test_run_round_after_round_on_one_session(
    coordinator: Coordinator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    agents = [
        make_agent(tmp_path / f"site-{block}", coordinator.address, load_local(f"digits,blocks={block}", 0.2, 0))
        for block in range(2)
    ]
    with caplog.at_level(logging.INFO, "client"):
        async with running(agents[0]), running(agents[1]):
            await until_joined(coordinator, *agents)
            rounds = await played(
                coordinator, digits_spec(rounds=5, cohort={"size": 2}, local={"epochs": 8}, evaluate={"every": 5})
            )
    for record in rounds:
        assert [part.client_id for part in record.contributions] == sorted(agent.client_id for agent in agents)
        assert record.refusals == []
    assert rounds[-1].metrics["accuracy"] > 0.3
    # The coordinator runs in this process too, and says on loggers of its own who has joined.
    said = [record.getMessage() for record in caplog.records if record.name.startswith("client.")]
    assert sum(": joined " in text for text in said) == 2
    assert sum(": delivered, " in text for text in said) == 10
    assert [text for text in said if ": withdrawn, " in text] == []


async def test_restart_has_the_same_client_id(coordinator: Coordinator, tmp_path: Path) -> None:
    for _ in range(2):
        async with running(agent := make_agent(tmp_path, coordinator.address)):
            await until_joined(coordinator, agent)
    assert [client.client_id for client in coordinator.sessions.clients()] == [agent.client_id]


def test_agent_with_a_key_that_others_can_read_does_not_start(tmp_path: Path) -> None:
    make_agent(tmp_path, "127.0.0.1:1")
    (tmp_path / "identity.pem").chmod(0o644)
    with pytest.raises(IdentityError, match="must be readable by its owner alone"):
        make_agent(tmp_path, "127.0.0.1:1")


# --- Coming back ---


async def test_run_comes_back_whenever_the_coordinator_is_there_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("client.agent.LONGEST_WAIT_SECONDS", 0.05)
    address = f"127.0.0.1:{free_port()}"
    async with running(make_agent(tmp_path, address)) as client:
        for start in range(1, 4):
            await until_true(lambda start=start: len(waits(caplog)) >= 5 * start, "tries in vain")  # type: ignore[misc]
            async with scripted(address) as coordinator:
                await coordinator.session()
            await until_true(lambda start=start: losses(caplog) == start, "the loss to be noticed")  # type: ignore[misc]
        assert not client.done()
    assert max(waits(caplog)) <= 0.3


async def test_run_goes_on_with_a_run_that_its_coordinator_takes_up_again(
    tmp_path: Path, training: HeldTraining
) -> None:
    address = f"127.0.0.1:{free_port()}"
    agent = make_agent(tmp_path / "site", address)
    async with running(agent):
        async with serving(tmp_path / "coordinator", address=address) as coordinator:
            await until_joined(coordinator, agent)
            run = await coordinator.runs.submit(digits_spec(rounds=2, cohort={"return_seconds": 25}))
            await until_true(lambda: training.rounds, "training to begin")
        training.is_open.set()
        await until_true(lambda: training.finished, "training to end while no coordinator is there")
        async with serving(tmp_path / "coordinator", address=address) as coordinator:
            await run_in_state(coordinator, run.run_id, RunState.FINISHED)
            records = await coordinator.store.rounds(run.run_id)
    assert training.rounds == [1, 2]
    assert [len(record.contributions) for record in records] == [1, 1]
    assert [record.refusals for record in records] == [[], []]


async def test_run_that_loses_its_connections_over_and_over_ends_with_the_undisturbed_model(
    coordinator: Coordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.agent.LONGEST_WAIT_SECONDS", 0.05)
    learner = {"name": "mlp", "inputs": [1, 8, 8], "hidden": [5000]}
    cohort = {"size": 2, "return_seconds": 25}
    spec = digits_spec(learner=learner, rounds=12, cohort=cohort, evaluate={"every": 2})
    async with relaying(coordinator.address) as relay, contextlib.AsyncExitStack() as clients:
        for block in range(2):
            data = load_local(f"digits,blocks={block}", 0.2, 0)
            await clients.enter_async_context(running(make_agent(tmp_path / f"site-{block}", relay.address, data)))
        undisturbed = await played(coordinator, spec)
        chance = random.Random(3)
        # The model is 1.5 MB: 36 MB at least go through the relay, and 3 MB at most between two cuts.
        relay.bytes_until_cut = iter(lambda: chance.choice([1_000, 1_000_000, 2_500_000, 3_000_000]), None)
        disturbed = await played(coordinator, spec)
    assert relay.cut_count >= 12
    assert [record.model_sha256 for record in disturbed] == [record.model_sha256 for record in undisturbed]
    # Not even where a verdict was lost on its way: what is in the sum is not brought again, to this round or the next.
    assert [refusal for record in disturbed for refusal in record.refusals] == []
    assert [record.metrics for record in disturbed] == [record.metrics for record in undisturbed]


async def test_run_pauses_stay_below_their_bound_however_many_tries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("client.agent.LONGEST_WAIT_SECONDS", 0.01)
    async with running(make_agent(tmp_path, "127.0.0.1:1")):
        await until_true(lambda: len(waits(caplog)) >= 12, "12 tries")
    assert max(waits(caplog)) <= 0.3


async def test_run_is_cancelled_though_a_call_took_that_for_its_own_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = asyncio.Event()

    @contextlib.asynccontextmanager
    async def swallow(*_: object) -> AsyncIterator[None]:
        try:
            waiting.set()
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise ConnectionLostError("the call was cancelled") from None
        yield

    monkeypatch.setattr("client.agent.connect", swallow)
    running_agent = asyncio.create_task(make_agent(tmp_path, "127.0.0.1:1").run())
    await waiting.wait()
    running_agent.cancel()
    await asyncio.wait([running_agent], timeout=20)
    assert running_agent.cancelled()


async def test_run_session_that_came_about_starts_the_pauses_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address = f"127.0.0.1:{free_port()}"
    async with running(make_agent(tmp_path, address)):
        await until_true(lambda: len(waits(caplog)) >= 3, "3 tries")
        async with scripted(address) as coordinator:
            await coordinator.session()
            caplog.clear()
        await until_true(lambda: len(waits(caplog)) >= 1, "a try")
        # 0.2 s doubled by the session that died young, and by the first try in vain.
        assert waits(caplog)[0] <= 0.8


def test_backoff_pauses_grow_until_a_session_lasts() -> None:
    backoff = Backoff(Upper())
    assert [backoff.ended(60) for _ in range(3)] == [0.2] * 3
    assert [backoff.ended(0.1) for _ in range(7)] == [0.4, 0.8, 1.6, 3.2, 6.4, 8.0, 8.0]
    assert backoff.ended(60) == 0.2
    assert [backoff.vain() for _ in range(6)] == [0.4, 0.8, 1.6, 3.2, 6.4, 8.0]
    # A coordinator that was away for long, is found and is lost at once.
    assert [backoff.ended(0.1), backoff.vain()] == [0.4, 0.8]
    assert [backoff.vain() for _ in range(2000)][-1] == 8.0


def test_backoff_clients_that_leave_together_return_apart() -> None:
    pauses = sorted(Backoff(random.Random(seed)).ended(60) for seed in range(1000))
    assert 0 <= pauses[0] < 0.01
    assert pauses[500] == pytest.approx(0.1, abs=0.02)
    assert 0.19 < pauses[-1] <= 0.2


async def test_run_session_that_dies_after_its_welcome_is_not_opened_again_at_once(
    script: ScriptedCoordinator, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.agent.Backoff", lambda generator: Backoff(Upper()))
    clock = asyncio.get_running_loop().time
    ends: list[float] = []
    starts: list[float] = []
    async with running(make_agent(tmp_path, script.address)):
        for _ in range(3):
            session = await script.session()
            starts.append(clock())
            session.close(grpc.StatusCode.UNAVAILABLE, "see you")
            ends.append(clock())
        await script.session()
        starts.append(clock())
    assert waits(caplog, RETURN) == [0.4, 0.8, 1.6]
    assert all(start - end >= wait for start, end, wait in zip(starts[1:], ends, [0.4, 0.8, 1.6], strict=True))


async def test_run_cancelled_ends_training_and_session(
    coordinator: Coordinator, tmp_path: Path, training: HeldTraining
) -> None:
    async with running(agent := make_agent(tmp_path, coordinator.address)) as client:
        await until_joined(coordinator, agent)
        await coordinator.runs.submit(digits_spec())
        await until_true(lambda: training.rounds, "training to begin")
        client.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(client, "the client to end")
        await until_true(lambda: training.stopped == [1], "training to stop")
        await until_true(lambda: coordinator.sessions.by_client(agent.client_id) is None, "the session to end")
    assert training.finished == []


# --- Not coming back ---


async def test_run_coordinator_of_another_protocol_ends_the_client_with_both_versions(
    coordinator: Coordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("client.connection.PROTOCOL_VERSION", 9)
    sentence = (
        "The coordinator refused this client: protocol version must be the coordinator's, 1, got 9. "
        "Install the same release on both sides."
    )
    with pytest.raises(RejectedError, match=f"^{re.escape(sentence)}$"):
        await within(make_agent(tmp_path, coordinator.address).run(), "the client to end")
    assert f"ana: ended. {sentence}" in caplog.messages
    assert coordinator.sessions.clients() == []


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.UNAUTHENTICATED,
    ],
)
async def test_run_rejection_in_an_open_session_ends_the_client(
    script: ScriptedCoordinator, tmp_path: Path, code: grpc.StatusCode
) -> None:
    async with running(make_agent(tmp_path, script.address)) as client:
        session = await script.session()
        session.close(code, "go away")
        with pytest.raises(RejectedError, match=r"^The coordinator refused this client.*: go away\.$"):
            await within(client, "the client to end")


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.OK,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    ],
)
async def test_run_session_that_ends_otherwise_is_opened_again(
    script: ScriptedCoordinator, tmp_path: Path, code: grpc.StatusCode
) -> None:
    async with running(make_agent(tmp_path, script.address)) as client:
        session = await script.session()
        session.close(code, "see you")
        await script.session()
        assert not client.done()


async def test_two_clients_with_one_key_the_newer_wins_and_both_logs_say_so(
    coordinator: Coordinator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older = make_agent(tmp_path / "older", coordinator.address, name="older")
    (tmp_path / "newer").mkdir()
    shutil.copy2(tmp_path / "older" / "identity.pem", tmp_path / "newer" / "identity.pem")
    newer = make_agent(tmp_path / "newer", coordinator.address, DIGITS, "newer")
    assert newer.client_id == older.client_id
    sentence = (
        "The coordinator ended this session: a newer session with the same identity has taken this one's place. "
        "Each client must have an identity of its own."
    )
    async with running(older) as first:
        await until_joined(coordinator, older)
        async with running(newer) as second:
            with pytest.raises(RejectedError, match=f"^{re.escape(sentence)}$"):
                await within(first, "the older client to end")
            await until_joined(coordinator, newer)
            [record] = await played(coordinator, digits_spec())
            assert not second.done()
        [client] = coordinator.sessions.clients()
    assert client.name == "newer"
    assert [part.client_id for part in record.contributions] == [newer.client_id]
    assert f"older: ended. {sentence}" in caplog.messages
    newer_place = f"client {newer.client_id} (newer): a newer session takes the place of the older one"
    assert newer_place in caplog.messages


async def test_revoked_client_ends_with_the_coordinators_reason(script: ScriptedCoordinator, tmp_path: Path) -> None:
    async with running(make_agent(tmp_path, script.address)) as client:
        session = await script.session()
        goodbye = pb.Goodbye(reason=pb.GOODBYE_REASON_REVOKED, detail="you are revoked")
        await session.send(pb.JoinResponse(goodbye=goodbye))
        with pytest.raises(RejectedError, match=r"^The coordinator ended this session: you are revoked\.$"):
            await within(client, "the client to end")


async def test_client_that_is_not_enrolled_ends_with_the_coordinators_reason(tmp_path: Path) -> None:
    key = public(load_identity(tmp_path / "coordinator" / "coordinator.pem")).hex()
    path = write_roster(tmp_path / "roster.json", roster(coordinator_key=key))
    async with serving(tmp_path / "coordinator", roster=path) as coordinator:
        agent = make_agent(tmp_path, coordinator.address)
        sentence = (
            f"The coordinator refused this client: client {agent.client_id} must be enrolled in 'lakes', "
            "got one that is not listed."
        )
        with pytest.raises(RejectedError, match=f"^{re.escape(sentence)}$"):
            await within(agent.run(), "the client to end")


@pytest.mark.parametrize(
    ("changes", "standing"),
    [({}, ""), ({"revoked": True}, "revoked"), ({"not_after": PAST}, "expired on 2020-02-29"), (None, "not listed")],
)
def test_agent_that_its_own_roster_does_not_let_in_tells_the_officers_command(
    tmp_path: Path, changes: dict[str, Any] | None, standing: str
) -> None:
    agent = make_agent(tmp_path, "127.0.0.1:1")
    key = load_identity(tmp_path / "identity.pem")
    clients = [] if changes is None else [entry("ana", key, **changes)]
    enrolment = EnrolmentFile(write_roster(tmp_path / "roster.json", roster(*clients)))
    config = AgentConfig(Endpoint("127.0.0.1:1"), tmp_path, "site 3", CPU, 1, Policy(), enrolment)
    if not standing:
        assert Agent(config, DIGITS).client_id == agent.client_id
        return
    sentence = (
        f"Roster {enrolment.path}: client {agent.client_id} must be enrolled in 'lakes', got one that is {standing}. "
        f"The officer enrols it with: choral enroll add 'site 3' {public(key).hex()}"
    )
    with pytest.raises(EnrolmentError, match=f"^{re.escape(sentence)}$"):
        Agent(config, DIGITS)


async def test_superseded_client_stops_its_training(
    script: ScriptedCoordinator, tmp_path: Path, training: HeldTraining
) -> None:
    async with running(make_agent(tmp_path, script.address)) as client:
        session = await script.session()
        await session.push(script.task())
        await until_true(lambda: training.rounds, "training to begin")
        goodbye = pb.Goodbye(reason=pb.GOODBYE_REASON_SUPERSEDED, detail="there is another")
        await session.send(pb.JoinResponse(goodbye=goodbye))
        with pytest.raises(RejectedError, match="there is another"):
            await within(client, "the client to end")
        await until_true(lambda: training.stopped == [1], "training to stop")
