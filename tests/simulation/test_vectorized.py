"""The vectorized engine agrees with the serial one, which is the reference, and with steps worked out by hand."""

import asyncio
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.data import LocalData
from models import MODELS, DataError, Examples, mlp
from models.zoo import Model
from server.aggregation import WeightedMean
from server.cohort import Order
from server.inbox import Arrival, Ballot, Binding, Inbox
from server.model import ModelShop
from simulation.cohort import Refused
from simulation.engines import choose
from simulation.reasons import reason_against
from simulation.resources import Resources
from simulation.serial import SerialCohort
from simulation.stacked import Trained
from simulation.vectorized import VectorizedCohort
from tests.simulation.federations import CNN, MLP, SGD, SIZES, SOFTMAX, federation, play, sites
from wire.errors import SpecError
from wire.federation_pb2 import RefusalReason
from wire.memory import VectorPool
from wire.spec import RunSpec


async def disagreement(configured: RunSpec, folder: Path, block: int | None = None) -> float:
    """Return how far apart the engines' last models are, as a part of the way that the serial one went."""
    # On a GPU, the engines' draws of dropout differ.
    drops = any("dropout" in name for name in configured.learner.parameters)
    resources = Resources(device="cpu" if drops else "auto", block=block)
    serial, _ = await play(SerialCohort(configured, sites(), resources), configured, folder / "serial")
    vectorized, _ = await play(VectorizedCohort(configured, sites(), resources), configured, folder / "vectorized")
    start = ModelShop(configured).initial().vector
    moved = float(np.linalg.norm(serial - start))
    assert moved > 0.01
    return float(np.linalg.norm(vectorized - serial)) / moved


@pytest.mark.parametrize(
    "learner",
    [
        pytest.param(MLP, id="mlp"),
        pytest.param(SOFTMAX, id="softmax"),
        pytest.param(CNN, id="cnn"),
        pytest.param(CNN | {"pooling": "average", "hidden": 8, "kernel": 5}, id="cnn-average-hidden"),
        pytest.param(MLP | {"hidden": [16, 12], "dropout": 0.3, "activation": "gelu"}, id="mlp-dropout"),
        pytest.param(MLP | {"hidden": [16, 12], "activation": "leaky_relu"}, id="mlp-leaky-relu"),
        pytest.param(MLP | {"hidden": [16, 12], "activation": "gaussian"}, id="mlp-gaussian"),
        pytest.param(MLP | {"activation": "step"}, id="mlp-step"),
        pytest.param(CNN | {"dropout": 0.5}, id="cnn-dropout"),
        pytest.param(CNN | {"activation": "tanh", "hidden": 8}, id="cnn-tanh"),
        pytest.param(
            CNN | {"channels": [[4, 6]], "padding": "valid", "feature_dropout": 0.2},
            id="cnn-valid",
        ),
    ],
)
async def test_learner_agrees_with_serial_after_five_rounds(tmp_path: Path, learner: dict[str, Any]) -> None:
    assert await disagreement(federation(learner, epochs=2), tmp_path) < 1e-4


