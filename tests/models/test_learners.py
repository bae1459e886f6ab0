"""What holds for every learner of the zoo."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from models import MODELS, Contribution, DataError, Examples, Learner, ServerOptimizer, TrainingStopped, build_learner
from wire.spec import LocalSpec, Named
from wire.tensors import Layout, State


@dataclass(frozen=True)
class Case:
    """A learner, small, with data that suits it and what it reports."""

    learner: Named
    data: str
    measures: set[str] = field(default_factory=lambda: {"loss", "accuracy"})
    learning_rate: float = 0.2


CASES = [
    Case(Named(name="mlp", hidden=[32]), "digits"),
    Case(Named(name="mlp", hidden=[16, 16], activation="tanh", batch_norm=True, dropout=0.2), "digits"),
    Case(Named(name="cnn", channels=[4, 8]), "images"),
    Case(Named(name="cnn", channels=[4], pooling="average", hidden=16, batch_norm=True, dropout=0.2), "images"),
    Case(Named(name="cnn", channels=[[4, 8]], padding="valid", feature_dropout=0.1), "images"),
    Case(Named(name="lstm", vocabulary=128, hidden=16), "text", {"loss", "accuracy", "bits_per_character"}, 2.0),
    Case(Named(name="lstm", hidden=8, layers=2, dropout=0.2), "text", {"loss", "accuracy", "bits_per_character"}, 2.0),
]


def test_cases_cover_the_zoo() -> None:
    assert {case.learner.name for case in CASES} == set(MODELS)


@pytest.fixture(params=CASES, ids=lambda case: case.learner.name)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@pytest.fixture
def data(case: Case, request: pytest.FixtureRequest) -> Examples:
    found: Examples = request.getfixturevalue(case.data)
    return found


@pytest.fixture
def learner(case: Case) -> Learner:
    return build_learner(case.learner)


def fit(learner: Learner, state: State, data: Examples, seed: int = 1, **local: Any) -> Contribution:
    generator = torch.Generator().manual_seed(seed)
    return learner.fit(state, data, LocalSpec(**local), generator, lambda fraction: None)


def moved(state: State, contribution: Contribution) -> State:
    layout = Layout.of(state)
    return layout.views(layout.flatten(state) + contribution.vector)


def assert_same(left: State, right: State) -> None:
    assert list(left) == list(right)
    assert all(torch.equal(left[name], right[name]) for name in left)


def copied(state: State) -> State:
    return {name: tensor.clone() for name, tensor in state.items()}


def test_init_follows_from_the_seed_alone(learner: Learner, case: Case) -> None:
    before = torch.get_rng_state()
    state = learner.init(5)
    torch.rand(3)
    assert_same(state, learner.init(5))
    assert_same(state, build_learner(case.learner).init(5))
    assert not np.array_equal(Layout.of(state).flatten(state), Layout.of(state).flatten(learner.init(6)))
    torch.set_rng_state(before)


def test_init_and_build_leave_the_global_generator_alone(case: Case) -> None:
    before = torch.get_rng_state()
    build_learner(case.learner).init(5)
    assert torch.equal(torch.get_rng_state(), before)


def test_state_survives_the_way_through_the_vector(learner: Learner) -> None:
    state = learner.init(5)
    layout = Layout.of(state)
    views = layout.views(layout.flatten(state))
    for name, view in views.items():
        assert torch.equal(view, state[name])
    assert all(not state[name].is_floating_point() for name in state.keys() - views.keys())


def test_check_takes_the_data_it_is_made_for(learner: Learner, data: Examples) -> None:
    learner.check(data)


def test_fit_lowers_the_loss_on_real_data(learner: Learner, data: Examples, case: Case) -> None:
    state = learner.init(5)
    data = data.select(torch.arange(min(len(data), 512)))
    optimizer = Named(name="sgd", learning_rate=case.learning_rate)
    contribution = fit(learner, state, data, epochs=5, batch_size=16, optimizer=optimizer, clip_norm=1.0)
    before, after = learner.evaluate(state, data), learner.evaluate(moved(state, contribution), data)
    assert contribution.example_count == before.example_count == len(data)
    assert after.metrics["loss"] < 0.8 * before.metrics["loss"]
    assert after.metrics["accuracy"] > before.metrics["accuracy"]
    assert before.metrics["loss"] > contribution.metrics["train_loss"] > 0


def test_fit_is_the_same_again_whatever_the_learner_did_before(learner: Learner, data: Examples) -> None:
    data = data.select(torch.arange(40))
    state = learner.init(5)
    first = fit(learner, state, data, epochs=2, batch_size=16)
    other = fit(learner, learner.init(6), data, seed=2, optimizer=Named(name="adam"))
    learner.evaluate(learner.init(7), data)
    again = fit(learner, state, data, epochs=2, batch_size=16)
    assert first.vector.tobytes() == again.vector.tobytes()
    assert first.metrics == again.metrics
    assert first.vector.tobytes() != other.vector.tobytes()


def test_fit_changes_neither_state_nor_data_nor_the_global_generator(learner: Learner, data: Examples) -> None:
    data = data.select(torch.arange(40))
    state, before = learner.init(5), torch.get_rng_state()
    kept_state, kept_data = copied(state), Examples(data.inputs.clone(), data.targets.clone())
    fit(learner, state, data, batch_size=16)
    assert_same(state, kept_state)
    assert torch.equal(data.inputs, kept_data.inputs)
    assert torch.equal(data.targets, kept_data.targets)
    assert torch.equal(torch.get_rng_state(), before)


def test_fit_without_epochs_contributes_nothing(learner: Learner, data: Examples) -> None:
    contribution = fit(learner, learner.init(5), data, epochs=0)
    assert not contribution.vector.any()
    assert contribution.metrics == {}


def test_fit_without_examples_is_refused(learner: Learner, data: Examples) -> None:
    with pytest.raises(DataError, match=r"must have at least [12] examples, got 0\."):
        fit(learner, learner.init(5), data.select(torch.arange(0)))


def test_fit_reports_after_each_batch_up_to_one(learner: Learner, data: Examples) -> None:
    fractions: list[float] = []
    data = data.select(torch.arange(40))
    generator = torch.Generator().manual_seed(1)
    learner.fit(learner.init(5), data, LocalSpec(epochs=2, batch_size=16), generator, fractions.append)
    assert fractions == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])


def test_fit_that_is_stopped_leaves_the_learner_usable(learner: Learner, data: Examples, case: Case) -> None:
    def stop(fraction: float) -> None:
        raise TrainingStopped("The round closed.")

    data = data.select(torch.arange(40))
    state, before = learner.init(5), torch.get_rng_state()
    expected = fit(build_learner(case.learner), state, data, batch_size=16)
    with pytest.raises(TrainingStopped, match="The round closed"):
        learner.fit(state, data, LocalSpec(batch_size=16), torch.Generator().manual_seed(1), stop)
    assert torch.equal(torch.get_rng_state(), before)
    assert fit(learner, state, data, batch_size=16).vector.tobytes() == expected.vector.tobytes()


def test_evaluate_changes_nothing_and_draws_nothing(learner: Learner, data: Examples, case: Case) -> None:
    state, before = learner.init(5), torch.get_rng_state()
    kept = copied(state)
    first = learner.evaluate(state, data)
    assert first == learner.evaluate(state, data)
    assert set(first.metrics) == case.measures
    assert_same(state, kept)
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluate_in_batches_is_the_mean_over_examples(learner: Learner, data: Examples) -> None:
    state = learner.init(5)
    data = data.select(torch.arange(300) % len(data))
    parts = [learner.evaluate(state, data.select(torch.arange(start, start + 50))) for start in range(0, 300, 50)]
    whole = learner.evaluate(state, data)
    for name, value in whole.metrics.items():
        assert value == pytest.approx(sum(part.metrics[name] for part in parts) / 6, rel=1e-5)


def test_evaluate_without_examples_measures_nothing(learner: Learner, data: Examples) -> None:
    found = learner.evaluate(learner.init(5), data.select(torch.arange(0)))
    assert (found.example_count, found.metrics) == (0, {})


def test_apply_with_plain_sgd_adds_the_mean_to_the_bit(learner: Learner) -> None:
    state = learner.init(5)
    layout = Layout.of(state)
    vector = layout.flatten(state)
    mean = np.random.default_rng(1).normal(size=layout.size).astype(np.float32)
    expected = vector + mean
    found = learner.apply(
        layout.views(vector), layout.views(mean), ServerOptimizer(Named(name="sgd", learning_rate=1.0)), 1
    )
    assert layout.flatten(found).tobytes() == expected.tobytes()
