"""Numbers predicted by dense layers: against least squares and scikit-learn's R2, on real patients, by every engine."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression
from sklearn.metrics import mean_squared_error, r2_score

from client.data import LocalData
from models import DataError, Examples, Learner, build_learner
from models.mlp import MLPRegressor
from server.model import ModelShop
from simulation.cohort import SimulatedCohort
from simulation.reasons import reason_against
from simulation.resources import Resources
from simulation.serial import SerialCohort
from simulation.vectorized import VectorizedCohort
from tests.simulation.federations import federation, play
from wire.spec import LocalSpec, Named
from wire.tensors import State

CPU = Resources(device="cpu")
SGD = Named(name="sgd", learning_rate=0.01)


@pytest.fixture(scope="module")
def patients() -> tuple[Examples, Examples]:
    """442 patients' standardised age, sex, measurements and blood, and how their diabetes went on: 352 to train on, and 90 others."""
    bunch = load_diabetes(scaled=False)
    inputs, targets = torch.from_numpy(bunch.data), torch.from_numpy(bunch.target)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    training, held_out = order[90:], order[:90]
    inputs = (inputs - inputs[training].mean(0)) / inputs[training].std(0)
    targets = (targets - targets[training].mean()) / targets[training].std()
    everybody = Examples(inputs.float(), targets.float())
    return everybody.select(training), everybody.select(held_out)


def made(**parameters: Any) -> MLPRegressor:
    learner = build_learner(Named(name="mlp_regressor", **{"inputs": [10], **parameters}))
    assert isinstance(learner, MLPRegressor)
    return learner


def trained(learner: Learner, data: Examples, local: LocalSpec) -> State:
    state, layout = learner.init(1), learner.contribution_layout
    change = learner.fit(state, data, local, torch.Generator().manual_seed(1), lambda fraction: None).vector
    return layout.views(layout.flatten(state) + change)


def test_regressor_without_hidden_layers_is_least_squares(patients: tuple[Examples, Examples]) -> None:
    training, held_out = patients
    newton = Named(name="lbfgs", learning_rate=1.0, max_iter=200, line_search_fn="strong_wolfe")
    learner = made(hidden=[], metrics=["r2"])
    state = trained(learner, training, LocalSpec(batch_size=len(training), optimizer=newton))
    expected = LinearRegression().fit(training.inputs, training.targets)
    np.testing.assert_allclose(state["1.weight"][0], expected.coef_, atol=0.01)
    predicted = expected.predict(held_out.inputs)
    found = learner.evaluate(state, held_out).metrics
    assert found["mse"] == pytest.approx(mean_squared_error(held_out.targets, predicted), abs=1e-3)
    assert found["r2"] == pytest.approx(r2_score(held_out.targets, predicted), abs=1e-3)
    assert found["loss"] == found["mse"]


def test_r2_is_scikit_learns_over_all_examples_at_once() -> None:
    generator = torch.Generator().manual_seed(1)
    data = Examples(torch.randn(700, 10, generator=generator), torch.randn(700, 3, generator=generator))
    learner = made(outputs=3, metrics=["r2"])
    state = learner.init(1)
    hidden = torch.nn.functional.linear(data.inputs, state["1.weight"], state["1.bias"]).relu()
    predicted = torch.nn.functional.linear(hidden, state["3.weight"], state["3.bias"])
    found = learner.evaluate(state, data).metrics
    assert found["r2"] == pytest.approx(r2_score(data.targets, predicted), abs=1e-6)
    assert found["mse"] == pytest.approx(mean_squared_error(data.targets, predicted), rel=1e-5)


def test_r2_of_one_example_is_left_out_and_of_no_variance_is_nothing(patients: tuple[Examples, Examples]) -> None:
    learner = made(metrics=["r2"])
    state, some = learner.init(1), patients[1].select(torch.arange(5))
    assert set(learner.evaluate(state, some.select(torch.arange(1))).metrics) == {"loss", "mse"}
    alike = Examples(some.inputs, torch.full((5,), 3.0))
    assert learner.evaluate(state, alike).metrics["r2"] == 0.0


