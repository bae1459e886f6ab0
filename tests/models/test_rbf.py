"""The radial basis function network: each phase against Lloyd's steps, a ridge regression and a softmax regression on pooled data."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.linear_model import Ridge

from models import DataError, Examples, Learner, ServerOptimizer, TrainingStopped, build_learner
from models.rbf import RadialBasis
from server.checkpoints import checkpoint_path
from server.model import read_checkpoint
from tests.models.form_blocks import CLIENTS, block, blocks, played
from wire.spec import LocalSpec, Named
from wire.tensors import Layout, State

Array = npt.NDArray[np.float64]
FLAT = {"name": "rbf_network", "centres": 12, "lloyd_rounds": 3}
IMAGES = {"name": "rbf_network", "inputs": [1, 8, 8]}


def build(**changes: Any) -> Learner:
    return build_learner(Named.model_validate(FLAT | changes))


def a_round(learner: Learner, state: State, parts: list[Examples], number: int = 0, **local: Any) -> State:
    """Return the state after a round of all clients, whose contributions are averaged in float64."""
    fits = [
        learner.fit(state, part, LocalSpec(**local), torch.Generator().manual_seed(number), lambda fraction: None)
        for part in parts
    ]
    weights = [found.example_count for found in fits]
    mean = np.average([found.vector.astype(np.float64) for found in fits], axis=0, weights=weights)
    views = learner.contribution_layout.views(mean.astype(np.float32))
    server = ServerOptimizer(Named(name="sgd", learning_rate=1.0))
    return learner.apply({name: value.clone() for name, value in state.items()}, views, server, sum(weights))


def after(learner: Learner, parts: list[Examples], rounds: int, **local: Any) -> State:
    state = learner.init(3)
    for number in range(rounds):
        state = a_round(learner, state, parts, number, **local)
    return state


def dealt(data: Examples) -> list[Examples]:
    """Deal the data to five clients of very unequal sizes, sorted by class."""
    order = data.targets.argsort(stable=True)
    return [data.select(rows) for rows in torch.tensor_split(order, [1, 11, 411, 911])]


def lloyd_step(points: Array, centres: Array) -> tuple[Array, list[int], list[float]]:
    """Return the new centres, how many points each has, and their root mean square distance to it."""
    nearest = [min(range(len(centres)), key=lambda j: float(((point - centres[j]) ** 2).sum())) for point in points]
    moved, counts, spreads = centres.copy(), [], []
    for j in range(len(centres)):
        own = points[np.array(nearest) == j]
        moved[j] = own.mean(axis=0) if len(own) else centres[j]
        counts.append(len(own))
        spreads.append(float(((own - moved[j]) ** 2).sum()))
    return moved, counts, spreads


def pooled_centres(points: Array, directions: Array, rounds: int) -> Array:
    """Return the centres after the splits that `directions` are for, and Lloyd's steps until there have been `rounds`."""
    centres = np.zeros((1, points.shape[1]))
    for _ in range(rounds):
        centres, counts, spreads = lloyd_step(points, centres)
        wanted = min(2 * len(centres), len(directions)) - len(centres)
        halves = []
        for place, j in enumerate(sorted(range(len(centres)), key=lambda j: -spreads[j])[:wanted]):
            shift = 0.5 * math.sqrt(spreads[j] / counts[j]) * directions[len(centres) + place]
            halves.append(centres[j] + shift)
            centres[j] = centres[j] - shift
        centres = np.array([*centres, *halves])
    return centres


@pytest.mark.parametrize("rounds", [1, 2, 4, 7])
def test_centres_of_a_federation_are_those_of_pooled_lloyd_steps(digits: Examples, rounds: int) -> None:
    """12 centres: 1, 2, 4, 8 and then 12, so that the last split has to choose; the steps are written out in float64."""
    learner = build()
    directions = learner.init(3)["centres"].double().numpy()
    expected = pooled_centres(digits.inputs.double().numpy(), directions, rounds)
    state = after(learner, dealt(digits), rounds)
    assert int(state["round"]) == rounds
    np.testing.assert_allclose(state["centres"][: len(expected)].numpy(), expected, atol=2e-6)
    # Those to come still hold their directions.
    np.testing.assert_array_equal(state["centres"][len(expected) :].numpy(), directions[len(expected) :].astype("f4"))


