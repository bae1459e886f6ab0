"""Training by gradient descent, against loops and gradients that are worked out here."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn import functional

from models import Contribution, DataError, Examples, Learner, ServerOptimizer, build_learner
from wire.spec import LocalSpec, Named
from wire.tensors import Layout, State, Vector

SOFTMAX = Named(name="mlp", hidden=[])
Array = npt.NDArray[np.float64]


def sgd(learning_rate: float) -> Named:
    return Named(name="sgd", learning_rate=learning_rate)


def fit(learner: Learner, state: State, data: Examples, seed: int = 1, **local: Any) -> Contribution:
    generator = torch.Generator().manual_seed(seed)
    return learner.fit(state, data, LocalSpec(**local), generator, lambda fraction: None)


def first(data: Examples, count: int) -> Examples:
    return data.select(torch.arange(count))


def central_training(state: State, data: Examples, epochs: int, batch_size: int, learning_rate: float) -> Vector:
    """Train the perceptron 64-32-10 in a plain loop and return how its parameters changed."""
    names = ["1.weight", "1.bias", "3.weight", "3.bias"]
    weights = [state[name].clone().requires_grad_() for name in names]
    generator = torch.Generator().manual_seed(1)
    torch.randint(1 << 62, (), generator=generator)  # the seed of dropout, which this network has not
    for _ in range(epochs):
        order = torch.randperm(len(data), generator=generator)
        for start in range(0, len(data), batch_size):
            rows = order[start : start + batch_size]
            hidden = functional.linear(data.inputs[rows], weights[0], weights[1]).relu()  # (batch, 32)
            logits = functional.linear(hidden, weights[2], weights[3])  # (batch, 10)
            gradients = torch.autograd.grad(functional.cross_entropy(logits, data.targets[rows]), weights)
            with torch.no_grad():
                for weight, gradient in zip(weights, gradients, strict=True):
                    weight.add_(gradient, alpha=-learning_rate)
    changes = [(weight.detach() - state[name]).flatten() for name, weight in zip(names, weights, strict=True)]
    return torch.cat(changes).numpy()


def test_fit_of_one_client_equals_central_training_to_the_bit(digits: Examples) -> None:
    learner = build_learner(Named(name="mlp", hidden=[32]))
    state, data = learner.init(5), first(digits, 500)
    found = fit(learner, state, data, epochs=3, batch_size=16, optimizer=sgd(0.2)).vector
    assert found.tobytes() == central_training(state, data, 3, 16, 0.2).tobytes()


def softmax_gradient(data: Examples, weight: Array, bias: Array) -> tuple[Array, Array, float]:
    """Gradient and loss of softmax regression, worked out in float64: X^T (softmax - onehot) / n."""
    inputs, classes = data.inputs.double().numpy(), data.targets.numpy()
    logits = inputs @ weight.T + bias
    logits -= logits.max(axis=1, keepdims=True)
    odds = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    loss = -np.log(odds[np.arange(len(classes)), classes]).mean()
    odds[np.arange(len(classes)), classes] -= 1
    return odds.T @ inputs / len(classes), odds.mean(axis=0), float(loss)


def softmax_training(
    state: State, data: Examples, steps: int, learning_rate: float, mu: float
) -> tuple[Array, list[float]]:
    """Full-batch descent on loss + mu/2 * ||w - w_0||^2; return the change and each step's loss without the added term."""
    start = [state["1.weight"].double().numpy(), state["1.bias"].double().numpy()]
    weight, bias = start[0].copy(), start[1].copy()
    losses = []
    for _ in range(steps):
        of_weight, of_bias, loss = softmax_gradient(data, weight, bias)
        weight -= learning_rate * (of_weight + mu * (weight - start[0]))
        bias -= learning_rate * (of_bias + mu * (bias - start[1]))
        losses.append(loss)
    return np.concatenate([(weight - start[0]).ravel(), bias - start[1]]), losses


@pytest.mark.parametrize("mu", [0.0, 0.5, 4.0])
def test_fit_with_proximal_term_follows_the_hand_worked_gradient(digits: Examples, mu: float) -> None:
    learner = build_learner(SOFTMAX)
    state, data = learner.init(5), first(digits, 100)
    found = fit(learner, state, data, epochs=4, batch_size=100, optimizer=sgd(0.2), proximal_mu=mu)
    expected, losses = softmax_training(state, data, 4, 0.2, mu)
    np.testing.assert_allclose(found.vector, expected, rtol=1e-4, atol=1e-7)
    assert found.metrics["train_loss"] == pytest.approx(losses[-1], rel=1e-5)