def test_targets_with_and_without_an_axis_are_the_same(patients: tuple[Examples, Examples]) -> None:
    training, held_out = patients
    learner, local = made(hidden=[8], metrics=["r2"]), LocalSpec(batch_size=16, optimizer=SGD)
    column = Examples(training.inputs, training.targets[:, None])
    learner.check(training)
    learner.check(column)
    state = trained(learner, training, local)
    for name, tensor in trained(learner, column, local).items():
        assert torch.equal(tensor, state[name])
    found = learner.evaluate(state, held_out)
    assert found == learner.evaluate(state, Examples(held_out.inputs, held_out.targets[:, None]))


def thirds(data: Examples, held_out: Examples) -> dict[str, LocalData]:
    """Return clients whose patients are young, of middle age, and old."""
    parts = data.inputs[:, 0].argsort().tensor_split(3)
    return {f"site-{number}": LocalData("memory", data.select(rows), held_out) for number, rows in enumerate(parts)}


async def test_federation_of_ages_explains_more_than_one_age_alone(
    patients: tuple[Examples, Examples], tmp_path: Path
) -> None:
    # Least squares on all patients in one place explains .49 of the variance.
    training, held_out = patients
    sites = thirds(training, held_out)

    async def explained(chosen: dict[str, LocalData], folder: str) -> float:
        named = {"name": "mlp_regressor", "inputs": [10], "hidden": [16], "metrics": ["r2"]}
        run = federation(named, rounds=10, size=len(chosen), epochs=2, optimizer=SGD.model_dump())
        _, records = await play(SerialCohort(run, chosen, CPU), run, tmp_path / folder)
        return records[-1].metrics["r2"]

    together = await explained(sites, "all")
    alone = [await explained({name: data}, name) for name, data in sites.items()]
    assert together > 0.4
    assert together > sum(alone) / 3 + 0.03


async def test_vectorized_engine_agrees_with_serial(patients: tuple[Examples, Examples], tmp_path: Path) -> None:
    sites = thirds(*patients)
    run = federation({"name": "mlp_regressor", "inputs": [10]}, rounds=3, size=3, optimizer=SGD.model_dump())
    cohorts: dict[str, SimulatedCohort] = {
        "serial": SerialCohort(run, sites, CPU),
        "vectorized": VectorizedCohort(run, sites, CPU),
    }
    played = {name: await play(cohort, run, tmp_path / name) for name, cohort in cohorts.items()}
    serial, vectorized = (vector for vector, _ in played.values())
    moved = np.linalg.norm(serial - ModelShop(run).initial().vector)
    assert np.linalg.norm(vectorized - serial) / moved < 1e-4
    metrics = [records[-1].metrics for _, records in played.values()]
    assert metrics[1] == pytest.approx(metrics[0], rel=1e-4)
    with_r2 = federation({"name": "mlp_regressor", "inputs": [10], "metrics": ["r2"]})
    assert reason_against(with_r2, torch.device("cpu")).startswith("learner mlp_regressor reports r2, which take")


@pytest.mark.parametrize(
    ("outputs", "targets", "message"),
    [
        pytest.param(
            1,
            torch.zeros(2, dtype=torch.int64),
            r"^Learner mlp_regressor: targets must be 1 float32 an example, got shape \(2,\) int64\.$",
            id="classes",
        ),
        pytest.param(
            2, torch.zeros(2), r"targets must be 2 float32 an example, got shape \(2,\) float32\.$", id="no-axis"
        ),
        pytest.param(1, torch.zeros(2, 3), r"targets must be 1 float32 an example, got shape \(2, 3\)", id="too-many"),
        pytest.param(
            1,
            torch.tensor([0.0, float("nan")]),
            r"targets must be finite, got another one in example 1\.$",
            id="not-finite",
        ),
    ],
)
def test_check_targets_that_are_no_numbers_to_predict_are_refused(
    outputs: int, targets: torch.Tensor, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        made(outputs=outputs).check(Examples(torch.zeros(2, 10), targets))