def test_last_steps_agree_with_scikit_learn(digits: Examples) -> None:
    learner = build(lloyd_rounds=5)
    found = split = after(learner, dealt(digits), 4)
    for _ in range(5):
        found = a_round(learner, found, dealt(digits))
    start, points = split["centres"].double().numpy(), digits.inputs.double().numpy()
    reference = KMeans(12, init=start, n_init=1, max_iter=5, tol=0, algorithm="lloyd").fit(points).cluster_centers_
    np.testing.assert_allclose(found["centres"].numpy(), reference, atol=2e-6)
    distances = ((points[:, None] - reference) ** 2).sum(axis=2).min(axis=1)
    assert learner.evaluate(found, digits).metrics["distance"] == pytest.approx(distances.mean(), rel=1e-5)


def test_centre_without_examples_stays_where_it_is(digits: Examples) -> None:
    learner = build()
    state = after(learner, [digits], 5)
    state["centres"][7] = 9.0
    found = a_round(learner, state, dealt(digits))
    assert torch.equal(found["centres"][7], torch.full((64,), 9.0))
    assert not torch.equal(found["centres"][6], state["centres"][6])


def test_contribution_of_a_client_with_twice_the_weight_counts_twice(digits: Examples) -> None:
    # Weights by quality are no counts of examples; a client of double weight is like two equal clients.
    learner, parts = build(), dealt(digits)
    vectors = [
        learner.fit(learner.init(3), part, LocalSpec(), torch.Generator(), lambda _: None).vector for part in parts
    ]
    mean = np.average(vectors, axis=0, weights=[1, 2, 3, 4, 10]).astype(np.float32)
    server = ServerOptimizer(Named(name="sgd", learning_rate=1.0))
    found = learner.apply(learner.init(3), learner.contribution_layout.views(mean), server, 20)
    means = np.array([part.inputs.double().mean(dim=0).numpy() for part in parts])
    expected = np.average(means, axis=0, weights=[1, 2, 3, 4, 10])
    # The first centre has been split to both sides of it.
    np.testing.assert_allclose(found["centres"][:2].mean(dim=0).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("data", [torch.zeros(5, 64), torch.ones(1, 64)], ids=["equal-examples", "one-example"])
def test_fewer_different_examples_than_centres_leave_everything_finite(data: torch.Tensor) -> None:
    learner, examples = build(), Examples(data, torch.zeros(len(data), dtype=torch.int64))
    state = after(learner, [examples], 9)
    assert all(value.isfinite().all() for value in state.values())
    assert learner.evaluate(state, examples).metrics["accuracy"] == 1.0


def test_width_is_the_mean_distance_to_the_nearest_other_centre_times_overlap() -> None:
    learner = build(inputs=[1], centres=4, lloyd_rounds=1, overlap=2.0, classes=2)
    points = torch.tensor([0.0, 0.0, 1.0, 1.0, 3.0, 3.0, 10.0, 10.0])[:, None]
    state = learner.init(0)
    # All four are there: this is the last of three rounds for centres.
    state = {**state, "round": torch.tensor(2.0), "centres": torch.tensor([[0.1], [1.1], [3.1], [9.0]])}
    found = a_round(learner, state, [Examples(points, torch.zeros(8, dtype=torch.int64))])
    assert found["centres"].flatten().tolist() == [0.0, 1.0, 3.0, 10.0]
    assert float(found["width"]) == pytest.approx(2.0 * (1 + 1 + 2 + 7) / 4)


def test_radial_basis_is_what_its_definition_says_and_has_its_gradient() -> None:
    basis = RadialBasis(torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=torch.float64), torch.tensor(2.0).double())
    found = basis(torch.tensor([[0.0, 0.0], [3.0, 0.0]], dtype=torch.float64))
    expected = [[1.0, math.exp(-25 / 8)], [math.exp(-9 / 8), math.exp(-16 / 8)]]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    inputs = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert torch.autograd.gradcheck(basis, (inputs,))


