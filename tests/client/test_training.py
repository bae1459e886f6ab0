import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from client.data import LocalData, split
from client.training import Assignment, Trainer
from models import DataError, Examples, LearnerError, TrainingStopped
from server.model import ModelShop
from tests.client.sites import CPU, DIGITS, digits_spec
from wire.errors import LayoutError
from wire.seeds import derive_generator
from wire.spec import Named, RunSpec
from wire.tensors import Vector, vector_bytes

COIN = {"name": "mlp", "inputs": [1], "hidden": [], "classes": 2}
"""Softmax regression on one number: vector = (w0, w1, b0, b1). With zeros, both classes have 1/2 and the loss is ln 2."""


def coins(training: int, held_out: int) -> LocalData:
    def some(count: int) -> Examples:
        return Examples(torch.ones(count, 1), torch.zeros(count, dtype=torch.int64))

    return LocalData("memory", some(training), some(held_out))


def quality_weight(data: LocalData, vector: list[float], **limits: int) -> int:
    """Return the weight of a client that trains for no epoch, so that its own model is the one that it has received."""
    spec = digits_spec(learner=COIN, weight_by="quality", limits=limits, local={"epochs": 0})
    assignment = Assignment(spec, 1, "ana", np.array(vector, dtype=np.float32))
    return Trainer(spec.learner, CPU).train(assignment, data, ignore).weight


def ignore(fraction: float) -> None:
    """Take a report."""


def noisy_spec(**changes: Any) -> RunSpec:
    """Return a spec whose training draws an order and dropout."""
    learner = {"name": "mlp", "inputs": [1, 8, 8], "hidden": [12], "dropout": 0.3}
    return digits_spec(learner=learner, local={"epochs": 2, "batch_size": 16}, **changes)


def first_vector(trainer: Trainer) -> Vector:
    return np.random.default_rng(3).normal(scale=0.1, size=trainer.layout.size).astype(np.float32)


def trained(trainer: Trainer, spec: RunSpec, round_number: int = 1, client_id: str = "ana") -> bytes:
    assignment = Assignment(spec, round_number, client_id, first_vector(trainer))
    return bytes(vector_bytes(trainer.train(assignment, DIGITS, ignore).vector))


# --- Weights ---


def test_weight_by_examples_is_their_number() -> None:
    spec = digits_spec()
    trainer = Trainer(spec.learner, CPU)
    result = trainer.train(Assignment(spec, 1, "ana", first_vector(trainer)), DIGITS, ignore)
    assert (result.weight, result.example_count) == (104, 104)


def test_weight_by_examples_is_capped() -> None:
    spec = digits_spec(limits={"weight_cap": 100})
    trainer = Trainer(spec.learner, CPU)
    result = trainer.train(Assignment(spec, 1, "ana", first_vector(trainer)), DIGITS, ignore)
    assert (result.weight, result.example_count) == (100, 104)


@pytest.mark.parametrize(
    ("examples", "vector", "weight"),
    [
        # exp(-5 ln 2) = 1/32, and 64/32 = 2 steps an example.
        pytest.param(7, [0, 0, 0, 0], 14, id="coin"),
        # The loss of class 0 is log(1 + 3) where its logit is ln 3 below that of class 1: 4**-5 * 64 = 1/16 step an example.
        pytest.param(80, [0, 0, 0, math.log(3)], 5, id="worse-than-a-coin"),
        pytest.param(7, [0, 0, 0, math.log(3)], 1, id="at-least-1"),
        # A loss of 0, for all that float32 knows.
        pytest.param(7, [0, 0, 40, 0], 7 * 64, id="perfect"),
        pytest.param(7, [0, 0, 0, 1000], 1, id="hopeless"),
    ],
)
def test_weight_by_quality_is_the_formula(examples: int, vector: list[float], weight: int) -> None:
    assert quality_weight(coins(examples, 3), vector) == weight
    by_hand = examples * 64 * math.exp(-5 * math.log1p(math.exp(min(700, vector[3] - vector[2]))))
    assert weight == max(1, round(by_hand))


def test_weight_by_quality_is_capped() -> None:
    assert quality_weight(coins(7, 3), [0, 0, 40, 0], weight_cap=100) == 100


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weight_by_quality_of_a_broken_model_is_1(value: float) -> None:
    assert quality_weight(coins(7, 3), [0, 0, value, value]) == 1


def test_weight_by_quality_measures_on_held_out_data() -> None:
    # Class 1 in training, class 0 held out: the loss on the training data would be another.
    data = LocalData("memory", Examples(torch.ones(7, 1), torch.ones(7, dtype=torch.int64)), coins(1, 3).held_out)
    assert quality_weight(data, [0, 0, 40, 0]) == 7 * 64


