import asyncio
import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch

from client.cache import ModelCache
from client.data import LocalData
from client.link import Link
from client.policy import Policy, SecureAggregationPolicy
from client.training import Assignment, Result, Trainer
from client.worker import Site, Worker
from models import DataError, Examples
from server.coordinator import Coordinator
from server.first_model import FirstModel
from server.model import ModelShop
from server.records import RunState
from tests.client.scripted import ScriptedCoordinator
from tests.client.sites import (
    CPU,
    DIGITS,
    HeldTraining,
    contribution,
    digits_spec,
    make_agent,
    played,
    running,
    until_joined,
    until_true,
    within,
)
from tests.loopback import WAIT_SECONDS
from wire import federation_pb2 as pb
from wire.spec import RunSpec, validate_spec

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
    cache = ModelCache()
    incoming = cache.begin(task.base.sha256, task.base.total_bytes // 4)
    incoming.write(0, script.models[task.base.sha256])
    incoming.check()
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


async def test_data_of_another_shape_is_refused_with_the_rule_in_the_record(
    coordinator: Coordinator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rule = "Learner mlp: examples must have shape (9,) float32"
    sentence = f"{rule}. The client's log says what it has."
    async with running(agent := make_agent(tmp_path / "site", coordinator.address)):
        await until_joined(coordinator, agent)
        spec = digits_spec(learner={"name": "mlp", "inputs": [9], "hidden": []})
        [record] = await played(coordinator, spec, RunState.PAUSED)
        # The client works on.
        [after] = await played(coordinator, digits_spec())
    [refusal] = record.refusals
    assert (refusal.client_id, refusal.reason, refusal.detail) == (agent.client_id, "client_data", sentence)
    assert f"refused. {sentence}" in caplog.text
    assert f"{rule}, got (1, 8, 8) float32." in caplog.text
    assert len(after.contributions) == 1


async def test_coordinator_that_varies_classes_learns_no_label(
    coordinator: Coordinator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found: list[str] = []
    async with running(agent := make_agent(tmp_path / "site", coordinator.address)):
        await until_joined(coordinator, agent)
        for classes in (2, 3):
            spec = digits_spec(learner={"name": "mlp", "inputs": [1, 8, 8], "classes": classes})
            [record] = await played(coordinator, spec, RunState.PAUSED)
            found += [refusal.detail for refusal in record.refusals]
    rules = ["Learner mlp: classes must be 0 to 1", "Learner mlp: classes must be 0 to 2"]
    assert found == [f"{rule}. The client's log says what it has." for rule in rules]
    # The site's own people see which.
    for rule in rules:
        assert re.search(rf"{rule}, got \d in example \d+\.", caplog.text)


async def test_data_error_without_a_rule_to_tell_says_nothing_of_the_data(
    script: ScriptedCoordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    check = Trainer.check

    def fail_once(trainer: Trainer, data: LocalData) -> None:
        monkeypatch.setattr(Trainer, "check", check)
        raise DataError("Row 7: age must be below 120, got 130.")

    monkeypatch.setattr(Trainer, "check", fail_once)
    reply = await failed(script, tmp_path, script.task())
    assert reply.reason == pb.REFUSAL_REASON_CLIENT_DATA
    assert reply.detail == "Local data must suit the learner. The client's log says what it has."
    assert "Row 7: age must be below 120, got 130." in caplog.text


async def test_weight_by_quality_without_held_out_data_is_refused(script: ScriptedCoordinator, tmp_path: Path) -> None:
    none = Examples(DIGITS.held_out.inputs[:0], DIGITS.held_out.targets[:0])
    data = LocalData("digits", DIGITS.training, none)
    reply = await failed(script, tmp_path, script.task(digits_spec(weight_by="quality")), data)
    assert reply.reason == pb.REFUSAL_REASON_CLIENT_DATA
    assert reply.detail.startswith("Weight by quality: at least 1 example must be held out. ")


async def test_task_of_an_unknown_kind_is_refused(script: ScriptedCoordinator, tmp_path: Path) -> None:
    task = script.task()
    task.ClearField("train")
    reply = await failed(script, tmp_path, task)
    assert reply.reason == pb.REFUSAL_REASON_CLIENT_ERROR
    assert reply.detail.startswith("Task: kind must be one that this release knows, got another one.")


def first_model_task(spec: RunSpec) -> pb.Task:
    task = pb.Task(task_id="run/first-model", run_id="run", spec_json=spec.canonical_json(), cohort_size=1)
    task.first_model.SetInParent()
    return task


async def test_first_model_is_that_of_the_spec_whatever_the_least_cohort(
    script: ScriptedCoordinator, tmp_path: Path
) -> None:
    spec = digits_spec(seed=5)
    async with running(make_agent(tmp_path, script.address, policy=Policy(minimum_cohort=9))):
        session = await script.session()
        await session.push(first_model_task(spec))
        upload = await script.upload()
        first = FirstModel()
        first.add(np.frombuffer(await upload.accept(), dtype=np.uint8), 0)
    assert upload.header.encoding == pb.VECTOR_ENCODING_SAFETENSORS
    assert first.model is not None
    assert first.model.sha256 == ModelShop(spec).initial().sha256


@pytest.mark.parametrize(
    ("learner", "detail"),
    [
        pytest.param({"name": "mine"}, "First model: learner must be one of the zoo's, got 'mine'.", id="own"),
        pytest.param(
            {"name": "mlp", "initialize_from": "trained"},
            "First model: learner must start from no base, which does not leave its machine, got 'trained'.",
            id="base",
        ),
        pytest.param(
            {"name": "mlp", "hiden": [4]}, "Learner mlp: hiden is not a key that exists here.", id="parameter"
        ),
    ],
)
async def test_first_model_that_is_not_drawn_from_the_spec_alone_is_refused(
    script: ScriptedCoordinator, tmp_path: Path, learner: dict[str, Any], detail: str
) -> None:
    spec = validate_spec(json.loads(digits_spec().canonical_json()) | {"learner": learner})
    reply = await failed(script, tmp_path, first_model_task(spec))
    assert (reply.reason, reply.detail) == (pb.REFUSAL_REASON_CLIENT_ERROR, detail)


async def test_first_model_is_refused_where_the_policy_forbids_the_run(
    script: ScriptedCoordinator, tmp_path: Path
) -> None:
    strict = Policy(secure_aggregation=SecureAggregationPolicy(required=True))
    async with running(make_agent(tmp_path, script.address, policy=strict)):
        session = await script.session()
        await session.push(first_model_task(digits_spec()))
        reply = await session.reply("task_failed")
    assert reply.reason == pb.REFUSAL_REASON_CLIENT_POLICY
    assert reply.detail.startswith("This site's policy: privacy.secure_aggregation must be in the run spec")


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
    assert reply.detail == f"Unexpected {error.__name__}. The client's log has the details."
    assert "Traceback" in caplog.text
    assert "row 7 is odd" in caplog.text


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