def features(state: State, data: Examples) -> Array:
    """Return the outputs of the radial basis, worked out in float64."""
    points, centres = data.inputs.flatten(1).double().numpy(), state["centres"].double().numpy()
    squared = ((points[:, None] - centres) ** 2).sum(axis=2)
    found: Array = np.exp(-squared / (2 * float(state["width"]) ** 2))
    return found


@pytest.mark.parametrize(("ridge", "accuracy"), [(1e-2, 1e-6), (1e-5, 2e-4)])
def test_readout_of_a_federation_is_the_pooled_ridge_regression(
    digits: Examples, ridge: float, accuracy: float
) -> None:
    """What is left of the difference is float32's rounding of the means, which a small penalty lets through."""
    learner = build(ridge=ridge, centres=40)
    placed = after(learner, dealt(digits), 9)
    found = a_round(learner, placed, dealt(digits))
    near, targets = features(placed, digits), np.eye(10)[digits.targets.numpy()]
    reference = Ridge(alpha=ridge * len(digits), solver="svd").fit(near, targets)
    outputs = near @ found["weight"].double().numpy().T + found["bias"].double().numpy()
    np.testing.assert_allclose(outputs, reference.predict(near), atol=accuracy)
    error = ((reference.predict(near) - targets) ** 2).sum(axis=1).mean()
    assert learner.evaluate(found, digits).metrics["loss"] == pytest.approx(error, rel=1e-4)
    # The same again in each round that follows.
    again = a_round(learner, found, dealt(digits))
    assert all(torch.equal(again[name], found[name]) for name in found)


def test_readout_by_gradient_is_softmax_regression_on_the_features_to_the_bit(digits: Examples) -> None:
    learner = build(readout="gradient")
    placed = after(learner, dealt(digits), 7)
    state = {**placed, "weight": torch.randn(10, 12, generator=torch.Generator().manual_seed(1))}
    local = LocalSpec(epochs=2, batch_size=16, optimizer=Named(name="sgd", learning_rate=0.5), proximal_mu=0.1)
    found = learner.fit(state, digits, local, torch.Generator().manual_seed(1), lambda fraction: None)
    softmax = build_learner(Named(name="mlp", inputs=[12], hidden=[]))
    near = Examples(RadialBasis(state["centres"], state["width"])(digits.inputs), digits.targets)
    linear = {"1.weight": state["weight"], "1.bias": state["bias"]}
    expected = softmax.fit(linear, near, local, torch.Generator().manual_seed(1), lambda fraction: None)
    parts = learner.contribution_layout.views(found.vector)
    assert found.metrics == expected.metrics
    assert np.concatenate([parts[name].flatten() for name in ("weight", "bias")]).tobytes() == expected.vector.tobytes()
    assert not any(parts[name].any() for name in ("sums", "counts", "distances"))


def test_readout_by_gradient_takes_the_servers_step(digits: Examples) -> None:
    learner = build(readout="gradient")
    placed = after(learner, [digits], 7)
    mean = {entry.name: torch.full(entry.shape, 0.25) for entry in learner.contribution_layout.entries}
    halved = ServerOptimizer(Named(name="sgd", learning_rate=0.5))
    found = learner.apply({name: value.clone() for name, value in placed.items()}, mean, halved, 10)
    assert torch.equal(found["weight"], placed["weight"] + 0.125)
    assert torch.equal(found["bias"], placed["bias"] + 0.125)
    assert all(torch.equal(found[name], placed[name]) for name in ("round", "centres", "width"))


PHASES = [("ridge", 0), ("ridge", 2), ("ridge", 6), ("ridge", 7), ("gradient", 7)]


