"""Recurrent networks: gradients against recurrences written out by hand, padding, truncation, samples, and what they learn."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models import DataError, Examples, LearnerError, build_learner
from models.gradient import GradientLearner
from models.learner import PADDING, Sampler, SampleRequest
from models.recurrent import Recurrent
from wire.spec import LocalSpec, Named
from wire.tensors import Layout, State, Vector

CELLS = ["rnn", "lstm", "gru"]
TASKS = ["next_character", "classify", "forecast"]
SGD = Named(name="sgd", learning_rate=0.5)

Array = npt.NDArray[np.float64]
Weights = dict[str, Array]


def recurrent(name: str, **parameters: Any) -> Recurrent:
    learner = build_learner(Named(name=name, **parameters))
    assert isinstance(learner, Recurrent)
    return learner


def fit(learner: GradientLearner, state: State, data: Examples, **local: Any) -> Vector:
    generator = torch.Generator().manual_seed(1)
    return learner.fit(state, data, LocalSpec(optimizer=SGD, **local), generator, lambda fraction: None).vector.copy()


def changes(learner: GradientLearner, state: State, data: Examples, **local: Any) -> State:
    return Layout.of(state).views(fit(learner, state, data, **local))


def codes(rows: list[list[int]]) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [PADDING] * (longest - len(row)) for row in rows])


def series(lengths: list[int], features: int) -> Tensor:
    values = torch.randn(len(lengths), max(lengths), features, generator=torch.Generator().manual_seed(3))
    for row, length in enumerate(lengths):
        values[row, length:] = torch.nan
    return values


def ragged(task: str, features: int) -> Examples:
    """Three sequences of 5, 1 and 3 steps, of codes 0 to 3 or of numbers."""
    inputs = series([5, 1, 3], features) if features else codes([[0, 3, 1, 1, 2], [2], [3, 0, 3]])
    if task == "next_character":
        return Examples(inputs, codes([[3, 1, 1, 2, 0], [1], [0, 3, 3]]))
    if task == "classify":
        return Examples(inputs, torch.tensor([2, 0, 1]))
    return Examples(inputs, torch.tensor([[0.5, -1.0], [0.25, 2.0], [-0.75, 0.0]]))


def tiny(name: str, task: str, features: int = 0, **parameters: Any) -> Recurrent:
    sizes = {"vocabulary": 4, "embedding": 2, "classes": 3, "outputs": 2, "hidden": 3}
    return recurrent(name, task=task, features=features, **(sizes | parameters))


# The recurrences as the papers have them, one sequence at a time, in float64.


def sigmoid(values: Array) -> Array:
    return 1 / (1 + np.exp(-values))


def elman_step(inputs: Array, recalled: Array, hidden: Array, cells: Array) -> tuple[Array, Array]:
    return np.tanh(inputs + recalled), cells


def lstm_step(inputs: Array, recalled: Array, hidden: Array, cells: Array) -> tuple[Array, Array]:
    keep_in, forget, new, out = np.split(inputs + recalled, 4)
    cells = sigmoid(forget) * cells + sigmoid(keep_in) * np.tanh(new)
    return sigmoid(out) * np.tanh(cells), cells


def gru_step(inputs: Array, recalled: Array, hidden: Array, cells: Array) -> tuple[Array, Array]:
    (reset_in, update_in, new_in), (reset_back, update_back, new_back) = np.split(inputs, 3), np.split(recalled, 3)
    update = sigmoid(update_in + update_back)
    new = np.tanh(new_in + sigmoid(reset_in + reset_back) * new_back)
    return (1 - update) * new + update * hidden, cells


STEPS: dict[str, Callable[[Array, Array, Array, Array], tuple[Array, Array]]] = {
    "rnn": elman_step,
    "lstm": lstm_step,
    "gru": gru_step,
}


def outputs_by_hand(name: str, weights: Weights, sequence: list[Array]) -> list[Array]:
    """Return what the dense layer says at each step of one sequence without padding."""
    layer = 0
    while f"{name}.weight_ih_l{layer}" in weights:
        w_in, w_back = weights[f"{name}.weight_ih_l{layer}"], weights[f"{name}.weight_hh_l{layer}"]
        b_in, b_back = weights[f"{name}.bias_ih_l{layer}"], weights[f"{name}.bias_hh_l{layer}"]
        hidden = cells = np.zeros(w_back.shape[1])
        for time, inputs in enumerate(sequence):
            hidden, cells = STEPS[name](w_in @ inputs + b_in, w_back @ hidden + b_back, hidden, cells)
            sequence = [*sequence[:time], hidden, *sequence[time + 1 :]]
        layer += 1
    return [weights["dense.weight"] @ hidden + weights["dense.bias"] for hidden in sequence]


def loss_by_hand(name: str, weights: Weights, task: str, data: Examples) -> float:
    losses: list[float] = []
    for inputs, targets in zip(data.inputs, data.targets, strict=True):
        if "embedding.weight" in weights:
            sequence = [weights["embedding.weight"][code] for code in inputs.tolist() if code != PADDING]
        else:
            sequence = [np.array(step) for step in inputs.double().tolist() if not math.isnan(step[0])]
        outputs = outputs_by_hand(name, weights, sequence)
        if task == "forecast":
            losses += ((outputs[-1] - targets.double().numpy()) ** 2).tolist()
            continue
        said = outputs if task == "next_character" else outputs[-1:]
        for logits, target in zip(said, targets.reshape(-1).tolist(), strict=False):
            losses.append(float(np.log(np.exp(logits).sum()) - logits[target]))
    return float(np.mean(losses))


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize(
    ("task", "features"), [("next_character", 0), ("classify", 0), ("classify", 2), ("forecast", 2)]
)
def test_gradients_through_time_equal_finite_differences_of_the_recurrence(name: str, task: str, features: int) -> None:
    learner, data = tiny(name, task, features, layers=2), ragged(task, features)
    if features:
        data = Examples(data.inputs.double(), data.targets.double() if task == "forecast" else data.targets)
    module = learner._module.double()
    loss = learner.batch_loss(data)
    loss.backward()  # type: ignore[no-untyped-call]
    weights = {key: value.detach().numpy().copy() for key, value in module.named_parameters()}
    assert float(loss.detach()) == pytest.approx(loss_by_hand(name, weights, task, data), rel=1e-12)
    gradients = {key: value.grad for key, value in module.named_parameters()}
    for key, weight in weights.items():
        numeric = np.zeros_like(weight)
        for place in np.ndindex(weight.shape):
            kept, sides = weight[place], []
            for shift in (1e-5, -1e-5):
                weight[place] = kept + shift
                sides.append(loss_by_hand(name, weights, task, data))
            weight[place] = kept
            numeric[place] = (sides[0] - sides[1]) / 2e-5
        gradient = gradients[key]
        assert gradient is not None
        np.testing.assert_allclose(gradient.numpy(), numeric, rtol=1e-6, atol=1e-9, err_msg=key)


def test_lstm_with_defaults_is_embedding_lstm_and_dense_layer_to_the_bit(text: Examples) -> None:
    learner, data = recurrent("lstm", hidden=16), text.select(torch.arange(40))
    torch.manual_seed(5)
    embedding, lstm, dense = nn.Embedding(256, 8), nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 256)
    module = nn.ModuleDict({"embedding": embedding, "lstm": lstm, "dense": dense})
    state = learner.init(5)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    assert list(before) == list(state)
    assert all(torch.equal(before[key], state[key]) for key in state)
    generator = torch.Generator().manual_seed(1)
    torch.randint(1 << 62, (), generator=generator)
    for rows in torch.randperm(40, generator=generator).split(16):  # type: ignore[no-untyped-call]
        logits = dense(lstm(embedding(data.inputs[rows]))[0])  # (batch, time, vocabulary)
        gradients = torch.autograd.grad(
            functional.cross_entropy(logits.transpose(1, 2), data.targets[rows]), list(module.parameters())
        )
        with torch.no_grad():
            for parameter, gradient in zip(module.parameters(), gradients, strict=True):
                parameter.add_(gradient, alpha=-0.5)
    after = module.state_dict()
    expected = torch.cat([(after[key] - before[key]).flatten() for key in before]).numpy()
    assert fit(learner, state, data, batch_size=16).tobytes() == expected.tobytes()


# Padding.


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize(
    ("task", "features"), [("next_character", 0), ("classify", 0), ("classify", 2), ("forecast", 2)]
)
def test_padded_sequence_gives_what_it_gives_alone(name: str, task: str, features: int) -> None:
    learner, data = tiny(name, task, features, layers=2), ragged(task, features)
    learner.check(data)
    module = learner._module.double()
    inputs = data.inputs.double() if features else data.inputs
    together = module(inputs)
    for row, length in enumerate([5, 1, 3]):
        alone = module(inputs[row : row + 1, :length])[0]
        torch.testing.assert_close(together[row, ..., : alone.shape[-1]], alone, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize(("task", "features"), [("next_character", 0), ("classify", 2), ("forecast", 2)])
def test_more_padding_changes_no_bit_of_an_evaluation_and_no_gradient(name: str, task: str, features: int) -> None:
    learner, data = tiny(name, task, features), ragged(task, features)
    longer = functional.pad(data.inputs, (0, 0, 0, 4) if features else (0, 4), value=torch.nan if features else PADDING)
    targets = functional.pad(data.targets, (0, 4), value=PADDING) if task == "next_character" else data.targets
    state = learner.init(5)
    assert learner.evaluate(state, Examples(longer, targets)) == learner.evaluate(state, data)
    np.testing.assert_allclose(
        fit(learner, state, Examples(longer, targets)), fit(learner, state, data), rtol=1e-5, atol=1e-7
    )


def test_evaluation_of_text_counts_each_code_once() -> None:
    """In two batches: 256 sequences of three steps, and then 10 of one."""
    learner = tiny("gru", "next_character")
    state, generator = learner.init(5), torch.Generator().manual_seed(3)
    inputs, targets = (torch.randint(4, (266, 3), generator=generator) for _ in range(2))
    inputs[256:, 1:] = targets[256:, 1:] = PADDING
    long, short = (
        learner.evaluate(state, Examples(inputs[rows], targets[rows])) for rows in (slice(256), slice(256, None))
    )
    whole = learner.evaluate(state, Examples(inputs, targets))
    assert whole.example_count == 266
    for measure in ("loss", "accuracy", "bits_per_character"):
        expected = (long.metrics[measure] * 768 + short.metrics[measure] * 10) / 778
        assert whole.metrics[measure] == pytest.approx(expected, rel=1e-6)


# Truncated backpropagation through time.


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize(("task", "features"), [("next_character", 0), ("classify", 0), ("forecast", 2)])
@pytest.mark.parametrize("truncate", [5, 6])
def test_truncation_behind_the_end_is_plain_training_to_the_bit(
    name: str, task: str, features: int, truncate: int
) -> None:
    data, local = ragged(task, features), {"epochs": 3, "batch_size": 2, "proximal_mu": 0.1, "clip_norm": 1.0}
    plain = tiny(name, task, features, layers=2, dropout=0.2)
    chunked = tiny(name, task, features, layers=2, dropout=0.2, truncate=truncate)
    state = plain.init(5)
    assert fit(chunked, state, data, **local).tobytes() == fit(plain, state, data, **local).tobytes()


def two_chunks(name: str, state: State, data: Examples, is_carried: bool) -> State:
    """Train on three steps and then on the next two, with torch's layers in a plain loop, and return the changes."""
    learner = tiny(name, "next_character")
    module = learner._module
    module.load_state_dict(dict(state))
    hidden: Any = None
    for start, stop in ((0, 3), (3, 5)):
        steps = module.get_submodule("embedding")(data.inputs[:, start:stop])
        read, after = module.get_submodule(name)(steps, hidden)
        logits = module.get_submodule("dense")(read).transpose(1, 2)
        loss = functional.cross_entropy(logits, data.targets[:, start:stop])
        gradients = torch.autograd.grad(loss, list(module.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(module.parameters(), gradients, strict=True):
                parameter.add_(gradient, alpha=-0.5)
        if is_carried:
            hidden = (after[0].detach(), after[1].detach()) if name == "lstm" else after.detach()
    return {key: value.detach() - state[key] for key, value in module.state_dict().items()}


@pytest.mark.parametrize("name", CELLS)
def test_chunks_take_a_step_each_and_carry_the_hidden_state_without_its_gradient(name: str) -> None:
    learner = tiny(name, "next_character", truncate=3)
    data = Examples(torch.tensor([[0, 3, 1, 1, 2], [2, 2, 0, 1, 3]]), torch.tensor([[3, 1, 1, 2, 0], [2, 0, 1, 3, 3]]))
    state = learner.init(5)
    found = changes(learner, state, data)
    carried, fresh = (two_chunks(name, state, data, is_carried) for is_carried in (True, False))
    for key, change in found.items():
        torch.testing.assert_close(change, carried[key], rtol=1e-5, atol=1e-7)
    assert any(not torch.allclose(change, fresh[key], rtol=1e-3, atol=1e-5) for key, change in found.items())


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("task", ["classify", "forecast"])
def test_gradient_does_not_reach_the_chunk_before(name: str, task: str) -> None:
    # Codes 0 and 1 are in the first chunk alone, in which nothing ends.
    inputs = torch.tensor([[0, 1, 2, 3], [1, 0, 3, 3]])
    targets = torch.tensor([0, 1]) if task == "classify" else torch.ones(2, 2)
    reached = {}
    for truncate in (0, 2):
        learner = tiny(name, task, truncate=truncate)
        moved = changes(learner, learner.init(5), Examples(inputs, targets))["embedding.weight"]
        reached[truncate] = moved.abs().sum(dim=1) > 0
    assert reached[0].tolist() == [True, True, True, True]
    assert reached[2].tolist() == [False, False, True, True]


def test_hidden_state_of_chunks_without_targets_goes_on() -> None:
    learner = tiny("lstm", "classify", truncate=2)
    state = learner.init(5)
    texts = [torch.tensor([[first, 1, 2, 3, 2, 3]]) for first in (0, 3)]
    moved = [fit(learner, state, Examples(text, torch.tensor([0]))).tobytes() for text in texts]
    assert moved[0] != moved[1]


def test_loss_of_chunks_is_their_mean_over_targets() -> None:
    # A learning rate of zero keeps the model, so chunks of 2, 2 and 1 of 5 steps give what an evaluation gives.
    learner, data = tiny("gru", "next_character", truncate=2), ragged("next_character", 0)
    state, generator = learner.init(5), torch.Generator().manual_seed(1)
    local = LocalSpec(optimizer=Named(name="sgd", learning_rate=0.0))
    metrics = learner.fit(state, data, local, generator, lambda _: None).metrics
    assert metrics["train_loss"] == pytest.approx(learner.evaluate(state, data).metrics["loss"], rel=1e-5)


def test_sequences_are_learned_in_the_chunk_in_which_they_end() -> None:
    """Chunks of 2 of sequences of 5, 1 and 3 steps: one ends in each, so three steps are taken, on one sequence each."""
    learner, data = tiny("gru", "classify", truncate=2), ragged("classify", 0)
    state = learner.init(5)
    found = changes(learner, state, data, batch_size=3)
    module = tiny("gru", "classify")._module
    module.load_state_dict(dict(state))
    hidden, losses = None, []
    for start, row, last in ((0, 1, 0), (2, 2, 0), (4, 0, 0)):
        steps = module.get_submodule("embedding")(data.inputs[:, start : start + 2].clamp(min=0))
        read, after = module.get_submodule("gru")(steps, hidden)
        loss = functional.cross_entropy(module.get_submodule("dense")(read[row, last])[None], data.targets[row, None])
        losses.append(float(loss.detach()))
        gradients = torch.autograd.grad(loss, list(module.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(module.parameters(), gradients, strict=True):
                parameter.add_(gradient, alpha=-0.5)
        hidden = after.detach()
    for key, value in module.state_dict().items():
        torch.testing.assert_close(found[key], value - state[key], rtol=1e-5, atol=1e-7)
    generator = torch.Generator().manual_seed(1)
    metrics = learner.fit(state, data, LocalSpec(batch_size=3, optimizer=SGD), generator, lambda _: None).metrics
    assert metrics["train_loss"] == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("name", CELLS)
def test_chunks_in_bfloat16_compute_with_the_weights_of_the_step_before(name: str) -> None:
    data = Examples(torch.tensor([[0, 3, 1, 1, 2, 0]]), torch.tensor([[3, 1, 1, 2, 0, 1]]))
    found = {}
    for precision in ("float32", "bfloat16"):
        learner = tiny(name, "next_character", truncate=2, precision=precision)
        found[precision] = fit(learner, learner.init(5), data, epochs=5)
    distance = np.linalg.norm(found["float32"] - found["bfloat16"])
    assert 0 < distance < 0.02 * np.linalg.norm(found["float32"])


# What is reported.


def test_perplexity_and_bits_are_those_of_torchmetrics_without_padding() -> None:
    from torchmetrics.functional.text import perplexity

    learner, data = tiny("gru", "next_character"), ragged("next_character", 0)
    state = learner.init(5)
    found = learner.evaluate(state, data).metrics
    assert found.keys() == {"loss", "accuracy", "bits_per_character", "perplexity"}
    with torch.no_grad():
        logits = learner._module(data.inputs).transpose(1, 2)  # (batch, time, vocabulary)
    assert found["perplexity"] == pytest.approx(float(perplexity(logits, data.targets, ignore_index=PADDING)), rel=1e-6)
    assert found["bits_per_character"] == pytest.approx(math.log2(found["perplexity"]), rel=1e-6)


def test_perplexity_of_a_model_that_is_far_off_stays_finite() -> None:
    learner = tiny("gru", "next_character")
    state = {key: value * 1e6 for key, value in learner.init(5).items()}
    found = learner.evaluate(state, ragged("next_character", 0)).metrics
    assert found["loss"] > 1_000
    assert math.isfinite(found["perplexity"])


def test_errors_of_forecasts_over_several_batches_are_those_of_torchmetrics_over_all() -> None:
    from torchmetrics.functional.regression import mean_absolute_error, mean_squared_error, r2_score

    learner = recurrent("lstm", task="forecast", features=1, hidden=4)
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(300, 6, 1, generator=generator)
    data = Examples(inputs, inputs.sum(dim=1) + 3)
    state = learner.init(5)
    found = learner.evaluate(state, data).metrics
    with torch.no_grad():
        outputs = learner._module(inputs)
    assert found.keys() == {"loss", "mse", "mean_absolute_error", "r2"}
    assert found["mse"] == pytest.approx(float(mean_squared_error(outputs, data.targets)), rel=1e-5)
    assert found["loss"] == pytest.approx(found["mse"], rel=1e-6)
    assert found["mean_absolute_error"] == pytest.approx(float(mean_absolute_error(outputs, data.targets)), rel=1e-5)
    assert found["r2"] == pytest.approx(float(r2_score(outputs, data.targets)), rel=1e-4)


@pytest.mark.parametrize("count", [1, 300])
def test_r2_of_targets_that_are_all_the_same_is_zero(count: int) -> None:
    learner = recurrent("gru", task="forecast", features=1, hidden=4)
    data = Examples(torch.ones(count, 6, 1), torch.full((count, 1), 0.1))
    assert learner.evaluate(learner.init(5), data).metrics["r2"] == 0


def test_single_numbers_to_forecast_need_no_axis() -> None:
    learner = recurrent("rnn", task="forecast", features=1, hidden=4, truncate=4)
    inputs = series([6, 3, 5], 1)
    with_axis, without = (Examples(inputs, torch.ones(shape)) for shape in ((3, 1), (3,)))
    learner.check(without)
    state = learner.init(5)
    assert learner.evaluate(state, without) == learner.evaluate(state, with_axis)
    assert fit(learner, state, without).tobytes() == fit(learner, state, with_axis).tobytes()


# Samples.


def request(count: int = 1, seed: int = 1, **options: Any) -> SampleRequest:
    return SampleRequest(count, torch.Generator().manual_seed(seed), **options)


@pytest.mark.parametrize("name", CELLS)
def test_sample_at_low_temperature_takes_the_likeliest_code_each_time(name: str) -> None:
    learner = recurrent(name, vocabulary=8, hidden=16, layers=2, dropout=0.5)
    assert isinstance(learner, Sampler)
    state, prompt = learner.init(5), torch.tensor([3, 1, 4])
    state = {key: value * 3 for key, value in state.items()}
    found = learner.sample(state, request(2, prompt=prompt, length=12, temperature=1e-42))
    assert found.shape == (2, 15)
    assert found.dtype == torch.int64
    expected = prompt[None]
    with torch.no_grad():
        for _ in range(12):
            likeliest = learner._module(expected)[:, :, -1].argmax(dim=1, keepdim=True)
            expected = torch.cat([expected, likeliest], dim=1)
    assert torch.equal(found, expected.expand(2, -1))
    assert len(set(expected[0].tolist())) > 2


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_sample_without_prompt_draws_what_a_hidden_state_of_zeros_predicts(temperature: float) -> None:
    learner = recurrent("gru", vocabulary=4, hidden=4)
    state = {key: torch.zeros_like(value) for key, value in learner.init(5).items()}
    state["dense.bias"] = torch.tensor([0.0, 1.0, 2.0, -1.0])
    found = learner.sample(state, request(20_000, length=1, temperature=temperature))
    odds = (state["dense.bias"] / temperature).softmax(dim=0)
    # Within five deviations of the count of each code.
    deviations = (odds * (1 - odds) / 20_000).sqrt()
    assert (((found.flatten().bincount(minlength=4) / 20_000) - odds).abs() < 5 * deviations).all()


def test_sample_follows_from_its_generator_alone_and_changes_nothing() -> None:
    learner = recurrent("lstm", vocabulary=8, hidden=4, dropout=0.5)
    state, before = learner.init(5), torch.get_rng_state()
    kept = {key: value.clone() for key, value in state.items()}
    first = learner.sample(state, request(3, length=20))
    assert first.shape == (3, 20)
    learner.evaluate(learner.init(6), Examples(torch.tensor([[1]]), torch.tensor([[2]])))
    assert torch.equal(learner.sample(state, request(3, length=20)), first)
    assert not torch.equal(learner.sample(state, request(3, seed=2, length=20)), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(state[key], kept[key]) for key in kept)


def test_sample_of_no_length_is_the_prompt() -> None:
    learner = recurrent("rnn", vocabulary=8, hidden=4)
    found = learner.sample(learner.init(5), request(2, prompt=torch.tensor([5, 7]), length=0))
    assert found.tolist() == [[5, 7], [5, 7]]


def test_sample_of_a_classifier_is_refused() -> None:
    learner = recurrent("gru", task="classify", vocabulary=8)
    message = r"^Learner gru: task must be next_character to draw samples, got classify\.$"
    with pytest.raises(LearnerError, match=message):
        learner.sample(learner.init(5), request())


def test_sample_of_a_prompt_beyond_the_vocabulary_is_refused() -> None:
    learner = recurrent("gru", vocabulary=8)
    with pytest.raises(DataError, match=r"^Learner gru: codes of the prompt must be 0 to 7, got 9 in example 1\.$"):
        learner.sample(learner.init(5), request(prompt=torch.tensor([1, 9])))


# Bad parameters and data.


def test_features_of_the_next_character_are_refused() -> None:
    message = r"^Learner rnn: .*features must be 0 to predict the next character, got 2\.$"
    with pytest.raises(LearnerError, match=message):
        recurrent("rnn", features=2)


FINE = torch.tensor([[1, 2, 0], [3, 0, 1]])


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        pytest.param(
            torch.tensor([[1, 2, 0], [3, PADDING, 1]]),
            FINE,
            "sequences must not go on behind padding, got others in example 1",
            id="gap",
        ),
        pytest.param(
            torch.tensor([[PADDING] * 3, [3, 1, 1]]),
            FINE,
            "sequences must have at least 1 step, got others in example 0",
            id="empty",
        ),
        pytest.param(
            torch.tensor([[1, 2, 0], [3, 1, PADDING]]),
            FINE,
            "targets must be as long as their sequences, got others in example 1",
            id="shorter",
        ),
        pytest.param(FINE, FINE - 3, "codes must be 0 to 7, got -2 in example 0", id="negative"),
        pytest.param(FINE, FINE[:, :2], r"examples must be windows of text, got shape \(3,\)", id="target-shape"),
    ],
)
def test_text_that_does_not_suit_is_refused(inputs: Tensor, targets: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=rf"^Learner gru: {message}\.$"):
        recurrent("gru", vocabulary=8).check(Examples(inputs, targets))


NAN = torch.nan


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        pytest.param(
            torch.ones(2, 3),
            torch.ones(2, 1),
            r"examples must be series of shape \(time, 2\) float32, got \(3,\) float32",
            id="axes",
        ),
        pytest.param(
            torch.ones(2, 3, 1),
            torch.ones(2, 1),
            r"examples must be series of shape \(time, 2\) float32, got \(3, 1\) float32",
            id="features",
        ),
        pytest.param(FINE[:, :, None], torch.ones(2, 1), r"\(time, 2\) float32, got \(3, 1\) int64", id="codes"),
        pytest.param(
            torch.tensor([[[1, NAN], [1, 1]]]),
            torch.ones(1, 1),
            "steps must be finite, or all NaN behind the last one, got others in example 0",
            id="partly",
        ),
        pytest.param(
            torch.tensor([[[1, 1], [1, torch.inf]]]), torch.ones(1, 1), "steps must be finite, .*", id="infinite"
        ),
        pytest.param(
            torch.tensor([[[NAN, NAN], [1, 1]]]), torch.ones(1, 1), "sequences must not go on behind .*", id="gap"
        ),
        pytest.param(torch.ones(1, 0, 2), torch.ones(1, 1), "sequences must have at least 1 step, .*", id="empty"),
        pytest.param(
            torch.ones(2, 3, 2),
            torch.ones(2, 3),
            r"targets must be 1 float32 an example, got shape \(2, 3\) float32",
            id="outputs",
        ),
        pytest.param(
            torch.ones(2, 3, 2),
            FINE[:, :1],
            r"targets must be 1 float32 an example, got shape \(2, 1\) int64",
            id="classes",
        ),
        pytest.param(
            torch.ones(2, 3, 2),
            torch.tensor([[1], [NAN]]),
            "targets must be finite, got another one in example 1",
            id="missing",
        ),
    ],
)
def test_series_that_does_not_suit_a_forecast_is_refused(inputs: Tensor, targets: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=f"^Learner lstm: .*{message}\\.$"):
        recurrent("lstm", task="forecast", features=2).check(Examples(inputs, targets))


def test_classes_beyond_their_number_are_refused() -> None:
    learner = recurrent("rnn", task="classify", vocabulary=8, classes=3)
    learner.check(Examples(FINE, torch.tensor([0, 2])))
    with pytest.raises(DataError, match=r"^Learner rnn: classes must be 0 to 2, got 3 in example 1\.$"):
        learner.check(Examples(FINE, torch.tensor([0, 3])))