def test_fit_with_strong_proximal_term_stays_nearer(digits: Examples) -> None:
    learner = build_learner(SOFTMAX)
    state, data = learner.init(5), first(digits, 100)
    lengths = [
        np.linalg.norm(fit(learner, state, data, epochs=10, optimizer=sgd(0.2), proximal_mu=mu).vector)
        for mu in (0.0, 0.5, 4.0)
    ]
    assert lengths == sorted(lengths, reverse=True)


def test_fit_train_loss_is_the_mean_of_the_last_epoch_over_examples(digits: Examples) -> None:
    # A learning rate of zero keeps the model, so batches of 64 and 36 must give the loss over all 100.
    learner = build_learner(SOFTMAX)
    state, data = learner.init(5), first(digits, 100)
    found = fit(learner, state, data, epochs=2, batch_size=64, optimizer=sgd(0.0))
    assert found.metrics["train_loss"] == pytest.approx(learner.evaluate(state, data).metrics["loss"], rel=1e-6)


def test_fit_with_clipped_gradient_takes_a_step_of_that_length(digits: Examples) -> None:
    learner = build_learner(SOFTMAX)
    state, data = learner.init(5), first(digits, 100)
    step: dict[str, Any] = {"batch_size": 100, "optimizer": sgd(1.0)}
    free = fit(learner, state, data, **step).vector
    clipped = fit(learner, state, data, **step, clip_norm=0.01).vector
    assert np.linalg.norm(free) > 0.1
    assert np.linalg.norm(clipped) == pytest.approx(0.01, rel=1e-3)
    np.testing.assert_allclose(clipped / np.linalg.norm(clipped), free / np.linalg.norm(free), atol=1e-4)


def test_fit_with_a_bound_above_the_gradient_changes_nothing(digits: Examples) -> None:
    learner = build_learner(SOFTMAX)
    state, data = learner.init(5), first(digits, 100)
    step: dict[str, Any] = {"batch_size": 100, "optimizer": sgd(1.0)}
    assert (
        fit(learner, state, data, **step, clip_norm=1e6).vector.tobytes()
        == fit(learner, state, data, **step).vector.tobytes()
    )


def test_fit_with_lbfgs_which_asks_for_the_loss_many_times_finds_the_minimum(digits: Examples) -> None:
    learner = build_learner(SOFTMAX)
    state, data = learner.init(5), first(digits, 100)
    optimizer = Named(name="lbfgs", max_iter=100, line_search_fn="strong_wolfe")
    found = fit(learner, state, data, batch_size=100, optimizer=optimizer, proximal_mu=0.1)
    layout = Layout.of(state)
    end = layout.views(layout.flatten(state) + found.vector)
    of_weight, _, _ = softmax_gradient(data, end["1.weight"].double().numpy(), end["1.bias"].double().numpy())
    # At the minimum the loss pulls as hard as the proximal term holds back.
    change = layout.views(found.vector)["1.weight"].double().numpy()
    np.testing.assert_allclose(of_weight, -0.1 * change, atol=1e-4)
    # The first of its evaluations is reported: the loss of the state that was handed in.
    assert found.metrics["train_loss"] == pytest.approx(learner.evaluate(state, data).metrics["loss"], rel=1e-6)


def test_fit_in_bfloat16_computes_each_loss_of_a_step_with_the_weights_of_that_moment(digits: Examples) -> None:
    data = first(digits, 100)
    optimizer = Named(name="lbfgs", max_iter=10, learning_rate=0.1)
    losses = {}
    for precision in ("float32", "bfloat16"):
        learner = build_learner(Named(name="mlp", hidden=[], precision=precision))
        state = learner.init(5)
        layout = Layout.of(state)
        change = fit(learner, state, data, batch_size=100, optimizer=optimizer).vector
        losses[precision] = learner.evaluate(layout.views(layout.flatten(state) + change), data).metrics["loss"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05)


DROPPING = Named(name="mlp", hidden=[32], dropout=0.5)


