"""Statistics of batch norm that each client keeps: what they are, that they stay, and that they help where clients' inputs differ."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch

from client.data import LocalData
from models import Examples, Learner, LearnerError, build_learner, check_spec
from server.store import open_store
from simulation.serial import run_serially
from wire.spec import LocalSpec, Named, parse_spec, validate_spec

NORMED: dict[str, Any] = {"name": "mlp", "inputs": [1, 8, 8], "hidden": [16], "batch_norm": True}
CNN: dict[str, Any] = {"name": "cnn", "channels": [4], "batch_norm": True, "statistics": "local"}


def local(**changes: Any) -> Learner:
    return build_learner(Named(**{**NORMED, "statistics": "local", **changes}))


def test_local_statistics_neither_are_part_of_the_state_nor_travel() -> None:
    names = {entry.name for entry in local().contribution_layout.entries}
    assert names == {"1.weight", "1.bias", "2.weight", "2.bias", "4.weight", "4.bias"}
    assert not any("running" in name for name in local().init(5))
    assert not any("running" in name for name in build_learner(Named(**CNN)).init(5))


def test_evaluate_takes_the_statistics_of_the_training_data(images: Examples) -> None:
    training, held_out = images.select(torch.arange(200)), images.select(torch.arange(200, 250))
    learner = local()
    state = learner.init(5)
    hidden = training.inputs.flatten(1) @ state["1.weight"].T + state["1.bias"]  # (examples, hidden)
    mean, deviation = hidden.mean(dim=0), (hidden.var(dim=0) + 1e-5).sqrt()
    normed = (held_out.inputs.flatten(1) @ state["1.weight"].T + state["1.bias"] - mean) / deviation
    logits = normed.relu() @ state["4.weight"].T + state["4.bias"]
    expected = torch.nn.functional.cross_entropy(logits, held_out.targets)
    found = learner.evaluate(state, held_out, training)
    assert found.metrics["loss"] == pytest.approx(float(expected), rel=1e-4)
    other = learner.evaluate(state, held_out, Examples(1 - training.inputs, training.targets))
    assert other.metrics["loss"] != pytest.approx(float(expected), rel=1e-2)
    assert learner.evaluate(state, held_out, training) == found


def test_evaluate_of_more_than_a_batch_takes_the_mean_and_leaves_out_a_single_one(images: Examples) -> None:
    learner = local()
    state = learner.init(5)
    many = images.select(torch.arange(256 * 2 + 1))
    even = images.select(torch.arange(256 * 2))
    assert learner.evaluate(state, even, many) == learner.evaluate(state, even, even)


def test_evaluate_after_training_and_training_after_evaluation_are_those_of_a_new_learner(images: Examples) -> None:
    data, old = images.select(torch.arange(64)), local(dropout=0.3)

    def vector(learner: Learner) -> bytes:
        found = learner.fit(
            learner.init(5), data, LocalSpec(batch_size=16), torch.Generator().manual_seed(1), lambda fraction: None
        )
        return found.vector.tobytes()

    first = vector(old)
    measured = old.evaluate(old.init(5), data, data)
    assert vector(old) == first == vector(local(dropout=0.3))
    assert measured == local(dropout=0.3).evaluate(old.init(5), data, data)


def test_evaluate_without_training_data_is_refused(images: Examples) -> None:
    learner = local()
    with pytest.raises(
        LearnerError, match=r"^Learner mlp: statistics must be averaged where there is no training data"
    ):
        learner.evaluate(learner.init(5), images)
    spec = "{name: a, learner: {name: mlp, batch_norm: true, statistics: local}, rounds: 1, cohort: {size: 1}"
    check_spec(parse_spec(spec + "}"))
    with pytest.raises(LearnerError, match=r"evaluate\.on must be 'clients' where the learner's statistics are local"):
        check_spec(parse_spec(spec + ", evaluate: {on: coordinator}}"))


def test_local_statistics_of_a_model_without_batch_norm_are_refused() -> None:
    with pytest.raises(LearnerError, match=r"^Learner mlp: statistics must be averaged in a model without batch"):
        build_learner(Named(name="mlp", statistics="local"))


async def last_accuracy(learner: dict[str, Any], sites: dict[str, LocalData], folder: Path) -> float:
    """Return the accuracy on held-out data after a run over all clients."""
    spec = validate_spec(
        {
            "name": "a",
            "learner": learner,
            "rounds": 10,
            "cohort": {"size": len(sites)},
            "local": {"epochs": 3, "batch_size": 16, "optimizer": {"name": "sgd", "learning_rate": 0.3}},
            "evaluate": {"every": 10},
        }
    )
    store = await open_store(str(folder / "store.db"))
    try:
        run = await run_serially(spec, sites, store, folder)
        return (await store.round(run.run_id, run.round_number)).metrics["accuracy"]
    finally:
        await store.close()


@pytest.mark.parametrize("learner", [NORMED, CNN], ids=["mlp", "cnn"])
def test_local_statistics_help_where_the_inputs_of_clients_differ(
    tmp_path: Path, images: Examples, learner: dict[str, Any]
) -> None:
    # Two clients have their digits in full contrast, two pale: the same up to a scale and a shift.
    sites = {}
    for place in range(4):
        rows = torch.arange(place * 150, (place + 1) * 150)
        own = images.select(rows)
        own = Examples(0.2 * own.inputs + 0.8 if place % 2 else own.inputs, own.targets)
        sites[f"client-{place}"] = LocalData(
            "memory", own.select(torch.arange(100)), own.select(torch.arange(100, 150))
        )
    accuracy = {}
    for statistics in ("averaged", "local"):
        folder = tmp_path / statistics
        folder.mkdir()
        accuracy[statistics] = asyncio.run(last_accuracy({**learner, "statistics": statistics}, sites, folder))
    assert accuracy["local"] > accuracy["averaged"] + 0.05, accuracy
    assert accuracy["local"] > 0.7
