import asyncio
import hashlib
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import torch

from client.data import LocalData
from client.training import Assignment, Result, Trainer
from client.worker import Worker
from server.coordinator import Coordinator
from server.model import ModelShop
from server.records import RunState
from tests.client.relay import relaying
from tests.client.scripted import ScriptedCoordinator, Session, Upload
from tests.client.sites import (
    CPU,
    DIGITS,
    HeldTraining,
    contribution,
    digits_spec,
    make_agent,
    running,
    until_joined,
    until_true,
    within,
)
from tests.loopback import WAIT_SECONDS, run_in_state, until
from wire import federation_pb2 as pb
from wire.protocol import SLICE_BYTES

LARGE = {"name": "mlp", "inputs": [1, 8, 8], "hidden": [9000]}
"""A model of 2.7 MB, three slices."""


# --- Delivery ---


async def test_train_brings_a_contribution_bound_to_its_task(script: ScriptedCoordinator, tmp_path: Path) -> None:
    spec = digits_spec(learner=LARGE)
    task = script.task(spec)
    async with running(make_agent(tmp_path, script.address)):
        session = await script.session()
        await session.push(task)
        upload = await script.upload()
        data = await upload.accept()
    header = upload.header
    assert data == contribution(spec)
    assert len(data) > 2 * SLICE_BYTES
    assert (header.task_id, header.run_id, header.round) == (task.task_id, task.run_id, task.round)
    assert (header.base_sha256, header.layout_sha256) == (task.base.sha256, task.base.layout_sha256)
    assert (header.total_bytes, header.sha256) == (len(data), hashlib.sha256(data).digest())
    assert header.encoding == pb.VECTOR_ENCODING_FLOAT32
    assert (header.weight, header.example_count) == (104, 104)
    assert header.metrics["train_loss"] > 0
    assert header.train_seconds > 0


async def test_evaluate_brings_means_over_the_held_out_examples(script: ScriptedCoordinator, tmp_path: Path) -> None:
    spec = digits_spec()
    async with running(make_agent(tmp_path, script.address)):
        session = await script.session()
        await session.push(script.task(spec, "evaluate"))
        result = await session.reply("evaluate_result")
    vector = ModelShop(spec).initial().vector
    expected = Trainer(spec.learner, CPU).evaluate(vector, DIGITS)
    assert result.task_id == "run/1/0/evaluate"
    assert (result.example_count, dict(result.metrics)) == (26, dict(expected.metrics))


async def test_upload_that_breaks_goes_on_from_the_granted_offset(script: ScriptedCoordinator, tmp_path: Path) -> None:
    spec = digits_spec(learner=LARGE)
    async with running(make_agent(tmp_path, script.address)):
        session = await script.session()
        await session.push(script.task(spec))
        first = await script.upload()
        await first.grant()
        arrived = (await first.slice()).data
        first.close(grpc.StatusCode.UNAVAILABLE, "a hiccup")
        second = await script.upload()
        await second.grant(len(arrived))
        data = await second.rest(arrived)
        await second.judge()
    assert data == contribution(spec)
    assert second.header == first.header