def test_fit_with_dropout_follows_the_generator_and_not_the_global_one(digits: Examples) -> None:
    learner = build_learner(DROPPING)
    state, data = learner.init(5), first(digits, 64)
    found = fit(learner, state, data, batch_size=64)
    torch.rand(7)
    assert fit(learner, state, data, batch_size=64).vector.tobytes() == found.vector.tobytes()
    # One full batch: the order of examples hardly matters, so a clear difference comes from dropout.
    other = fit(learner, state, data, seed=2, batch_size=64).vector
    assert np.abs(other - found.vector).max() > 0.1 * np.abs(found.vector).max()


def test_evaluate_drops_nothing(digits: Examples) -> None:
    dropping, plain = build_learner(DROPPING), build_learner(Named(name="mlp", hidden=[32]))
    state = plain.init(5)
    renamed = dict(zip(dropping.init(5), state.values(), strict=True))
    assert dropping.evaluate(renamed, digits) == plain.evaluate(state, digits)


NORMED = Named(name="mlp", hidden=[16], batch_norm=True)
NORMED_CNN = Named(name="cnn", channels=[4], batch_norm=True)


def test_fit_with_batch_norm_joins_a_leftover_example_to_the_batch_before(digits: Examples) -> None:
    learner = build_learner(NORMED)
    fractions: list[float] = []
    generator = torch.Generator().manual_seed(1)
    found = learner.fit(learner.init(5), first(digits, 33), LocalSpec(batch_size=16), generator, fractions.append)
    assert fractions == [0.5, 1.0]
    assert np.isfinite(found.vector).all()
    assert found.example_count == 33


def test_fit_without_batch_norm_keeps_a_leftover_example_apart(digits: Examples) -> None:
    fractions: list[float] = []
    learner = build_learner(SOFTMAX)
    learner.fit(learner.init(5), first(digits, 33), LocalSpec(batch_size=16), torch.Generator(), fractions.append)
    assert len(fractions) == 3


@pytest.mark.parametrize(("count", "batch_size"), [(1, 16), (10, 1)])
def test_fit_with_batch_norm_of_single_examples_is_refused(digits: Examples, count: int, batch_size: int) -> None:
    learner = build_learner(NORMED)
    with pytest.raises(DataError, match="batches must have at least 2 examples, got 1"):
        fit(learner, learner.init(5), first(digits, count), batch_size=batch_size)


def test_fit_with_batch_norm_of_a_single_image_has_its_pixels(images: Examples) -> None:
    learner = build_learner(NORMED_CNN)
    assert np.isfinite(fit(learner, learner.init(5), first(images, 1)).vector).all()


def test_fit_contributes_the_statistics_of_batch_norm(digits: Examples) -> None:
    learner = build_learner(NORMED)
    state, data = learner.init(5), first(digits, 64)
    found = fit(learner, state, data, batch_size=64, optimizer=sgd(0.0))
    changes = Layout.of(state).views(found.vector)
    hidden = functional.linear(data.inputs, state["1.weight"], state["1.bias"])  # (batch, hidden)
    # One step with momentum 0.1 from mean 0 and variance 1 (torch.nn.BatchNorm1d).
    torch.testing.assert_close(changes["2.running_mean"], 0.1 * hidden.mean(dim=0))
    torch.testing.assert_close(changes["2.running_var"], 0.1 * (hidden.var(dim=0) - 1), rtol=1e-4, atol=1e-6)
    assert "2.num_batches_tracked" not in changes


@pytest.mark.parametrize("server", [Named(name="adam", learning_rate=0.5), Named(name="sgd", momentum=0.9)])
def test_apply_moves_statistics_by_their_mean_and_parameters_by_the_server_step(server: Named) -> None:
    learner = build_learner(NORMED)
    state = learner.init(5)
    layout = Layout.of(state)
    vector, mean = layout.flatten(state), np.full(layout.size, 0.25, dtype=np.float32)
    optimizer = ServerOptimizer(server)
    found = dict(learner.apply(layout.views(vector), layout.views(mean), optimizer, 1))
    assert list(found) == [entry.name for entry in layout.entries]
    torch.testing.assert_close(found["2.running_var"], state["2.running_var"] + 0.25, rtol=0, atol=0)
    assert not torch.equal(found["1.bias"], state["1.bias"] + 0.25)
    assert not any("running" in name for name in optimizer.slots())


