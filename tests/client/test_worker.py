import asyncio
import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import torch

from client.cache import ModelCache
from client.data import LocalData
from client.policy import Policy
from client.training import Assignment, Result, Trainer
from client.worker import Link, Site, Worker
from models import Examples
from server.coordinator import Coordinator
from server.model import ModelShop
from server.records import RunState
from tests.client.relay import relaying
from tests.client.scripted import ScriptedCoordinator
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
from tests.loopback import WAIT_SECONDS, run_in_state, until
from wire import federation_pb2 as pb
from wire.protocol import SLICE_BYTES
from wire.spec import RunSpec
from wire.tensors import vector_bytes

TRAIN = Trainer.train
LARGE = {"name": "mlp", "inputs": [1, 8, 8], "hidden": [9000]}
"""A model of 2.7 MB, three slices."""


def contribution(spec: RunSpec, round_number: int = 1, client_id: str = "c" * 32) -> bytes:
    """Return what a client must bring, trained here."""
    assignment = Assignment(spec, round_number, client_id, ModelShop(spec).initial().vector)
    # The function itself: tests put others in its place.
    result = TRAIN(Trainer(spec.learner, CPU), assignment, DIGITS, lambda fraction: None)
    return bytes(vector_bytes(result.vector))


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


def count_takes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows by a task's identity whenever a client has taken a task from its session."""
    taken: list[str] = []
    take = Worker.take

    def remember(worker: Worker, task: pb.Task, client_id: str) -> None:
        take(worker, task, client_id)
        taken.append(task.task_id)

    monkeypatch.setattr(Worker, "take", remember)
    return taken


# --- Tasks that end before their time ---


