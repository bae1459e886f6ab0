"""Masked rounds of real clients over real sockets: law L2, connections that break, and clients that come back with nothing."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.connection import Connection
from client.data import LocalData
from client.training import Trainer
from client.worker import Worker
from models import Evaluation
from privacy.secagg.session import SUITES
from server.clients.service import FederationService
from server.clients.sessions import Reply, Session, Sessions
from server.coordinator import Coordinator
from server.records import RunState
from server.rounds import Rounds
from tests.client.masked import NAMES, Federation, joined, masked_spec, mean_of, played, serial_model
from tests.client.relay import relaying
from tests.client.sites import running, until_true
from tests.loopback import run_in_state
from wire import federation_pb2 as pb
from wire.tensors import Vector

STAGES = ("advertise", "shares", "upload", "survivor_ack", "unmask")
REPLIES = {"advertise": pb.Advertise, "shares": pb.Shares, "survivor_ack": pb.SurvivorAck, "unmask": pb.Unmask}


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(tmp_path)


@pytest.fixture
async def coordinator(federation: Federation) -> AsyncIterator[Coordinator]:
    async with federation.serving() as coordinator:
        yield coordinator


@pytest.fixture
def serial(tmp_path: Path) -> Path:
    folder = tmp_path / "serial"
    folder.mkdir()
    return folder


# --- The whole of it ---


@pytest.mark.parametrize("key_agreement", SUITES)
async def test_masked_run_equals_the_serial_simulation_to_the_bit(
    federation: Federation,
    coordinator: Coordinator,
    serial: Path,
    key_agreement: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    spec = masked_spec({"audit": True, "key_agreement": key_agreement}, rounds=2, evaluate={"every": 1})
    with caplog.at_level(logging.INFO, "client"):
        async with joined(coordinator, [federation.agent(name, coordinator.address) for name in NAMES]):
            run_id, rounds = await played(coordinator, spec)
    # Of two rounds, each to train and to evaluate. The last words, that a session has ended, are not waited for.
    assert sum(text.endswith(": delivered, masked") for text in caplog.messages) == 20
    assert any(text.endswith(": over, the session has ended") for text in caplog.messages)
    assert [text for text in caplog.messages if ": withdrawn, " in text] == []
    expected = await serial_model(spec, federation.sites(), serial)
    assert np.array_equal(federation.model(coordinator, run_id, spec, 2), expected)
    for record in rounds:
        assert federation.contributors(record) == sorted(NAMES)
        assert record.refusals == []
        assert [(part.weight, part.example_count, part.metrics) for part in record.contributions] == [(0, 0, {})] * 5
        assert record.example_count == sum(len(data.training) for data in federation.sites().values())
        assert {"loss", "accuracy", "train_loss"} <= record.metrics.keys()
        assert record.session_count == 2
        assert [audit.kind for audit in record.audits] == ["train", "evaluate"]
        assert federation.signers(record) == [sorted(NAMES)] * 2


async def test_client_that_cannot_evaluate_is_kept_with_its_reason_and_costs_no_other_result(
    federation: Federation, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    agents = [federation.agent(name, coordinator.address) for name in NAMES]
    evaluate, broken = Trainer.evaluate, federation.data(NAMES[0])

    def fail(self: Trainer, vector: Vector, data: LocalData) -> Evaluation:
        if torch.equal(data.training.inputs, broken.training.inputs):
            raise RuntimeError("the disk is gone")
        return evaluate(self, vector, data)

    monkeypatch.setattr(Trainer, "evaluate", fail)
    async with joined(coordinator, agents):
        _, (record,) = await played(coordinator, masked_spec(evaluate={"every": 1}))
    assert len(record.contributions) == len(NAMES)
    assert {"loss", "accuracy"} <= record.metrics.keys()
    (failure,) = record.evaluation_failures
    assert (failure.client_id, failure.reason) == (federation.client_id(NAMES[0]), "client_error")
    assert failure.detail
    assert record.refusals == []


# --- Connections that break ---


def break_at_sending(patch: pytest.MonkeyPatch, stage: str, client_id: str, break_now: Callable[[], None]) -> None:
    """Break a client's connection once, in the moment in which it answers: the answer is lost."""
    send, upload, is_broken = Connection.send, Connection.upload, asyncio.Event()

    def break_once(connection: Connection, kind: str | None) -> None:
        if kind == stage and connection.client_id == client_id and not is_broken.is_set():
            is_broken.set()
            break_now()

    async def breaking_send(self: Connection, message: pb.JoinRequest) -> None:
        break_once(self, message.WhichOneof("message"))
        await send(self, message)

    async def breaking_upload(self: Connection, *arguments: Any) -> pb.UploadVerdict:
        break_once(self, "upload")
        return await upload(self, *arguments)

    patch.setattr(Connection, "send", breaking_send)
    patch.setattr(Connection, "upload", breaking_upload)


