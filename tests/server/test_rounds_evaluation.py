"""When and where a model is evaluated, and what ends a run early."""

import asyncio
import math
from pathlib import Path

import numpy as np
import pytest
from torch.nn import functional

from client.data import load_local
from models import Evaluation, Examples
from server.cohort import Order
from server.records import RunState
from server.store import Store
from simulation.serial import SerialCohort
from tests.server.cohorts import (
    DIGITS,
    Act,
    Bring,
    Decline,
    Scene,
    ScriptedCohort,
    blocks,
    script,
    spec,
)
from wire.errors import ChoralError


async def test_play_evaluates_every_third_round_and_the_last(scene: Scene) -> None:
    async def measure(order: Order, client_id: str) -> Evaluation:
        counts = {"a": 1, "b": 2, "c": 5}
        return Evaluation(counts[client_id], {"loss": {"a": 4.0, "b": 1.0, "c": 2.0}[client_id]})

    scene.scripted.evaluate_script = measure
    await scene.play(spec(rounds=5, evaluate={"every": 3}))
    # (1 * 4 + 2 * 1 + 5 * 2) / 8 = 2
    assert [record.metrics for record in await scene.store.rounds("run")] == [{}, {}, {"loss": 2.0}, {}, {"loss": 2.0}]
    assert [order.round_number for order, _ in scene.scripted.evaluated] == [3, 5]
    last, _ = scene.scripted.evaluated[-1]
    assert np.array_equal(last.model.vector, scene.model(spec(), 5).vector)


async def test_play_stops_when_the_metric_is_reached(scene: Scene) -> None:
    async def improve(order: Order, client_id: str) -> Evaluation:
        return Evaluation(1, {"loss": 1.0 / order.round_number})

    scene.scripted.evaluate_script = improve
    goal = {"metric": "loss", "at_most": 0.34}
    run = await scene.play(spec(rounds=50, evaluate={"every": 1}, stop_when=goal))
    assert (run.state, run.round_number, run.reason) == (RunState.FINISHED, 3, "loss reached 0.3333 in round 3.")
    events = await scene.store.events("run")
    assert (events[-1].kind, events[-1].detail) == ("run_finished", run.reason)


async def test_play_says_once_that_no_evaluation_has_the_metric_to_stop_by(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    async def measure(order: Order, client_id: str) -> Evaluation:
        return Evaluation(1, {"loss": 1.0, "accuracy": 0.5})

    scene.scripted.evaluate_script = measure
    goal = {"metric": "acuracy", "at_least": 0.4}
    run = await scene.play(spec(rounds=5, evaluate={"every": 2}, stop_when=goal))
    assert (run.round_number, run.reason) == (5, "")
    (event,) = [event for event in await scene.store.events("run") if event.kind == "metric_missing"]
    assert event.detail == (
        "Round 2: stop_when.metric must be among the metrics that there are, accuracy, loss, got 'acuracy'. "
        "Without it the run goes on to its last round."
    )
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [event.detail]


async def test_play_what_a_client_says_of_its_training_is_no_evaluation(scene: Scene) -> None:
    boast = Bring(1.0, metrics={"accuracy": 1.0, "train_loss": 0.5})
    scene.scripted.train_script = script(a=boast, b=boast, c=boast)
    goal = {"metric": "accuracy", "at_least": 0.9}
    run = await scene.play(spec(rounds=2, evaluate={"every": 2}, stop_when=goal))
    assert (run.round_number, run.reason) == (2, "")
    assert (await scene.store.round("run", 1)).metrics == {"train_accuracy": 1.0, "train_loss": 0.5}


async def test_play_client_that_cannot_evaluate_does_not_cost_the_results_of_the_others(scene: Scene) -> None:
    failed = asyncio.Event()

    async def fail_first(order: Order, client_id: str) -> Evaluation | Decline:
        if client_id == "b":
            asyncio.get_running_loop().call_later(0.1, failed.set)
            return Decline()
        await failed.wait()
        return Evaluation(1, {"loss": {"a": 1.0, "c": 2.0}[client_id]})

    scene.scripted.evaluate_script = fail_first
    await scene.play(spec(evaluate={"every": 1}))
    record = await scene.store.round("run", 1)
    assert record.metrics == {"loss": 1.5}
    (failure,) = record.evaluation_failures
    assert (failure.client_id, failure.reason, failure.detail) == ("b", "client_data", "the data is gone")
    # It contributed, and that is counted as before.
    assert record.refusals == []
    assert [one.contributed for one in await scene.store.participations("run")] == [1, 1, 1]


async def test_play_evaluates_on_whoever_contributed_or_was_not_refused(scene: Scene) -> None:
    async def recover(order: Order, client_id: str) -> Act:
        if client_id == "c" or (client_id == "b" and order.attempt == 0):
            return Decline()
        return Bring(1.0)

    scene.scripted.train_script = recover
    await scene.play(spec(cohort={"size": 3, "quorum": 2, "retries": 1}, evaluate={"every": 1}))
    assert [client_ids for _, client_ids in scene.scripted.evaluated] == [("a", "b")]


@pytest.fixture(scope="module")
def unseen() -> Examples:
    return load_local("digits,blocks=12", 0.0, 0).training


async def test_play_evaluates_on_the_coordinators_own_data(store: Store, tmp_path: Path, unseen: Examples) -> None:
    sites = blocks(0, 1)
    own = spec(**DIGITS, cohort={"size": 2}, evaluate={"every": 1, "on": "coordinator"}, local={"epochs": 2})
    scene = Scene(store, SerialCohort(own, sites), tmp_path / "run", unseen)
    await scene.play(own)
    metrics = (await store.round("run", 1)).metrics
    model = scene.model(own, 1)
    weight, bias = model.layout.views(model.vector).values()
    logits = unseen.inputs.flatten(1) @ weight.T + bias
    assert metrics["accuracy"] == pytest.approx(float((logits.argmax(1) == unseen.targets).double().mean()))
    assert metrics["loss"] == pytest.approx(float(functional.cross_entropy(logits, unseen.targets)), rel=1e-5)
    assert 0.2 < metrics["accuracy"] < 1


async def test_play_model_that_diverged_has_no_metric_that_is_not_finite(
    store: Store, tmp_path: Path, unseen: Examples
) -> None:
    own = spec(
        **DIGITS,
        evaluate={"every": 1, "on": "coordinator"},
        server={"optimizer": {"name": "sgd", "learning_rate": 1e38}},
    )

    async def large(order: Order, client_id: str) -> Act:
        return Bring(np.full(650, 100.0, dtype=np.float32))

    scene = Scene(store, ScriptedCohort("abc", large), tmp_path / "run", unseen)
    await scene.play(own)
    metrics = (await store.round("run", 1)).metrics
    assert all(math.isfinite(value) for value in metrics.values())
    assert "loss" not in metrics


async def test_play_evaluation_on_data_that_the_coordinator_lacks_is_refused_before_anyone_is_asked(
    scene: Scene,
) -> None:
    with pytest.raises(
        ChoralError, match=r"evaluate\.on must be 'clients' on a coordinator without data of its own, got 'coordinator'"
    ):
        await scene.play(spec(evaluate={"every": 1, "on": "coordinator"}))
    assert scene.scripted.trained == []
    assert await scene.store.rounds("run") == []