async def test_upload_refused_in_the_middle_hears_its_verdict(
    script: ScriptedCoordinator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = digits_spec(learner={"name": "mlp", "inputs": [1, 8, 8], "hidden": [40000]})
    async with running(make_agent(tmp_path, script.address)):
        session = await script.session()
        await session.push(script.task(spec))
        upload = await script.upload()
        await upload.grant()
        await upload.slice()
        await upload.judge(pb.REFUSAL_REASON_NOT_FINITE, "value 3 must be finite, got nan")
        verdict = "task run/1/0/train: not taken, not_finite: value 3 must be finite, got nan"
        await until_true(lambda: verdict in caplog.messages, "the verdict in the client's log")
        # Refused for good: the next thing to come is the next task's.
        await session.push(script.task(digits_spec(), round_number=2))
        assert (await script.upload()).header.round == 2


async def test_upload_that_nobody_answers_ends_with_its_session_and_is_begun_again(
    script: ScriptedCoordinator, tmp_path: Path, training: HeldTraining
) -> None:
    training.is_open.set()
    task = script.task()
    async with running(make_agent(tmp_path, script.address)):
        session = await script.session()
        await session.push(task)
        await script.upload()
        # The upload itself stays open and silent.
        session.close(grpc.StatusCode.UNAVAILABLE, "restarting")
        again = await script.session()
        await again.push(task)
        data = await (await script.upload()).accept()
    assert data == contribution(digits_spec())
    assert training.rounds == [1]


async def test_upload_to_a_port_that_swallows_everything_ends_with_its_session(
    script: ScriptedCoordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, training: HeldTraining
) -> None:
    monkeypatch.setattr("client.connection.SILENCE_SECONDS", 0.5)
    script.heartbeat_seconds = 0.05
    task = script.task()
    async with relaying(script.address) as relay, running(make_agent(tmp_path, relay.address)):
        session = await script.session()
        await session.push(task)
        await until_true(lambda: training.rounds, "training to begin")
        # Nothing is lost but bytes: no side learns of it from its socket.
        relay.is_silent = True
        training.is_open.set()
        await until_true(lambda: training.finished, "training to end")
        await until_true(lambda: relay.swallowed_bytes, "the upload to be swallowed")
        await until_true(lambda: relay.connection_count >= 2, "the client to try another connection")
        relay.is_silent = False
        relay.cut()
        relay.is_open = True
        again = await script.session()
        await again.push(task)
        assert await (await script.upload()).accept() == contribution(digits_spec())
    assert training.rounds == [1]


# --- Connections that break ---


async def test_broken_connection_lets_training_go_on_and_delivers_on_the_next_session(
    coordinator: Coordinator, tmp_path: Path, training: HeldTraining
) -> None:
    async with relaying(coordinator.address) as relay, running(agent := make_agent(tmp_path / "site", relay.address)):
        await until_joined(coordinator, agent)
        run = await coordinator.runs.submit(digits_spec())
        await until_true(lambda: training.rounds, "training to begin")
        relay.cut()
        await until_true(lambda: coordinator.sessions.by_client(agent.client_id) is None, "the session to break")
        assert training.stopped == []
        training.is_open.set()
        await until_true(lambda: training.finished, "training to end without a session")
        relay.is_open = True
        await run_in_state(coordinator, run.run_id, RunState.FINISHED)
        [record] = await coordinator.store.rounds(run.run_id)
    assert training.rounds == [1]
    assert [part.client_id for part in record.contributions] == [agent.client_id]
    assert record.refusals == []


async def test_task_that_is_asked_for_again_after_delivery_is_delivered_without_training(
    script: ScriptedCoordinator, tmp_path: Path, training: HeldTraining
) -> None:
    training.is_open.set()
    task = script.task()
    async with running(make_agent(tmp_path, script.address)):
        session = await script.session()
        await session.push(task)
        first = await (await script.upload()).accept()
        session.close(grpc.StatusCode.UNAVAILABLE, "restarting")
        session = await script.session()
        # A coordinator that starts the round over names another attempt; seed, round and model are those of before.
        task.task_id, task.attempt = "run/1/1/train", 1
        await session.push(task)
        upload = await script.upload()
        assert upload.header.task_id == "run/1/1/train"
        assert await upload.accept() == first
        await session.push(script.task(round_number=2))
        assert await (await script.upload()).accept() != first
    assert training.rounds == [1, 2]


@pytest.mark.parametrize(
    "reason",
    [pb.REFUSAL_REASON_TOO_LATE, pb.REFUSAL_REASON_WRONG_RUN, pb.REFUSAL_REASON_WRONG_ROUND],
)
async def test_task_that_is_asked_for_again_before_the_verdict_arrives_is_delivered_once_more(
    script: ScriptedCoordinator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    training: HeldTraining,
    reason: pb.RefusalReason,
) -> None:
    # A coordinator that has just been started takes nothing before its round is open, then opens it and asks again. The question may
    # overtake the verdict, because they come on two streams.
    training.is_open.set()
    taken = count_takes(monkeypatch)
    task = script.task()
    async with running(make_agent(tmp_path, script.address)):
        session = await script.session()
        await session.push(task)
        upload = await script.upload()
        await session.push(task)
        await until_true(lambda: len(taken) == 2, "the task to arrive again")
        await upload.judge(reason, "no round is open")
        assert await (await script.upload()).accept() == contribution(digits_spec())
    assert training.rounds == [1]


async def test_task_that_is_asked_for_again_before_its_model_is_refused_is_begun_once_more(
    script: ScriptedCoordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = count_takes(monkeypatch)
    task = script.task(kind="evaluate")
    script.refused_downloads = 1
    script.serves_downloads.clear()
    async with running(make_agent(tmp_path, script.address)):
        session = await script.session()
        await session.push(task)
        await until_true(lambda: script.downloads, "a download")
        await session.push(task)
        await until_true(lambda: len(taken) == 2, "the task to arrive again")
        script.serves_downloads.set()
        assert (await session.reply("evaluate_result")).example_count == 26


async def test_task_that_was_refused_for_good_is_not_delivered_once_more(
    script: ScriptedCoordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = count_takes(monkeypatch)
    task = script.task()
    async with running(make_agent(tmp_path, script.address)):
        session = await script.session()
        await session.push(task)
        upload = await script.upload()
        await session.push(task)
        await until_true(lambda: len(taken) == 2, "the task to arrive again")
        await upload.judge(pb.REFUSAL_REASON_OUT_OF_RANGE, "too large")
        await session.push(script.task(round_number=2))
        assert (await script.upload()).header.round == 2


async def sent(script: ScriptedCoordinator, session: Session, task: pb.Task) -> Upload:
    """Push a task and return its upload when it is sent whole, and its sender knows that it is."""
    await session.push(task)
    upload = await script.upload()
    await upload.grant()
    await upload.rest()
    while (progress := await session.reply("progress")).phase != pb.PHASE_UPLOADING or progress.fraction < 1:
        pass
    return upload


@pytest.mark.parametrize("is_withdrawn", [False, True])
async def test_verdict_that_the_next_task_overtakes_is_heard(
    script: ScriptedCoordinator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    is_withdrawn: bool,
) -> None:
    monkeypatch.setattr("client.worker.PROGRESS_SECONDS", 0.02)
    monkeypatch.setattr("client.worker.VERDICT_SECONDS", WAIT_SECONDS)
    taken = count_takes(monkeypatch)
    task = script.task()
    with caplog.at_level(logging.INFO, "client"):
        async with running(make_agent(tmp_path, script.address)):
            session = await script.session()
            upload = await sent(script, session, task)
            if is_withdrawn:
                await session.withdraw(task)
            await session.push(script.task(round_number=2))
            await until_true(lambda: len(taken) == 2, "the next task to arrive")
            await upload.judge()
            assert (await script.upload()).header.round == 2
    assert "task run/1/0/train: delivered, " in caplog.text


async def test_verdict_that_does_not_come_holds_the_next_task_up_for_a_moment_only(
    script: ScriptedCoordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("client.worker.PROGRESS_SECONDS", 0.02)
    monkeypatch.setattr("client.worker.VERDICT_SECONDS", 0.1)
    with caplog.at_level(logging.INFO, "client"):
        async with running(make_agent(tmp_path, script.address)):
            session = await script.session()
            await sent(script, session, script.task())
            await session.push(script.task(round_number=2))
            upload = await script.upload()
            assert upload.header.round == 2
            assert await upload.accept() == contribution(digits_spec(), round_number=2)
    assert "task run/1/0/train: delivered, " not in caplog.text


async def test_contribution_whose_verdict_is_lost_with_its_session_is_brought_again_only_if_asked_for(
    script: ScriptedCoordinator, tmp_path: Path, caplog: pytest.LogCaptureFixture, training: HeldTraining
) -> None:
    training.is_open.set()
    task = script.task()
    async with running(make_agent(tmp_path, script.address)):
        session = await script.session()
        await session.push(task)
        upload = await script.upload()
        await upload.grant()
        first = await upload.rest()
        session.close(grpc.StatusCode.UNAVAILABLE, "a hiccup")
        session = await script.session()
        aside = "task run/1/0/train: put aside, the coordinator has not asked for it since the connection broke"
        await until_true(lambda: aside in caplog.messages, "the contribution to be put aside")
        # The next thing to come is not what was put aside, which the next round would have to refuse.
        await session.push(task)
        upload = await script.upload()
        assert upload.header.round == 1
        assert await upload.accept() == first
    assert training.rounds == [1]


async def test_verdict_that_is_lost_with_its_session_after_a_withdrawal_is_not_asked_for_again(
    script: ScriptedCoordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.worker.PROGRESS_SECONDS", 0.02)
    monkeypatch.setattr("client.worker.VERDICT_SECONDS", WAIT_SECONDS)
    taken = count_takes(monkeypatch)
    async with running(make_agent(tmp_path, script.address)):
        session = await script.session()
        await sent(script, session, script.task())
        await session.push(script.task(round_number=2))
        await until_true(lambda: len(taken) == 2, "the next task to arrive")
        session.close(grpc.StatusCode.UNAVAILABLE, "restarting")
        await (await script.session()).push(script.task(round_number=2))
        assert (await script.upload()).header.round == 2


def count_takes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows by a task's identity whenever a client has taken a task from its session."""
    taken: list[str] = []
    take = Worker.take

    def remember(worker: Worker, task: pb.Task, client_id: str) -> None:
        take(worker, task, client_id)
        taken.append(task.task_id)

    monkeypatch.setattr(Worker, "take", remember)
    return taken


# --- Progress ---


async def test_progress_of_a_long_training_is_shown_by_the_rest_api(
    coordinator: Coordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, training: HeldTraining
) -> None:
    monkeypatch.setattr("client.worker.PROGRESS_SECONDS", 0.05)
    async with (
        running(agent := make_agent(tmp_path / "site", coordinator.address)),
        httpx.AsyncClient(base_url=f"http://{coordinator.http_address}/api/v1") as rest,
    ):
        await until_joined(coordinator, agent)
        [idle] = (await rest.get("/clients")).json()
        run = await coordinator.runs.submit(digits_spec())

        async def training_client() -> Any:
            [client] = (await rest.get("/clients")).json()
            return client if client["phase"] == "training" and client["fraction"] else None

        client = await until(training_client, "progress")
        training.is_open.set()
        await run_in_state(coordinator, run.run_id, RunState.FINISHED)
        [after] = (await rest.get("/clients")).json()
    assert (idle["phase"], idle["fraction"], idle["task_id"]) == ("", 0.0, "")
    assert client["client_id"] == agent.client_id
    assert client["task_id"] == f"{run.run_id}/1/0/train"
    assert client["fraction"] == pytest.approx(0.5, abs=0.1)
    assert after["phase"] == ""


async def test_heartbeats_go_on_while_training_is_busy(
    script: ScriptedCoordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.connection.HEARTBEAT_SECONDS", 0.02)
    has_beaten, is_busy = threading.Event(), threading.Event()
    train = Trainer.train

    def train_busily(
        trainer: Trainer, assignment: Assignment, data: LocalData, report: Callable[[float], None]
    ) -> Result:
        is_busy.set()
        matrix = torch.ones(200, 200)
        give_up = time.monotonic() + WAIT_SECONDS
        while not has_beaten.is_set() and time.monotonic() < give_up:
            matrix = (matrix @ matrix).clamp(max=1)
        return train(trainer, assignment, data, report)

    monkeypatch.setattr(Trainer, "train", train_busily)
    async with running(make_agent(tmp_path, script.address)):
        session = await script.session()
        await session.push(script.task())
        await within(asyncio.to_thread(is_busy.wait, WAIT_SECONDS), "training to begin")
        await session.reply("heartbeat")
        for _ in range(10):
            await session.reply("heartbeat")
            assert not has_beaten.is_set()
        has_beaten.set()
        assert await (await script.upload()).accept() == contribution(digits_spec())