def break_at_arrival(patch: pytest.MonkeyPatch, stage: str, client_id: str, break_now: Callable[[], None]) -> None:
    """Break a client's connection once, when its answer has arrived."""
    take_reply, receive, is_broken = Sessions.take_reply, FederationService._receive, asyncio.Event()

    def break_once(session: Session, is_due: bool) -> None:
        if is_due and session.client.client_id == client_id and not is_broken.is_set():
            is_broken.set()
            break_now()

    def take_then_break(self: Sessions, session: Session, reply: Reply) -> None:
        take_reply(self, session, reply)
        break_once(session, isinstance(reply, REPLIES.get(stage, type(None))))

    async def receive_then_break(self: FederationService, session: Session, *arguments: Any) -> None:
        await receive(self, session, *arguments)
        break_once(session, stage == "upload")

    patch.setattr(Sessions, "take_reply", take_then_break)
    patch.setattr(FederationService, "_receive", receive_then_break)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("break_at", [break_at_sending, break_at_arrival])
async def test_client_whose_connection_breaks_goes_on_when_it_is_back(
    federation: Federation,
    coordinator: Coordinator,
    serial: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    break_at: Callable[..., None],
    stage: str,
) -> None:
    # Nobody is given up: whoever comes back within this time is in the sum.
    spec = masked_spec({"audit": True}, cohort={"quorum": 5, "return_seconds": 25})
    async with relaying(coordinator.address) as relay:
        agents = [federation.agent(name, coordinator.address) for name in NAMES[:4]]
        unlucky = federation.agent("eli", relay.address)

        def break_now() -> None:
            relay.cut()
            relay.is_open = True

        break_at(monkeypatch, stage, unlucky.client_id, break_now)
        async with joined(coordinator, [*agents, unlucky]):
            run_id, [record] = await played(coordinator, spec)
        assert relay.cut_count == 1
    assert "did not deliver" not in caplog.text
    assert federation.contributors(record) == sorted(NAMES)
    assert (record.refusals, record.session_count) == ([], 1)
    assert federation.signers(record) == [sorted(NAMES)]
    expected = await serial_model(spec, federation.sites(), serial)
    assert np.array_equal(federation.model(coordinator, run_id, spec, 1), expected)


# --- Clients that lose their process ---


def kill_at(
    patch: pytest.MonkeyPatch, stage: str, count: int, tasks: dict[str, "asyncio.Task[None]"], killed: list[str]
) -> None:
    """Cancel the first clients that are about to answer in a stage, and let nothing of their answers out."""
    send, upload = Connection.send, Connection.upload

    async def die(connection: Connection, kind: str | None) -> None:
        if kind == stage and len(killed) < count:
            killed.append(connection.client_id)
            tasks[connection.client_id].cancel()
            await asyncio.Event().wait()

    async def dying_send(self: Connection, message: pb.JoinRequest) -> None:
        await die(self, message.WhichOneof("message"))
        await send(self, message)

    async def dying_upload(self: Connection, *arguments: Any) -> pb.UploadVerdict:
        await die(self, "upload")
        return await upload(self, *arguments)

    patch.setattr(Connection, "send", dying_send)
    patch.setattr(Connection, "upload", dying_upload)


@pytest.mark.parametrize(
    ("stage", "is_lost"),
    [("advertise", True), ("shares", True), ("upload", True), ("survivor_ack", False), ("unmask", False)],
)
async def test_client_that_loses_its_process_costs_its_own_vector_at_most(
    federation: Federation, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch, stage: str, is_lost: bool
) -> None:
    spec = masked_spec({"audit": True})
    async with contextlib.AsyncExitStack() as stack:
        agents = [federation.agent(name, coordinator.address) for name in NAMES]
        tasks = await stack.enter_async_context(joined(coordinator, agents))
        killed: list[str] = []
        kill_at(monkeypatch, stage, 1, tasks, killed)
        run = asyncio.create_task(played(coordinator, spec))
        await until_true(lambda: killed, "a client to be killed")
        [name] = federation.names_of(killed)
        # The same client, started again: it knows nothing of the session any more.
        await stack.enter_async_context(running(federation.agent(name, coordinator.address)))
        run_id, [record] = await run
    left = [other for other in NAMES if not is_lost or other != name]
    assert federation.contributors(record) == left
    assert (record.session_count, record.refusals) == (1, [])
    assert federation.signers(record) == [left]
    assert np.array_equal(federation.model(coordinator, run_id, spec, 1), mean_of(federation, spec, left))