@pytest.mark.parametrize(("readout", "rounds"), PHASES)
class TestEveryPhase:
    """What holds for every learner, in each phase of this one."""

    @pytest.fixture
    def learner(self, readout: str) -> Learner:
        return build(readout=readout)

    @pytest.fixture
    def state(self, learner: Learner, digits: Examples, rounds: int) -> State:
        return after(learner, [digits], rounds)

    def test_fit_is_the_same_again_and_changes_nothing(self, learner: Learner, state: State, digits: Examples) -> None:
        kept = {name: value.clone() for name, value in state.items()}
        before, inputs = torch.get_rng_state(), digits.inputs.clone()
        fractions: list[float] = []
        first = learner.fit(state, digits, LocalSpec(), torch.Generator().manual_seed(1), fractions.append)
        after(learner, [digits], 3)
        again = learner.fit(state, digits, LocalSpec(), torch.Generator().manual_seed(1), lambda fraction: None)
        assert first.vector.tobytes() == again.vector.tobytes()
        assert first.vector.any()
        assert len(fractions) >= len(digits) / 32
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1.0
        assert all(torch.equal(state[name], kept[name]) for name in kept)
        assert torch.equal(digits.inputs, inputs)
        assert torch.equal(torch.get_rng_state(), before)

    def test_contribution_stays_within_what_a_run_allows(
        self, learner: Learner, state: State, digits: Examples
    ) -> None:
        found = learner.fit(state, digits, LocalSpec(), torch.Generator(), lambda fraction: None)
        assert found.vector.shape == (learner.contribution_layout.size,)
        assert np.abs(found.vector).max() <= 1

    def test_round_without_training_leaves_the_state(self, learner: Learner, state: State, digits: Examples) -> None:
        found = learner.fit(state, digits, LocalSpec(epochs=0), torch.Generator(), lambda fraction: None)
        assert not found.vector.any()
        assert found.metrics == {}
        unmoved = a_round(learner, state, dealt(digits), epochs=0)
        assert list(unmoved) == list(state)
        assert all(torch.equal(unmoved[name], state[name]) for name in state)

    def test_fit_that_is_stopped_leaves_the_learner_usable(
        self, learner: Learner, state: State, digits: Examples
    ) -> None:
        def stop(fraction: float) -> None:
            raise TrainingStopped("The round closed.")

        expected = learner.fit(state, digits, LocalSpec(), torch.Generator().manual_seed(1), lambda fraction: None)
        with pytest.raises(TrainingStopped, match="The round closed"):
            learner.fit(state, digits, LocalSpec(), torch.Generator().manual_seed(1), stop)
        found = learner.fit(state, digits, LocalSpec(), torch.Generator().manual_seed(1), lambda fraction: None)
        assert found.vector.tobytes() == expected.vector.tobytes()

    def test_fit_without_examples_is_refused(self, learner: Learner, state: State, digits: Examples) -> None:
        with pytest.raises(DataError, match=r"must have at least 1 examples, got 0\."):
            learner.fit(state, digits.select(torch.arange(0)), LocalSpec(), torch.Generator(), lambda fraction: None)

    def test_evaluate_is_finite_and_changes_nothing(self, learner: Learner, state: State, digits: Examples) -> None:
        kept = {name: value.clone() for name, value in state.items()}
        found = learner.evaluate(state, digits)
        assert found == learner.evaluate(state, digits)
        assert set(found.metrics) == {"loss", "accuracy", "distance"}
        assert np.isfinite(list(found.metrics.values())).all()
        assert all(torch.equal(state[name], kept[name]) for name in kept)
        nothing = learner.evaluate(state, digits.select(torch.arange(0)))
        assert (nothing.example_count, nothing.metrics) == (0, {})

    def test_apply_on_the_meta_device_is_the_same(
        self, learner: Learner, state: State, digits: Examples, readout: str
    ) -> None:
        found = learner.fit(state, digits, LocalSpec(), torch.Generator().manual_seed(1), lambda fraction: None)
        coordinator = build_learner(Named.model_validate(FLAT | {"readout": readout}), "meta")
        assert coordinator.contribution_layout == learner.contribution_layout
        server = Named(name="sgd", learning_rate=1.0)
        both = [
            each.apply(
                {name: value.clone() for name, value in state.items()},
                each.contribution_layout.views(found.vector.copy()),
                ServerOptimizer(server),
                len(digits),
            )
            for each in (learner, coordinator)
        ]
        assert Layout.of(both[0]) == Layout.of(state)
        assert all(torch.equal(both[0][name], both[1][name]) for name in state)