def test_weight_by_quality_measures_the_trained_model_by_hand() -> None:
    # A step of 1 from zeros ends at (1/2, -1/2, 1/2, -1/2), whose logits are 2 apart: the loss is log(1 + exp(-2)). That of the received
    # model is ln 2, for a weight of 4.
    sgd = {"name": "sgd", "learning_rate": 1.0}
    spec = digits_spec(learner=COIN, weight_by="quality", local={"batch_size": 2, "optimizer": sgd})
    vector = np.zeros(4, np.float32)
    result = Trainer(spec.learner, CPU).train(Assignment(spec, 1, "ana", vector), coins(2, 3), ignore)
    assert result.weight == 68 == round(2 * 64 * (1 + math.exp(-2)) ** -5)
    # The model and the contribution are as they were before the weight was measured.
    np.testing.assert_array_equal(vector, [0, 0, 0, 0])
    np.testing.assert_allclose(result.vector, [0.5, -0.5, 0.5, -0.5])


def test_weight_by_quality_of_statistics_measures_the_model_that_they_make_by_hand() -> None:
    # One variable, 0 in three examples of four: with a count added to each state, p(0) = 4/6. Of the received model it is 1/2.
    learner = {"name": "bayesian_network", "variables": [{"name": "coin", "states": 2}]}
    spec = digits_spec(learner=learner, weight_by="quality")
    codes = torch.tensor([[0], [0], [1], [0], [0]])
    examples = Examples(codes, torch.empty(5, 0, dtype=torch.int64))
    data = LocalData("memory", examples.select(torch.arange(4)), examples.select(torch.tensor([4])))
    received = ModelShop(spec).initial().vector
    result = Trainer(spec.learner, CPU).train(Assignment(spec, 1, "ana", received), data, ignore)
    assert result.weight == 34 == round(4 * 64 * (4 / 6) ** 5)


def test_weight_by_quality_without_held_out_data_is_refused_before_training() -> None:
    rule = r"^Weight by quality: at least 1 example must be held out, got 0. Join with a held-out fraction above 0.$"
    spec = digits_spec(learner=COIN, weight_by="quality")
    reports: list[float] = []
    with pytest.raises(DataError, match=rule):
        Trainer(spec.learner, CPU).train(
            Assignment(spec, 1, "ana", np.zeros(4, np.float32)), coins(7, 0), reports.append
        )
    assert reports == []


# --- Draws ---


def test_train_same_assignment_gives_the_same_bytes() -> None:
    spec = noisy_spec()
    first = trained(Trainer(spec.learner, CPU), spec)
    resident = Trainer(spec.learner, CPU)
    torch.manual_seed(99)
    trained(resident, spec, round_number=7)
    resident.evaluate(first_vector(resident), DIGITS)
    assert trained(resident, spec) == first


@pytest.mark.parametrize(
    ("round_number", "client_id", "seed"),
    [(2, "ana", 5), (1, "ben", 5), (1, "ana", 6)],
    ids=["round", "client", "seed"],
)
def test_train_other_assignment_gives_other_bytes(round_number: int, client_id: str, seed: int) -> None:
    trainer = Trainer(noisy_spec().learner, CPU)
    assert trained(trainer, noisy_spec(seed=seed), round_number, client_id) != trained(trainer, noisy_spec())


def test_train_leaves_the_model_the_data_and_the_global_generator_as_they_were() -> None:
    spec = noisy_spec()
    trainer = Trainer(spec.learner, CPU)
    vector = first_vector(trainer)
    before = vector.copy(), DIGITS.training.inputs.clone(), torch.get_rng_state()
    trainer.train(Assignment(spec, 1, "ana", vector), DIGITS, ignore)
    np.testing.assert_array_equal(vector, before[0])
    assert torch.equal(DIGITS.training.inputs, before[1])
    assert torch.equal(torch.get_rng_state(), before[2])


def test_train_is_one_step_of_gradient_descent_by_hand() -> None:
    # One batch of two examples with x = 1 and class 0, and zero weights: p = 1/2, so dL/dlogits = (-1/2, 1/2) and a step of 0.1 adds
    # 0.05 to the weight and bias of class 0, and takes it from those of class 1.
    spec = digits_spec(learner=COIN, local={"batch_size": 2, "optimizer": {"name": "sgd", "learning_rate": 0.1}})
    result = Trainer(spec.learner, CPU).train(Assignment(spec, 1, "ana", np.zeros(4, np.float32)), coins(2, 0), ignore)
    np.testing.assert_allclose(result.vector, [0.05, -0.05, 0.05, -0.05], rtol=1e-6)
    assert result.metrics["train_loss"] == pytest.approx(math.log(2))
    assert result.train_seconds > 0


