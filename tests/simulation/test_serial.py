"""The serial engine: the reference for every other, so its rounds are checked against training written out step by step."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import torch

from client.data import LocalData, load_local, split
from client.training import Assignment, Trainer
from models import DataError, Examples, build_learner
from server.checkpoints import checkpoint_path
from server.cohort import Order
from server.inbox import Ballot
from server.model import ModelShop
from server.records import RoundState, RunState
from server.store import Store
from simulation.resources import Resources
from simulation.serial import SerialCohort, run_serially
from tests.server.cohorts import DIGITS, Scene, blocks, opened, spec
from wire.errors import SpecError
from wire.seeds import derive_generator, derive_seed
from wire.tensors import Layout

CPU = Resources(device="cpu")
LOCAL = {"epochs": 2, "batch_size": 16, "optimizer": {"name": "sgd", "learning_rate": 0.2}}


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with opened(tmp_path) as store:
        yield store


async def test_run_serially_finishes_and_leaves_model_and_records(tmp_path: Path) -> None:
    configured = spec(**DIGITS, rounds=3, cohort={"size": 2}, local=LOCAL, evaluate={"every": 1})
    async with opened(tmp_path) as store:
        run = await run_serially(configured, blocks(0, 1), store, tmp_path / "run")
        assert (run.state, run.round_number, run.run_id) == (RunState.FINISHED, 3, "simulation")
        assert await store.runs() == [run]
        records = await store.rounds(run.run_id)
    assert checkpoint_path(tmp_path / "run", 3).exists()
    assert [record.state for record in records] == [RoundState.COMMITTED] * 3
    assert [len(record.contributions) for record in records] == [2] * 3
    accuracies = [record.metrics["accuracy"] for record in records]
    assert accuracies[0] < accuracies[-1]
    assert all("train_loss" in record.metrics for record in records)


@pytest.mark.parametrize(
    ("cohort", "key"),
    [
        pytest.param({"size": 3}, "size", id="size"),
        pytest.param({"size": 3, "quorum": 2}, "size", id="size-beyond-quorum"),
        pytest.param({"size": None, "fraction": 1.0, "quorum": 3}, "quorum", id="quorum-of-a-fraction"),
    ],
)
async def test_run_serially_cohort_of_more_clients_than_sites_is_refused_at_once(
    store: Store, tmp_path: Path, cohort: dict[str, object], key: str
) -> None:
    configured = spec(**DIGITS, cohort=cohort, local=LOCAL)
    message = rf"^Run spec: cohort\.{key} must be at most the number of sites, 2, got 3\. Give more sites, or lower"
    with pytest.raises(SpecError, match=message):
        async with asyncio.timeout(configured.cohort.wait_seconds / 2):
            await run_serially(configured, blocks(0, 1), store, tmp_path / "run")
    assert await store.runs() == []
    assert not (tmp_path / "run").exists()


async def test_run_serially_without_sites_is_refused_at_once(store: Store, tmp_path: Path) -> None:
    configured = spec(**DIGITS, cohort={"size": None, "fraction": 0.5}, local=LOCAL)
    with pytest.raises(SpecError, match=r"cohort\.quorum must be at most the number of sites, 0, got 1\."):
        async with asyncio.timeout(configured.cohort.wait_seconds / 2):
            await run_serially(configured, {}, store, tmp_path / "run")


async def test_run_serially_cohort_of_all_sites_runs(store: Store, tmp_path: Path) -> None:
    configured = spec(**DIGITS, cohort={"size": 2, "quorum": 2, "over_selection": 2.0}, local=LOCAL)
    run = await run_serially(configured, blocks(0, 1), store, tmp_path / "run")
    assert run.state is RunState.FINISHED


async def test_run_serially_of_one_client_equals_central_training_to_the_bit(tmp_path: Path) -> None:
    # Three layers, dropout and momentum: everything that draws or carries something along.
    learner = {"name": "mlp", "inputs": [1, 8, 8], "hidden": [16], "classes": 10, "dropout": 0.2}
    local = {"epochs": 2, "batch_size": 16, "optimizer": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9}}
    configured = spec(learner=learner, rounds=2, cohort={"size": 1}, local=local)
    data = load_local("digits,blocks=3", 0.0, 0)
    async with opened(tmp_path) as store:
        scene = Scene(store, SerialCohort(configured, {"only": data}, CPU), tmp_path / "run")
        await scene.play(configured)

    module = build_learner(configured.learner).build()  # type: ignore[attr-defined]
    module.load_state_dict(build_learner(configured.learner).init(derive_seed(5, "init")))
    for round_number in (1, 2):
        before = [parameter.detach().clone() for parameter in module.parameters()]
        generator = derive_generator(5, "fit", round_number, "only")
        torch.manual_seed(int(torch.randint(1 << 62, (), generator=generator)))
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
        module.train()
        for _ in range(2):
            for rows in torch.randperm(len(data.training), generator=generator).split(16):  # type: ignore[no-untyped-call]
                optimizer.zero_grad()
                outputs = module(data.training.inputs[rows])
                loss = torch.nn.functional.cross_entropy(outputs, data.training.targets[rows])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        with torch.no_grad():
            for parameter, start in zip(module.parameters(), before, strict=True):
                change = parameter - start
                # The grid of one client with this many examples is finer than these float32 are.
                parameter.copy_(start + change)
    state = module.state_dict()
    expected = Layout.of(state).flatten(state)
    assert np.array_equal(scene.model(configured, 2).vector, expected)


async def test_train_refuses_a_client_whose_data_does_not_serve_and_goes_on(store: Store, tmp_path: Path) -> None:
    configured = spec(**DIGITS, cohort={"size": 3, "quorum": 2}, weight_by="quality", local=LOCAL)
    sites = blocks(0, 1) | {"site-2": load_local("digits,blocks=2", 0.0, 0)}
    scene = Scene(store, SerialCohort(configured, sites), tmp_path / "run")
    await scene.play(configured)
    record = await store.round("run", 1)
    assert [part.client_id for part in record.contributions] == ["site-0", "site-1"]
    (refusal,) = record.refusals
    assert (refusal.client_id, refusal.reason) == ("site-2", "client_data")
    assert refusal.detail.startswith("Weight by quality: at least 1 example must be held out, got 0.")
    assert record.metrics["refused_client_data"] == 1.0


def test_cohort_of_a_client_whose_data_does_not_suit_the_learner_is_refused() -> None:
    images = LocalData("memory", Examples(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)), _none())
    with pytest.raises(
        DataError, match=r"Learner mlp: examples must have shape \(1, 8, 8\) float32, got \(3,\) float32"
    ):
        SerialCohort(spec(**DIGITS), blocks(0) | {"odd": images})


def _none() -> Examples:
    return Examples(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))


def test_members_are_all_there_and_may_do_everything() -> None:
    cohort = SerialCohort(spec(**DIGITS), blocks(1, 0))
    assert [(member.client_id, member.is_present, member.learners) for member in cohort.members()] == [
        ("site-0", True, None),
        ("site-1", True, None),
    ]


def slow_site(seed: int) -> LocalData:
    """Data whose one batch takes a good while."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand(2000, 64, generator=generator)
    return split(Examples(inputs, torch.randint(10, (2000,), generator=generator)), 0.01, 0)


