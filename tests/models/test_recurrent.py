"""Recurrent networks: gradients against recurrences written out by hand, padding, and what is reported."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn
from torch.nn import functional

from models import Examples
from models.learner import PADDING
from tests.models.recurrences import CELLS, fit, ragged, recurrent, series, tiny

Array = npt.NDArray[np.float64]
Weights = dict[str, Array]


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
            functional.cross_entropy(logits.flatten(0, 1), data.targets[rows].flatten()), list(module.parameters())
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