async def test_withdrawn_task_stops_training_and_leaves_the_learner_usable(
    script: ScriptedCoordinator, tmp_path: Path, training: HeldTraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = contribution(digits_spec(), round_number=2)
    built = count_trainers(monkeypatch)
    task = script.task()
    async with running(make_agent(tmp_path, script.address)):
        session = await script.session()
        await session.push(task)
        await until_true(lambda: training.rounds, "training to begin")
        await session.withdraw(task)
        await until_true(lambda: training.stopped == [1], "training to stop")
        training.is_open.set()
        await session.push(script.task(round_number=2))
        upload = await script.upload()
        assert upload.header.round == 2
        assert await upload.accept() == expected
    assert training.finished == [2]
    assert built == ["mlp"]


async def test_withdrawal_of_another_task_changes_nothing(
    script: ScriptedCoordinator, tmp_path: Path, training: HeldTraining
) -> None:
    async with running(make_agent(tmp_path, script.address)):
        session = await script.session()
        await session.push(script.task())
        await until_true(lambda: training.rounds, "training to begin")
        await session.withdraw(pb.Task(task_id="run/0/0/train"))
        training.is_open.set()
        await (await script.upload()).accept()
    assert training.stopped == []


async def test_new_task_takes_the_place_of_the_old(
    script: ScriptedCoordinator, tmp_path: Path, training: HeldTraining
) -> None:
    async with running(make_agent(tmp_path, script.address)):
        session = await script.session()
        await session.push(script.task())
        await until_true(lambda: training.rounds == [1], "training to begin")
        await session.push(script.task(round_number=2))
        await until_true(lambda: training.stopped == [1], "the old training to stop")
        training.is_open.set()
        upload = await script.upload()
        assert upload.header.round == 2
        assert await upload.accept() == contribution(digits_spec(), round_number=2)
    assert training.finished == [2]


async def test_take_task_that_was_withdrawn_a_moment_ago_is_begun_again(
    tmp_path: Path, script: ScriptedCoordinator, training: HeldTraining
) -> None:
    # Paused and resumed at once: both messages are read before the old work has come to its end.
    task = script.task()
    cache = ModelCache(tmp_path)
    with cache.begin(task.base.sha256) as partial:
        partial.write(script.models[task.base.sha256])
        partial.finish(task.base.total_bytes)
    worker = Worker(Site(DIGITS, CPU, Policy(), cache), Link())
    try:
        worker.take(task, "ana")
        await until_true(lambda: training.rounds, "training to begin")
        worker.cancel(task.task_id, "paused")
        worker.take(task, "ana")
        training.is_open.set()
        await until_true(lambda: training.finished, "training to end")
    finally:
        await worker.close()
    assert training.rounds == [1, 1]


def count_trainers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows by a learner's name whenever a trainer is built."""
    built: list[str] = []
    init = Trainer.__init__

    def remember(trainer: Trainer, learner: Any, device: torch.device) -> None:
        built.append(learner.name)
        init(trainer, learner, device)

    monkeypatch.setattr(Trainer, "__init__", remember)
    return built


# --- Tasks that are refused ---


async def failed(script: ScriptedCoordinator, folder: Path, task: pb.Task, data: LocalData = DIGITS) -> pb.TaskFailed:
    """Push a task, and then one that works; return how the first failed."""
    async with running(make_agent(folder, script.address, data)):
        session = await script.session()
        await session.push(task)
        reply: pb.TaskFailed = await session.reply("task_failed")
        await session.push(script.task(round_number=9))
        assert (await script.upload()).header.round == 9
    assert reply.task_id == task.task_id
    return reply


async def test_data_of_another_shape_is_refused_with_the_shape_in_the_record(
    coordinator: Coordinator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sentence = "Learner mlp: examples must have shape (9,) float32, got (1, 8, 8) float32."
    async with running(agent := make_agent(tmp_path / "site", coordinator.address)):
        await until_joined(coordinator, agent)
        spec = digits_spec(learner={"name": "mlp", "inputs": [9], "hidden": []})
        [record] = await played(coordinator, spec, RunState.PAUSED)
        # The client works on.
        [after] = await played(coordinator, digits_spec())
    [refusal] = record.refusals
    assert (refusal.client_id, refusal.reason, refusal.detail) == (agent.client_id, "client_data", sentence)
    assert f"refused. {sentence}" in caplog.text
    assert len(after.contributions) == 1


async def test_weight_by_quality_without_held_out_data_is_refused(script: ScriptedCoordinator, tmp_path: Path) -> None:
    none = Examples(DIGITS.held_out.inputs[:0], DIGITS.held_out.targets[:0])
    data = LocalData("digits", DIGITS.training, none)
    reply = await failed(script, tmp_path, script.task(digits_spec(weight_by="quality")), data)
    assert reply.reason == pb.REFUSAL_REASON_CLIENT_DATA
    assert reply.detail.startswith("Weight by quality: at least 1 example must be held out, got 0.")


async def test_task_of_an_unknown_kind_is_refused(script: ScriptedCoordinator, tmp_path: Path) -> None:
    task = script.task()
    task.ClearField("train")
    reply = await failed(script, tmp_path, task)
    assert reply.reason == pb.REFUSAL_REASON_CLIENT_ERROR
    assert reply.detail.startswith("Task: kind must be one that this release knows, got another one.")


@pytest.mark.parametrize("field", ["layout_sha256", "total_bytes"])
async def test_task_of_another_layout_is_refused_before_a_download(
    script: ScriptedCoordinator, tmp_path: Path, field: str
) -> None:
    task = script.task()
    setattr(task.base, field, bytes(32) if field == "layout_sha256" else task.base.total_bytes + 4)
    reply = await failed(script, tmp_path, task)
    assert reply.reason == pb.REFUSAL_REASON_CLIENT_ERROR
    assert reply.detail.startswith("Learner mlp: layout must be the coordinator's, ")
    assert reply.detail.endswith("Install the coordinator's release.")
    assert len(script.downloads) == 1


@pytest.mark.parametrize(
    ("spec_json", "detail"),
    [
        pytest.param("[]", "The coordinator's run spec: must be a mapping", id="no-mapping"),
        pytest.param("{}", "The coordinator's run spec: name is required.", id="empty"),
        pytest.param("\x00", "The coordinator's run spec: must be YAML or JSON", id="no-yaml"),
        pytest.param(
            digits_spec().canonical_json().replace('"name":"mlp"', '"name":"oracle"'),
            "Learner: name must be one of ",
            id="unknown-learner",
        ),
    ],
)
async def test_task_with_a_broken_spec_is_refused(
    script: ScriptedCoordinator, tmp_path: Path, spec_json: str, detail: str
) -> None:
    task = script.task()
    task.spec_json = spec_json
    reply = await failed(script, tmp_path, task)
    assert reply.reason == pb.REFUSAL_REASON_CLIENT_ERROR
    assert reply.detail.startswith(detail)


@pytest.mark.parametrize("error", [IndexError, KeyError, RuntimeError, ValueError, MemoryError, TimeoutError])
async def test_error_that_nobody_expected_is_refused_and_logged(
    script: ScriptedCoordinator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: type[Exception],
) -> None:
    train = Trainer.train

    def fail_once(trainer: Trainer, assignment: Assignment, data: LocalData, report: Callable[[float], None]) -> Result:
        if assignment.round_number == 1:
            raise error("row 7 is odd")
        return train(trainer, assignment, data, report)

    monkeypatch.setattr(Trainer, "train", fail_once)
    reply = await failed(script, tmp_path, script.task())
    assert reply.reason == pb.REFUSAL_REASON_CLIENT_ERROR
    assert reply.detail.startswith(f"Unexpected {error.__name__}: ")
    assert "row 7 is odd" in reply.detail
    assert "Traceback" in caplog.text


async def test_refusal_without_a_session_waits_for_the_next(
    script: ScriptedCoordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_asked, may_answer = threading.Event(), threading.Event()
    check = Trainer.check

    def check_slowly(trainer: Trainer, data: LocalData) -> None:
        is_asked.set()
        may_answer.wait(WAIT_SECONDS)
        check(trainer, data)

    monkeypatch.setattr(Trainer, "check", check_slowly)
    async with running(make_agent(tmp_path, script.address)):
        session = await script.session()
        await session.push(script.task(digits_spec(learner={"name": "mlp", "inputs": [9]})))
        await within(asyncio.to_thread(is_asked.wait, WAIT_SECONDS), "the data to be looked at")
        session.close(grpc.StatusCode.UNAVAILABLE, "restarting")
        again = await script.call()
        may_answer.set()
        await again.welcome()
        assert (await again.reply("task_failed")).reason == pb.REFUSAL_REASON_CLIENT_DATA


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