async def test_client_that_a_round_no_longer_waits_for_does_not_touch_the_next_one(
    store: Store, tmp_path: Path
) -> None:
    # Every round closes after its first client, while the second one is in the middle of a long step on the one resident model.
    configured = spec(
        learner={"name": "mlp", "inputs": [64], "hidden": [1500], "classes": 10},
        rounds=3,
        cohort={"size": 1, "over_selection": 2.0},
        local={"epochs": 1, "batch_size": 2000, "optimizer": {"name": "sgd", "learning_rate": 0.1}},
        evaluate={"every": 1},
    )
    sites = {"a": slow_site(1), "b": slow_site(2)}
    scene = Scene(store, SerialCohort(configured, sites), tmp_path / "run")
    await scene.play(configured)

    trainer = Trainer(configured.learner, torch.device("cpu"))
    model = ModelShop(configured).initial()
    for record in await store.rounds("run"):
        (part,) = record.contributions
        assignment = Assignment(configured, record.number, part.client_id, model.vector)
        result = trainer.train(assignment, sites[part.client_id], lambda _: None)
        model = ModelShop(configured).next(model, result.vector, result.weight, 1)
        losses = [trainer.evaluate(model.vector, site).metrics["loss"] for site in sites.values()]
        assert record.metrics["loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)
    np.testing.assert_allclose(scene.model(configured, 3).vector, model.vector, atol=1e-6)


async def test_evaluate_measures_the_held_out_part_of_each_client(tmp_path: Path) -> None:
    configured = spec(**DIGITS)
    sites = blocks(0, 1)
    cohort = SerialCohort(configured, sites, CPU)
    model = ModelShop(configured).initial()
    ballot = Ballot(sorted(sites), cohort.changed)
    await cohort.evaluate(Order("run", 1, 0, configured, model, 2), sorted(sites), ballot)
    learner, state = build_learner(configured.learner), model.layout.views(model.vector)
    assert ballot.evaluations == {name: learner.evaluate(state, site.held_out) for name, site in sites.items()}


async def test_client_that_cannot_evaluate_costs_no_other_result(store: Store, tmp_path: Path) -> None:
    configured = spec(**DIGITS, local=LOCAL, evaluate={"every": 1})
    data = blocks(0, 1, 2)
    cohort = SerialCohort(configured, data, CPU)
    data["site-2"] = LocalData("memory", data["site-2"].training, Examples(torch.zeros(4, 3), torch.zeros(4)))
    await Scene(store, cohort, tmp_path / "run").play(configured)
    record = await store.round("run", 1)
    assert len(record.contributions) == 3
    assert {"loss", "accuracy"} <= record.metrics.keys()
    (failure,) = record.evaluation_failures
    assert (failure.client_id, failure.reason, failure.detail != "") == ("site-2", "client_error", True)


async def test_train_refuses_a_client_that_fails_and_goes_on(store: Store, tmp_path: Path) -> None:
    configured = spec(**DIGITS, cohort={"size": 3, "quorum": 2}, local=LOCAL)
    data = blocks(0, 1, 2)
    cohort = SerialCohort(configured, data)
    broken = Examples(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))
    # Past the checks, as a device that fails in the middle of a run is.
    data["site-2"] = LocalData("memory", broken, _none())
    await Scene(store, cohort, tmp_path / "run").play(configured)
    record = await store.round("run", 1)
    assert [part.client_id for part in record.contributions] == ["site-0", "site-1"]
    (refusal,) = record.refusals
    assert (refusal.client_id, refusal.reason) == ("site-2", "client_error")
    assert "RuntimeError" in refusal.detail