def test_train_takes_the_examples_in_the_order_that_seed_round_and_client_draw() -> None:
    # With batches of one example and a step that only one example can cause, the first step tells who came first.
    data = split(Examples(torch.tensor([[1.0], [10.0]]), torch.zeros(2, dtype=torch.int64)), 0.0, 0)
    spec = digits_spec(learner=COIN, local={"batch_size": 1, "optimizer": {"name": "sgd", "learning_rate": 1.0}})
    trainer = Trainer(spec.learner, CPU)
    for round_number in range(1, 5):
        generator = derive_generator(spec.seed, "fit", round_number, "ana")
        torch.randint(1 << 62, (), generator=generator)
        order = torch.randperm(2, generator=generator).tolist()
        result = trainer.train(Assignment(spec, round_number, "ana", np.zeros(4, np.float32)), data, ignore)
        weight, bias = 0.0, 0.0
        for row in order:
            value = float(data.training.inputs[row])
            step = 1 / (1 + math.exp(2 * (weight * value + bias)))
            weight, bias = weight + step * value, bias + step
        np.testing.assert_allclose(result.vector, [weight, -weight, bias, -bias], rtol=1e-5)


# --- Reports ---


def test_train_reports_each_batch_up_to_the_end() -> None:
    spec = digits_spec(local={"epochs": 2, "batch_size": 52})
    trainer = Trainer(spec.learner, CPU)
    reports: list[float] = []
    trainer.train(Assignment(spec, 1, "ana", first_vector(trainer)), DIGITS, reports.append)
    assert reports == [0.25, 0.5, 0.75, 1.0]


def test_train_that_is_stopped_leaves_the_trainer_usable() -> None:
    spec = noisy_spec()
    expected = trained(Trainer(spec.learner, CPU), spec)
    trainer = Trainer(spec.learner, CPU)
    reports: list[float] = []

    def stop(fraction: float) -> None:
        reports.append(fraction)
        if fraction > 0.3:
            raise TrainingStopped("Enough.")

    random_state = torch.get_rng_state()
    with pytest.raises(TrainingStopped, match=r"^Enough\.$"):
        trainer.train(Assignment(spec, 1, "ana", first_vector(trainer)), DIGITS, stop)
    assert 0.3 < reports[-1] < 0.5
    assert torch.equal(torch.get_rng_state(), random_state)
    assert trained(trainer, spec) == expected


# --- Evaluation and checks ---


def test_evaluate_is_on_held_out_data_alone() -> None:
    spec = digits_spec(learner=COIN)
    evaluation = Trainer(spec.learner, CPU).evaluate(np.array([0, 0, math.log(3), 0], np.float32), coins(7, 3))
    assert evaluation.example_count == 3
    assert evaluation.metrics == {"loss": pytest.approx(math.log(4 / 3)), "accuracy": 1.0}


def test_evaluate_without_held_out_data_is_of_no_examples() -> None:
    spec = digits_spec(learner=COIN)
    evaluation = Trainer(spec.learner, CPU).evaluate(np.zeros(4, np.float32), coins(7, 0))
    assert (evaluation.example_count, evaluation.metrics) == (0, {})


def test_check_data_of_another_shape_is_refused() -> None:
    trainer = Trainer(digits_spec(learner=COIN).learner, CPU)
    trainer.check(coins(7, 0))
    with pytest.raises(DataError, match=r"examples must have shape \(1,\) float32, got \(1, 8, 8\) float32"):
        trainer.check(DIGITS)


def test_check_looks_at_held_out_data_too() -> None:
    data = coins(7, 3)
    bad = replace(data, held_out=Examples(torch.ones(3, 1), torch.tensor([0, 5, 0])))
    with pytest.raises(DataError, match=r"classes must be 0 to 1, got 5 in example 1"):
        Trainer(digits_spec(learner=COIN).learner, CPU).check(bad)


def test_train_vector_of_another_layout_is_refused() -> None:
    spec = digits_spec()
    with pytest.raises(LayoutError, match=r"^Vector: shape must be \(\d+,\) float32, got \(4,\) float32"):
        Trainer(spec.learner, CPU).train(Assignment(spec, 1, "ana", np.zeros(4, np.float32)), DIGITS, ignore)


def test_trainer_of_an_unknown_learner_is_refused() -> None:
    with pytest.raises(LearnerError, match=r"got 'oracle'"):
        Trainer(Named(name="oracle"), CPU)


def test_train_takes_the_learning_rate_of_the_round() -> None:
    def spec_with(rate: float, **schedule: Any) -> RunSpec:
        local = {"optimizer": {"name": "sgd", "learning_rate": rate}, **({"schedule": schedule} if schedule else {})}
        return digits_spec(local=local)

    trainer = Trainer(spec_with(0.4).learner, CPU)
    scheduled = spec_with(0.4, kind="exponential", decay=0.5)
    for number, rate in ((1, 0.4), (2, 0.2), (3, 0.1)):
        assert trained(trainer, scheduled, number) == trained(trainer, spec_with(rate), number)