@pytest.mark.parametrize(
    "optimizer",
    [
        SGD | {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
        SGD | {"momentum": 0.9, "dampening": 0.5, "maximize": True},
        {"name": "adam", "learning_rate": 0.01, "weight_decay": 0.01, "amsgrad": True},
        {"name": "adamw", "learning_rate": 0.01},
        {"name": "adagrad", "learning_rate": 0.05, "lr_decay": 0.1, "initial_accumulator_value": 0.1},
        {"name": "rmsprop", "learning_rate": 0.005, "momentum": 0.5, "centered": True},
        {"name": "adadelta"},
        {"name": "adamax"},
        {"name": "asgd", "t0": 2, "lambd": 0.01},
        {"name": "nadam"},
        {"name": "radam", "learning_rate": 0.02},
        {"name": "rprop"},
    ],
    ids=lambda optimizer: "-".join([optimizer["name"], *list(optimizer)[2:]]),
)
async def test_optimizer_agrees_with_serial_after_five_rounds(tmp_path: Path, optimizer: dict[str, Any]) -> None:
    assert await disagreement(federation(optimizer=optimizer, epochs=2), tmp_path) < 1e-4


@pytest.mark.parametrize(
    "local",
    [
        pytest.param({"proximal_mu": 0.5, "epochs": 2}, id="fedprox"),
        pytest.param({"clip_norm": 0.3}, id="clip"),
        pytest.param({"clip_norm": 0.3, "proximal_mu": 2.0, "epochs": 3}, id="clip-after-fedprox"),
        pytest.param({"batch_size": 100}, id="full-batch"),
        pytest.param({"batch_size": 1}, id="batches-of-one"),
        pytest.param({"schedule": {"kind": "exponential", "decay": 0.3}}, id="schedule"),
    ],
)
async def test_local_terms_agree_with_serial_after_five_rounds(tmp_path: Path, local: dict[str, Any]) -> None:
    assert await disagreement(federation(**local), tmp_path) < 1e-4


@pytest.mark.parametrize(
    "optimizer",
    [
        {"name": "adam", "learning_rate": 0.01},
        {"name": "rmsprop", "learning_rate": 0.001},
        {"name": "adagrad", "learning_rate": 0.01},
    ],
    ids=lambda optimizer: optimizer["name"],
)
async def test_fedprox_with_steps_of_a_size_of_their_own_agrees_with_serial_on_images(
    tmp_path: Path, optimizer: dict[str, Any]
) -> None:
    # Where the gradient is all but zero, such a step takes its sign from it.
    assert await disagreement(federation(CNN, optimizer=optimizer, epochs=2, proximal_mu=0.1), tmp_path) < 1e-4


@pytest.mark.parametrize("block", [1, 2, 4])
async def test_cohort_cut_into_blocks_agrees_with_serial(tmp_path: Path, block: int) -> None:
    optimizer = {"name": "adam", "learning_rate": 0.01}
    assert await disagreement(federation(MLP | {"dropout": 0.3}, optimizer=optimizer), tmp_path, block) < 1e-4


async def test_records_agree_with_serial(tmp_path: Path) -> None:
    configured = federation(epochs=2, rounds=2)
    _, serial = await play(SerialCohort(configured, sites()), configured, tmp_path / "serial")
    _, vectorized = await play(
        VectorizedCohort(configured, sites(), Resources(block=4)), configured, tmp_path / "vectorized"
    )
    for ours, theirs in zip(vectorized, serial, strict=True):
        assert set(ours.metrics) == {"train_loss", "loss", "accuracy"}
        assert ours.metrics == pytest.approx(theirs.metrics, rel=1e-5)
        for own, other in zip(ours.contributions, theirs.contributions, strict=True):
            assert (own.client_id, own.weight, own.example_count) == (
                other.client_id,
                other.weight,
                other.example_count,
            )
            assert own.metrics == pytest.approx(other.metrics, rel=1e-5)


async def test_weights_by_quality_agree_with_serial(tmp_path: Path) -> None:
    configured = federation(epochs=20, rounds=2, optimizer={"name": "sgd", "learning_rate": 0.5})
    configured = configured.model_copy(update={"weight_by": "quality"})
    # Held out is what each has learned, so that weights are large and differ, but for one that has learned other digits than its own.
    data = {name: LocalData("memory", part.training, part.training) for name, part in sites().items()}
    data["site-4"] = LocalData("memory", data["site-4"].training, data["site-5"].training)
    _, serial = await play(SerialCohort(configured, data), configured, tmp_path / "serial")
    _, vectorized = await play(
        VectorizedCohort(configured, data, Resources(block=4)), configured, tmp_path / "vectorized"
    )
    for ours, theirs in zip(vectorized, serial, strict=True):
        weights = {part.client_id: part.weight for part in ours.contributions}
        # To one step up or down: the losses agree to float32's accuracy.
        assert weights == pytest.approx({part.client_id: part.weight for part in theirs.contributions}, rel=1e-3, abs=1)
    assert weights["site-3"] > 10 * weights["site-4"] > 0
    assert len(set(weights.values())) == len(weights)


async def test_train_of_no_epochs_changes_nothing(tmp_path: Path) -> None:
    configured = federation(epochs=0, rounds=1)
    vector, (record,) = await play(VectorizedCohort(configured, sites()), configured, tmp_path / "run")
    assert np.array_equal(vector, ModelShop(configured).initial().vector)
    assert [part.metrics for part in record.contributions] == [{}] * len(SIZES)


def test_train_moves_each_client_by_its_gradient_worked_out_by_hand() -> None:
    # Two classes with equal logits at first: the gradient of the cross-entropy is (p - 1) x for the class and p x for the other.
    learner = {"name": "mlp", "inputs": [1], "hidden": [], "classes": 2}
    configured = federation(learner, rounds=1, size=2, batch_size=2, optimizer={"name": "sgd", "learning_rate": 1.0})
    none = Examples(torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64))
    one = Examples(torch.tensor([[2.0]]), torch.tensor([0]))
    two = Examples(torch.tensor([[2.0], [4.0]]), torch.tensor([0, 0]))
    data = {"one": LocalData("memory", one, none), "two": LocalData("memory", two, none)}
    cohort = VectorizedCohort(configured, data)
    model = ModelShop(configured).initial()
    model.vector[:] = 0.0
    order = Order("run", 1, 0, configured, model, 2)
    binding = Binding("run", 1, model.sha256, model.layout.sha256)
    trained = cohort._train(order, ["two", "one"], binding, lambda: None)
    # p = 1/2. One: -(p - 1) * 2 = 1. Two: the mean of 1 and 2. Biases: -(p - 1) = 1/2.
    one_arrival, two_arrival = trained["one"], trained["two"]
    assert isinstance(one_arrival, Arrival)
    assert isinstance(two_arrival, Arrival)
    np.testing.assert_allclose(torch.as_tensor(one_arrival.vector).cpu(), [1.0, -1.0, 0.5, -0.5], rtol=1e-6)
    np.testing.assert_allclose(torch.as_tensor(two_arrival.vector).cpu(), [1.5, -1.5, 0.5, -0.5], rtol=1e-6)
    assert one_arrival.metrics["train_loss"] == pytest.approx(np.log(2))