def test_init_follows_from_the_seed_alone() -> None:
    first, again, other = (build().init(seed) for seed in (5, 5, 6))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["centres"], other["centres"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(
            Examples(torch.zeros(2, 63), torch.zeros(2, dtype=torch.int64)),
            r"^Learner rbf_network: examples must have shape \(64,\) float32, got \(63,\) float32\.",
            id="shape",
        ),
        pytest.param(
            Examples(torch.zeros(2, 64), torch.tensor([2, 10])),
            r"^Learner rbf_network: classes must be 0 to 9, got 10 in example 1\.",
            id="class",
        ),
    ],
)
def test_check_data_of_another_kind_is_refused(data: Examples, message: str) -> None:
    with pytest.raises(DataError, match=message):
        build().check(data)


@pytest.mark.parametrize(("count", "floor"), [(50, 0.95), (100, 0.965), (200, 0.975)])
def test_network_comes_near_its_reference(digits: Examples, count: int, floor: float) -> None:
    """References, one split each: 96.9, 98.6 and 98.3 % with 50, 100 and 200 centres."""
    learner, accuracies = build(centres=count, lloyd_rounds=8), []
    for seed in range(3):
        order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(seed))
        state = after(learner, [digits.select(order[360:])], math.ceil(math.log2(count)) + 9, batch_size=256)
        accuracies.append(learner.evaluate(state, digits.select(order[:360])).metrics["accuracy"])
    assert np.mean(accuracies) > floor


async def test_federation_of_form_blocks_finds_what_pooled_data_gives(tmp_path: Path) -> None:
    """Through the coordinator's own rounds and its grid: centres and outputs of eleven clients are those of one that holds all."""
    parts = blocks()
    runs = {"federated": parts, "pooled": {"all": block(*CLIENTS)}, "alone": {"block-0": parts["block-0"]}}
    learner, accuracy, centres = IMAGES | {"centres": 40}, {}, {}
    layout = Layout.of(build_learner(Named.model_validate(learner)).init(0))
    for name, held in runs.items():
        accuracy[name] = (await played(learner, held, tmp_path / name, rounds=15))[-1].metrics["accuracy"]
        model = read_checkpoint(checkpoint_path(tmp_path / name / "run", 15), layout)
        centres[name] = layout.views(model.vector)["centres"]
    torch.testing.assert_close(centres["federated"], centres["pooled"], rtol=0, atol=2e-6)
    assert accuracy["federated"] == pytest.approx(accuracy["pooled"], abs=0.003)
    assert accuracy["federated"] > 0.86
    assert accuracy["federated"] > accuracy["alone"] + 0.08


@pytest.mark.slow
async def test_federation_with_a_readout_by_gradient_beats_a_client_alone(tmp_path: Path) -> None:
    parts, accuracy = blocks(), {}
    local = {"epochs": 5, "batch_size": 16, "optimizer": {"name": "sgd", "learning_rate": 1.0}}
    runs = {"federated": parts, "pooled": {"all": block(*CLIENTS)}, "alone": {"block-0": parts["block-0"]}}
    for name, held in runs.items():
        learner = IMAGES | {"readout": "gradient"}
        accuracy[name] = (await played(learner, held, tmp_path / name, rounds=35, local=local))[-1].metrics["accuracy"]
    assert accuracy["pooled"] > 0.89
    assert accuracy["federated"] > 0.85
    assert accuracy["federated"] > accuracy["alone"] + 0.04