def test_federated_full_batch_descent_equals_pooled_descent(digits: Examples) -> None:
    """FedSGD: one full-batch step a client, weighted by examples, is one step on all the data."""
    learner = build_learner(SOFTMAX)
    state: State = learner.init(5)
    layout = Layout.of(state)
    parts = [digits.select(torch.arange(*span)) for span in ((0, 100), (100, 150), (150, 400))]
    vector = layout.flatten(state).astype(np.float64)
    for _ in range(5):
        views = layout.views(vector.astype(np.float32))
        updates = [fit(learner, views, part, batch_size=1000, optimizer=sgd(0.5)) for part in parts]
        vector += sum(update.vector.astype(np.float64) * update.example_count for update in updates) / 400
    expected, _ = softmax_training(state, first(digits, 400), 5, 0.5, 0.0)
    np.testing.assert_allclose(vector - layout.flatten(state), expected, rtol=1e-3, atol=1e-6)


def test_init_and_fit_draw_the_same_whatever_other_threads_draw() -> None:
    dropout = Named(name="mlp", inputs=[4], hidden=[64], classes=2, dropout=0.5)
    data = Examples(torch.ones(8, 4), torch.zeros(8, dtype=torch.int64))

    def drawn() -> bytes:
        learner = build_learner(dropout)
        state = learner.init(7)
        generator = torch.Generator().manual_seed(1)
        change = learner.fit(state, data, LocalSpec(epochs=3), generator, lambda _: None).vector
        return b"".join(tensor.numpy().tobytes() for tensor in state.values()) + change.tobytes()

    expected = drawn()
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: drawn(), range(40)))
    assert found == {expected}


def test_fit_without_epochs_contributes_nothing(digits: Examples) -> None:
    learner = build_learner(SOFTMAX)
    contribution = fit(learner, learner.init(5), digits, epochs=0)
    assert not contribution.vector.any()
    assert contribution.metrics == {}


def test_fit_reports_after_each_batch_up_to_one(digits: Examples) -> None:
    learner, fractions = build_learner(SOFTMAX), list[float]()
    local, generator = LocalSpec(epochs=2, batch_size=16), torch.Generator().manual_seed(1)
    learner.fit(learner.init(5), first(digits, 40), local, generator, fractions.append)
    assert fractions == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])


def test_evaluate_in_batches_is_the_mean_over_examples(digits: Examples) -> None:
    learner = build_learner(SOFTMAX)
    state, data = learner.init(5), first(digits, 300)
    parts = [learner.evaluate(state, data.select(torch.arange(start, start + 50))) for start in range(0, 300, 50)]
    for name, value in learner.evaluate(state, data).metrics.items():
        assert value == pytest.approx(sum(part.metrics[name] for part in parts) / 6, rel=1e-5)


def test_apply_with_plain_sgd_adds_the_mean_to_the_bit() -> None:
    learner = build_learner(SOFTMAX)
    layout = Layout.of(learner.init(5))
    vector = layout.flatten(learner.init(5))
    mean = np.random.default_rng(1).normal(size=layout.size).astype(np.float32)
    expected = vector + mean
    found = learner.apply(layout.views(vector), layout.views(mean), ServerOptimizer(sgd(1.0)), 1)
    assert layout.flatten(found).tobytes() == expected.tobytes()


def test_precision_bfloat16_computes_layers_so_and_keeps_parameters(digits: Examples) -> None:
    data = first(digits, 64)
    found: dict[str, npt.NDArray[np.float32]] = {}
    losses = {}
    for precision in ("float32", "bfloat16"):
        learner = build_learner(Named(name="mlp", hidden=[32], precision=precision))
        state = learner.init(5)
        found[precision] = fit(learner, state, data, batch_size=64, optimizer=sgd(0.1)).vector
        losses[precision] = learner.evaluate(state, data).metrics["loss"]
    # The gradient is the same but for the 8 bits that a bfloat16 keeps.
    np.testing.assert_allclose(found["bfloat16"], found["float32"], atol=0.02 * np.abs(found["float32"]).max())
    assert (found["bfloat16"] != found["float32"]).any()
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.01)
    assert losses["bfloat16"] != losses["float32"]