def test_first_round_of_plain_sgd_imports_no_compiler() -> None:
    # Which takes as long as all else until then.
    script = """
import sys
from server.cohort import Order
from server.inbox import Binding
from server.model import ModelShop
from simulation.vectorized import VectorizedCohort
from tests.simulation.federations import CNN, federation, sites
configured = federation(CNN)
cohort, model = VectorizedCohort(configured, sites()), ModelShop(configured).initial()
order, binding = Order("run", 1, 0, configured, model, 6), Binding("run", 1, model.sha256, model.layout.sha256)
cohort._train(order, dict.fromkeys(sites(), 1), binding, lambda: None)
cohort._evaluate(order, list(sites()), lambda: None)
found = {"torch._dynamo", "sympy"} & set(sys.modules)
assert not found, found
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


async def test_client_that_diverges_is_refused_and_costs_nobody_else(tmp_path: Path) -> None:
    configured = federation(rounds=1, size=3)
    configured = configured.model_copy(update={"cohort": configured.cohort.model_copy(update={"quorum": 2})})
    # The first of all examples, and clients with batches that are filled up.
    data = sites((12, 11, 10))
    data["site-0"].training.inputs[:2] = float("nan")
    _, (record,) = await play(VectorizedCohort(configured, data), configured, tmp_path / "run")
    assert [part.client_id for part in record.contributions] == ["site-1", "site-2"]
    assert [(refusal.client_id, refusal.reason) for refusal in record.refusals] == [("site-0", "not_finite")]


async def test_client_without_held_out_data_is_refused_where_weight_is_by_quality(tmp_path: Path) -> None:
    configured = federation(rounds=1, size=3)
    cohort = configured.cohort.model_copy(update={"quorum": 2})
    configured = configured.model_copy(update={"cohort": cohort, "weight_by": "quality"})
    data = sites((8, 12, 8))
    data["site-2"] = LocalData("memory", data["site-2"].training, data["site-2"].held_out.select(torch.arange(0)))
    _, (record,) = await play(VectorizedCohort(configured, data), configured, tmp_path / "run")
    assert [part.client_id for part in record.contributions] == ["site-0", "site-1"]
    (refusal,) = record.refusals
    assert (refusal.client_id, refusal.reason) == ("site-2", "client_data")
    assert refusal.detail.startswith("Weight by quality: at least 1 example must be held out, got 0.")


async def test_evaluate_equals_each_clients_own(tmp_path: Path) -> None:
    configured, data = federation(), sites()
    data["site-3"] = LocalData("memory", data["site-3"].training, data["site-3"].held_out.select(torch.arange(0)))
    model, ids = ModelShop(configured).initial(), ["site-4", "site-3", "site-0"]
    order, ballots = Order("run", 1, 0, configured, model, 3), []
    for cohort in (SerialCohort(configured, data), VectorizedCohort(configured, data)):
        ballot = Ballot(ids, cohort.changed)
        await cohort.evaluate(order, ids, ballot)
        ballots.append(ballot.evaluations)
        cohort.close()
    serial, vectorized = ballots
    assert {name: result.example_count for name, result in vectorized.items()} == {
        "site-4": 5,
        "site-3": 0,
        "site-0": 5,
    }
    for name, result in serial.items():
        assert vectorized[name].metrics == pytest.approx(result.metrics, rel=1e-6)


async def test_round_that_closes_early_stops_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    configured = federation(epochs=3_000)
    cohort = VectorizedCohort(configured, sites())
    model = ModelShop(configured).initial()
    order = Order("run", 1, 0, configured, model, len(SIZES))
    binding = Binding("run", 1, model.sha256, model.layout.sha256)
    inbox = Inbox(binding, sorted(sites()), WeightedMean(order.grid, model.layout.size), cohort.changed, VectorPool())
    has_begun, fit = threading.Event(), cohort._stacked.fit

    def noted(*arguments: Any) -> Trained:
        has_begun.set()
        return fit(*arguments)

    monkeypatch.setattr(cohort._stacked, "fit", noted)
    training = asyncio.create_task(cohort.train(order, sorted(sites()), inbox))
    await asyncio.to_thread(has_begun.wait, 20)
    training.cancel()
    # Trained to its end, the block would take a good while longer.
    await asyncio.wait([training], timeout=2)
    assert training.cancelled()
    assert inbox.count == 0


async def test_error_of_a_block_is_that_of_its_clients_and_not_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    configured, names = federation(), sorted(sites())
    cohort = VectorizedCohort(configured, sites(), Resources(block=3))
    model = ModelShop(configured).initial()
    order = Order("run", 1, 0, configured, model, len(names))
    fit, calls = cohort._stacked.fit, []

    def fail_once(*arguments: Any) -> Trained:
        calls.append(arguments)
        if len(calls) == 1:
            raise RuntimeError("odd")
        return fit(*arguments)

    monkeypatch.setattr(cohort._stacked, "fit", fail_once)
    binding = Binding("run", 1, model.sha256, model.layout.sha256)
    outcomes = [outcome async for outcome in cohort._outcomes(order, names, binding)]
    assert [outcome.client_id for outcome in outcomes] == names
    reason = RefusalReason.REFUSAL_REASON_CLIENT_ERROR
    assert outcomes[:3] == [Refused(name, reason, "Unexpected RuntimeError('odd')") for name in names[:3]]
    assert all(isinstance(outcome, Arrival) for outcome in outcomes[3:])


async def test_error_of_an_evaluation_is_that_of_its_clients_and_not_the_rounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configured, names = federation(), sorted(sites())
    cohort = VectorizedCohort(configured, sites())
    model = ModelShop(configured).initial()

    def fail(*arguments: Any) -> dict[str, torch.Tensor]:
        raise RuntimeError("odd")

    monkeypatch.setattr(cohort._stacked, "measure", fail)
    ballot = Ballot(names, cohort.changed)
    await cohort.evaluate(Order("run", 1, 0, configured, model, len(names)), names, ballot)
    found = [(failure.client_id, failure.detail) for failure in ballot.failures()]
    assert found == [(name, "Unexpected RuntimeError('odd')") for name in sorted(names)]


@pytest.mark.parametrize(
    ("learner", "local", "reason"),
    [
        pytest.param(MLP | {"batch_norm": True}, {}, "mlp keeps statistics of its batches", id="mlp-batch-norm"),
        pytest.param(CNN | {"batch_norm": True}, {}, "cnn keeps statistics of its batches", id="cnn-batch-norm"),
        pytest.param(
            MLP | {"metrics": ["f1", "auroc"]},
            {},
            "mlp reports f1, auroc, which take a client's examples all at once",
            id="measures-of-classes",
        ),
        pytest.param({"name": "lstm"}, {}, "lstm runs torch's fused LSTM, which has no rule for vmap", id="lstm"),
        pytest.param({"name": "rnn"}, {}, "rnn runs torch's fused RNN, which vmap takes apart into steps", id="rnn"),
        pytest.param({"name": "gru"}, {}, "gru runs torch's fused GRU, which vmap takes apart into steps", id="gru"),
        pytest.param(
            MLP, {"optimizer": {"name": "lbfgs"}}, "lbfgs does not treat each parameter by itself", id="lbfgs"
        ),
        pytest.param(MLP, {"optimizer": {"name": "muon"}}, "muon does not treat each parameter by itself", id="muon"),
    ],
)
def test_spec_that_would_not_agree_is_refused(learner: dict[str, Any], local: dict[str, Any], reason: str) -> None:
    configured = federation(learner, **local)
    assert reason in reason_against(configured, torch.device("cpu"))
    with pytest.raises(
        SpecError, match=rf"^Run spec: the vectorized engine cannot train it: .*{reason}.*Take processes"
    ):
        VectorizedCohort(configured, sites())


class Half(mlp.MLP):
    """A network whose first layer is frozen."""

    def frozen_names(self) -> frozenset[str]:
        return frozenset({"1.weight", "1.bias"})


def test_spec_of_a_learner_with_frozen_tensors_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "half", Model(Half, mlp.MLPParameters))
    configured = federation(MLP | {"name": "half"})
    with pytest.raises(SpecError, match="learner half has 2 frozen tensors, which have no axis of clients"):
        VectorizedCohort(configured, sites())
    assert choose("auto", configured, Resources(device="cpu"))[0] != "vectorized"


def test_sites_whose_data_does_not_suit_the_learner_are_refused() -> None:
    odd = Examples(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(DataError, match=r"Learner mlp: examples must have shape \(1, 8, 8\) float32, got \(3,\)"):
        VectorizedCohort(federation(), sites() | {"odd": LocalData("memory", odd, odd)})