@pytest.mark.parametrize("stage", ["survivor_ack", "unmask"])
async def test_sum_is_opened_by_as_few_as_can(
    federation: Federation, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    # Fewer than a sum must have vectors: it is closed by then, and four of five clients can open it.
    spec = masked_spec({"minimum_cohort": 5}, cohort={"quorum": 5})
    is_told, told = asyncio.Event(), []
    take_reply, send = Sessions.take_reply, Connection.send

    def take_and_count(self: Sessions, session: Session, reply: Reply) -> None:
        take_reply(self, session, reply)
        if isinstance(reply, pb.TaskFailed):
            told.append(session.client.client_id)
            is_told.set()

    async def send_after_who_lost(self: Connection, message: pb.JoinRequest) -> None:
        if message.WhichOneof("message") == stage:
            await is_told.wait()
        await send(self, message)

    monkeypatch.setattr(Sessions, "take_reply", take_and_count)
    monkeypatch.setattr(Connection, "send", send_after_who_lost)
    async with contextlib.AsyncExitStack() as stack:
        agents = [federation.agent(name, coordinator.address) for name in NAMES]
        tasks = await stack.enter_async_context(joined(coordinator, agents))
        killed: list[str] = []
        kill_at(monkeypatch, stage, 1, tasks, killed)
        run = asyncio.create_task(played(coordinator, spec))
        await until_true(lambda: killed, "a client to be killed")
        [name] = federation.names_of(killed)
        await stack.enter_async_context(running(federation.agent(name, coordinator.address)))
        run_id, [record] = await run
    assert told == killed
    assert (federation.contributors(record), record.session_count) == (list(NAMES), 1)
    assert np.array_equal(federation.model(coordinator, run_id, spec, 1), mean_of(federation, spec, NAMES))


async def test_sum_below_the_quorum_is_not_opened_and_the_round_is_held_again(
    federation: Federation, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = masked_spec(cohort={"quorum": 5, "retries": 1, "return_seconds": 25})
    async with contextlib.AsyncExitStack() as stack:
        agents = [federation.agent(name, coordinator.address) for name in NAMES]
        tasks = await stack.enter_async_context(joined(coordinator, agents))
        killed: list[str] = []
        kill_at(monkeypatch, "upload", 1, tasks, killed)
        run = asyncio.create_task(played(coordinator, spec))
        await until_true(lambda: killed, "a client to be killed")
        [name] = federation.names_of(killed)
        await stack.enter_async_context(running(federation.agent(name, coordinator.address)))
        run_id, [record] = await run
    assert (record.attempt, record.session_count, record.is_opening) == (1, 2, True)
    assert federation.contributors(record) == list(NAMES)
    assert np.array_equal(federation.model(coordinator, run_id, spec, 1), mean_of(federation, spec, NAMES))


async def test_client_whose_verdict_comes_with_the_end_of_its_session_takes_part_in_the_next(
    federation: Federation, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = masked_spec(cohort={"quorum": 5, "retries": 1, "return_seconds": 25})
    upload, cancel, is_withdrawn = Connection.upload, Worker.cancel, asyncio.Event()
    late: list[str] = []

    async def upload_late(self: Connection, *arguments: Any) -> pb.UploadVerdict:
        verdict = await upload(self, *arguments)
        if not late:
            late.append(self.client_id)
            await is_withdrawn.wait()
        return verdict

    def cancel_and_tell(self: Worker, *arguments: Any) -> None:
        cancel(self, *arguments)
        is_withdrawn.set()

    monkeypatch.setattr(Connection, "upload", upload_late)
    monkeypatch.setattr(Worker, "cancel", cancel_and_tell)
    async with contextlib.AsyncExitStack() as stack:
        agents = [federation.agent(name, coordinator.address) for name in NAMES]
        tasks = await stack.enter_async_context(joined(coordinator, agents))
        killed: list[str] = []
        kill_at(monkeypatch, "upload", 1, tasks, killed)
        run = asyncio.create_task(played(coordinator, spec))
        await until_true(lambda: killed and late, "a client to be killed, and another to have uploaded")
        [name] = federation.names_of(killed)
        await stack.enter_async_context(running(federation.agent(name, coordinator.address)))
        _, [record] = await run
    assert (record.attempt, record.session_count) == (1, 2)
    assert federation.contributors(record) == list(NAMES)


async def test_shares_that_come_after_the_deliveries_change_nothing(
    federation: Federation, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = masked_spec()
    async with relaying(coordinator.address) as relay:
        agents = [federation.agent(name, coordinator.address) for name in NAMES[:4]]
        late = federation.agent("eli", relay.address)
        break_at_sending(monkeypatch, "shares", late.client_id, relay.cut)
        take_reply, upload, is_late_in = Sessions.take_reply, Connection.upload, asyncio.Event()

        def take_late(self: Sessions, session: Session, reply: Reply) -> None:
            take_reply(self, session, reply)
            if isinstance(reply, pb.Shares) and session.client.client_id == late.client_id:
                is_late_in.set()

        async def upload_later(self: Connection, *arguments: Any) -> pb.UploadVerdict:
            # The deliveries are made, and who is late is given up.
            relay.is_open = True
            await is_late_in.wait()
            return await upload(self, *arguments)

        monkeypatch.setattr(Sessions, "take_reply", take_late)
        monkeypatch.setattr(Connection, "upload", upload_later)
        async with joined(coordinator, [*agents, late]):
            run_id, [record] = await played(coordinator, spec)
    assert (federation.contributors(record), record.session_count) == (list(NAMES[:4]), 1)
    assert np.array_equal(federation.model(coordinator, run_id, spec, 1), mean_of(federation, spec, NAMES[:4]))


async def test_client_that_is_revoked_in_a_session_is_left_out_with_the_reason(
    federation: Federation, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, revoked, upload = masked_spec(), federation.client_id("eli"), Connection.upload

    async def upload_late(self: Connection, *arguments: Any) -> pb.UploadVerdict:
        if self.client_id == revoked:
            federation.enrol(*NAMES, revoked=["eli"])
            await asyncio.Event().wait()
        return await upload(self, *arguments)

    monkeypatch.setattr(Connection, "upload", upload_late)
    async with joined(coordinator, [federation.agent(name, coordinator.address) for name in NAMES]):
        run_id, [record] = await played(coordinator, spec)
    assert [(refusal.client_id, refusal.reason) for refusal in record.refusals] == [(revoked, "client_error")]
    assert record.refusals[0].detail.endswith("got one that is revoked")
    assert (federation.contributors(record), record.session_count) == (list(NAMES[:4]), 1)
    assert np.array_equal(federation.model(coordinator, run_id, spec, 1), mean_of(federation, spec, NAMES[:4]))


async def test_evaluation_of_a_kept_model_claims_its_clients(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = masked_spec(cohort={"return_seconds": 25}, evaluate={"every": 1})
    evaluate = Rounds._evaluate
    claimed: list[str] = []

    async def hang(self: Rounds, *arguments: Any) -> Any:
        hanging.set()
        await asyncio.Event().wait()

    async def note(self: Rounds, *arguments: Any) -> Any:
        claimed.extend(member.claimed_by for member in self._site.cohort.members())
        return await evaluate(self, *arguments)

    hanging = asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        monkeypatch.setattr(Rounds, "_evaluate", hang)
        async with federation.serving() as coordinator:
            address = coordinator.address
            await stack.enter_async_context(
                joined(coordinator, [federation.agent(name, coordinator.address) for name in NAMES])
            )
            run = await coordinator.runs.submit(spec)
            await hanging.wait()
        # As a coordinator that was killed while clients evaluate, and is back.
        monkeypatch.setattr(Rounds, "_evaluate", note)
        async with federation.serving(address=address) as coordinator:
            await run_in_state(coordinator, run.run_id, RunState.FINISHED)
            [record] = await coordinator.store.rounds(run.run_id)
    assert claimed == [run.run_id] * 5
    assert federation.contributors(record) == list(NAMES)
    assert "accuracy" in record.metrics
