"""What the server step makes of the mean: by hand, against torch.optim and pooled descent, and on real digits."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from client.data import load_local, split
from models import Examples
from server.model import Model
from server.records import RoundRecord, RoundState, RunState
from server.store import Store
from simulation.serial import SerialCohort
from tests.server.cohorts import DIGITS, Bring, Scene, blocks, bring_drawn, drawn_mean, script, spec
from wire.tensors import Vector


async def test_play_averages_by_weight_as_worked_out_by_hand(scene: Scene) -> None:
    # (1 * 1 + 2 * 3 + 5 * -0.5) / 8 = 0.5625
    scene.scripted.train_script = script(a=Bring(1.0, 1), b=Bring(3.0, 2), c=Bring(-0.5, 5))
    run = await scene.play(spec())
    assert np.array_equal(scene.model(spec(), 1).vector, scene.model(spec(), 0).vector + np.float32(0.5625))
    assert (run.state, run.round_number, run.reason) == (RunState.FINISHED, 1, "")
    assert await scene.store.run("run") == run
    record = await scene.store.round("run", 1)
    assert record.state is RoundState.COMMITTED
    assert record.selected == ["a", "b", "c"]
    assert [(part.client_id, part.weight, part.byte_count) for part in record.contributions] == [
        ("a", 1, 16),
        ("b", 2, 16),
        ("c", 5, 16),
    ]
    assert record.model_sha256 == run.model_sha256 == scene.model(spec(), 1).sha256.hex()
    assert set(record.phase_seconds) == {"select", "train", "apply", "commit"}
    assert [event.kind for event in await scene.store.events("run")] == ["round_committed", "run_finished"]


def torch_reference(name: str, parameters: dict[str, float], initial: Model, means: list[Vector]) -> Vector:
    """Return the model after one optimizer of torch.optim has stepped on minus each mean."""
    vector = initial.vector.copy()
    tensors = initial.layout.views(vector)
    optimizers: dict[str, Any] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adagrad": torch.optim.Adagrad}
    optimizer = optimizers[name]([tensor.requires_grad_() for tensor in tensors.values()], **parameters)
    for mean in means:
        for key, part in initial.layout.views(mean.copy()).items():
            tensors[key].grad = -part
        optimizer.step()
    return vector


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        pytest.param("sgd", {"lr": 0.5, "momentum": 0.9}, id="FedAvgM"),
        pytest.param("adam", {"lr": 0.01}, id="FedAdam"),
        pytest.param("adagrad", {"lr": 0.1}, id="FedAdagrad"),
    ],
)
async def test_play_server_optimizer_equals_torch_over_exact_means(
    scene: Scene, name: str, parameters: dict[str, float]
) -> None:
    named = {"name": name, **{"learning_rate" if key == "lr" else key: value for key, value in parameters.items()}}
    configured = spec(rounds=5, server={"optimizer": named})
    scene.scripted.train_script = bring_drawn
    await scene.play(configured)
    means = [drawn_mean(number, "abc") for number in range(1, 6)]
    expected = torch_reference(name, parameters, scene.model(configured, 0), means)
    np.testing.assert_allclose(scene.model(configured, 5).vector, expected, rtol=1e-6, atol=1e-7)


def softmax_descent(weights: npt.NDArray[Any], bias: npt.NDArray[Any], data: Examples, steps: int, rate: float) -> None:
    """Descend along the full gradient of softmax regression, in float64, written out."""
    inputs = data.inputs.flatten(1).double().numpy()
    hot = np.eye(10)[data.targets.numpy()]
    for _ in range(steps):
        logits = inputs @ weights.T + bias
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        difference = exponentials / exponentials.sum(axis=1, keepdims=True) - hot  # (examples, classes)
        weights -= rate * difference.T @ inputs / len(inputs)
        bias -= rate * difference.mean(axis=0)


async def test_play_one_full_batch_a_round_equals_pooled_gradient_descent(store: Store, tmp_path: Path) -> None:
    sites = blocks(0, 1, 8, held_out=0.0)
    assert len({len(site.training) for site in sites.values()}) == 3
    configured = spec(
        **DIGITS,
        rounds=20,
        local={"epochs": 1, "batch_size": 1000, "optimizer": {"name": "sgd", "learning_rate": 0.5}},
    )
    scene = Scene(store, SerialCohort(configured, sites), tmp_path / "run")
    await scene.play(configured)

    initial = scene.model(configured, 0)
    start = [tensor.double().numpy() for tensor in initial.layout.views(initial.vector).values()]
    pooled = Examples(
        torch.cat([site.training.inputs for site in sites.values()]),
        torch.cat([site.training.targets for site in sites.values()]),
    )
    softmax_descent(start[0], start[1], pooled, 20, 0.5)
    expected = np.concatenate([tensor.reshape(-1) for tensor in start])
    assert np.abs(scene.model(configured, 20).vector - expected).max() < 1e-6


async def test_play_weight_by_quality_beats_random_labels(store: Store, tmp_path: Path) -> None:
    sites = blocks(*range(8))
    generator = torch.Generator().manual_seed(4)
    liars = {"site-0", "site-2", "site-4"}
    for name in sorted(liars):
        data = load_local(f"digits,blocks={name[-1]}", 0.0, 0).training
        made_up = torch.randint(10, (len(data),), generator=generator)
        sites[name] = split(Examples(data.inputs, made_up), 0.2, 0)
    unseen = load_local("digits,blocks=12|13", 0.0, 0).training
    common = {
        "seed": 4,
        "rounds": 20,
        "cohort": {"size": 8},
        "local": {"epochs": 3, "batch_size": 16, "optimizer": {"name": "sgd", "learning_rate": 0.5}},
        "evaluate": {"every": 1, "on": "coordinator"},
    }

    async def played(weight_by: str) -> list[RoundRecord]:
        configured = spec(**DIGITS, **common, weight_by=weight_by)
        scene = Scene(store, SerialCohort(configured, sites), tmp_path / weight_by, unseen, run_id=weight_by)
        await scene.play(configured)
        return list(await store.rounds(weight_by))

    by_examples, by_quality = await played("examples"), await played("quality")
    assert late_accuracy(by_quality) > late_accuracy(by_examples) + 0.02
    assert {part.weight for part in by_examples[-1].contributions} == {len(site.training) for site in sites.values()}
    for record in by_quality[2:]:
        weights = {part.client_id: part.weight for part in record.contributions}
        assert max(weights[name] for name in liars) < min(weights[name] for name in weights.keys() - liars) / 10


def late_accuracy(records: list[RoundRecord]) -> float:
    """Return the mean accuracy of the last ten rounds."""
    return sum(record.metrics["accuracy"] for record in records[-10:]) / 10
