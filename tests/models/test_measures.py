"""What learners measure by their own arithmetic, in batches, is what torchmetrics makes of all outputs at once, of real and ragged data."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_exact_match
from torchmetrics.functional.regression import mean_absolute_error, mean_squared_error, r2_score
from torchmetrics.functional.text import perplexity, word_error_rate

from client.data import load, parse_source
from models import PADDING, Examples, build_learner
from models.bert import mask_codes
from models.gradient import EVALUATION_BATCH_SIZE
from models.hugging_face import _texts
from models.language import own_draws
from models.translation import shifted, trimmed
from tests.models.text import adam, trained
from wire.spec import Named

COUNT = EVALUATION_BATCH_SIZE + 44
"""Examples of each case: two batches, of which the second is smaller."""

pytestmark = pytest.mark.usefixtures("bases")


def windows() -> Examples:
    """Return windows of 20 characters, each with the character that follows at every place."""
    return load(parse_source("shakespeare,roles=hamlet/HAMLET,window=20")).select(torch.arange(COUNT))


def is_behind(width: int) -> Tensor:
    """Return which places are behind the ends of texts of 1 to `width` characters, (examples, width)."""
    return torch.arange(width) > (torch.arange(COUNT) * 7 % width).unsqueeze(1)


def ragged() -> Examples:
    found = windows()
    inputs, targets = (codes.masked_fill(is_behind(20), PADDING) for codes in (found.inputs, found.targets))
    return Examples(inputs, targets)


def texts_of_classes() -> Examples:
    """Return texts of many lengths, of three classes."""
    return Examples(ragged().inputs, (ragged().inputs == ord("e")).sum(1).clamp(max=2))


def answers() -> Examples:
    """Return texts of many lengths, and for an answer their first characters, one, two or none but a space."""
    found, wanted = ragged(), torch.full((COUNT, 2), PADDING)
    wanted[:, 0] = torch.where(found.inputs[:, 0] == ord("e"), ord("e"), ord(" "))
    wanted[::2, 1] = ord("!")
    return Examples(found.inputs, wanted)


def pronunciations() -> Examples:
    return load(parse_source("pronunciations")).select(torch.arange(COUNT) * 9)


def digits(*shape: int) -> Examples:
    found = load(parse_source("digits")).select(torch.arange(COUNT))
    return Examples(found.inputs.reshape(COUNT, *shape), found.targets)


def series() -> Examples:
    """Return digits as series of rows, of which the last are missing in some."""
    found = digits(8, 8)
    return Examples(found.inputs.masked_fill(is_behind(8).unsqueeze(2), torch.nan), found.targets)


def sums() -> Examples:
    """Return digits, and for numbers to predict the sums of some of their rows."""
    found = digits(64)
    return Examples(found.inputs, found.inputs.view(COUNT, 8, 8).sum(2)[:, 2:5])


def sums_of_series() -> Examples:
    return Examples(series().inputs, sums().targets)


def of_classes(learner: Any, data: Examples) -> dict[str, Tensor]:
    logits = learner.outputs_of(data)
    return {
        "accuracy": multiclass_accuracy(logits, data.targets, logits.shape[1], average="micro"),
        "loss": perplexity(logits[:, None].double(), data.targets[:, None]).log(),
    }


def of_codes(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Return measures of logits (examples, time, codes), over all codes alike."""
    found = perplexity(logits.double(), targets, ignore_index=PADDING)
    hits = multiclass_accuracy(logits.mT, targets, logits.shape[2], average="micro", ignore_index=PADDING)
    return {"accuracy": hits, "perplexity": found, "bits_per_character": found.log2(), "loss": found.log()}


def of_next_codes(learner: Any, data: Examples) -> dict[str, Tensor]:
    return of_codes(learner._module(data.inputs), data.targets)


def of_next_codes_last(learner: Any, data: Examples) -> dict[str, Tensor]:
    return of_codes(learner._module(data.inputs).mT, data.targets)


def of_masked(learner: Any, data: Examples) -> dict[str, Tensor]:
    codes, targets = mask_codes(data.inputs, own_draws(data.inputs, 3), 256)
    return of_codes(learner._module(codes), targets)


def of_translations(learner: Any, data: Examples) -> dict[str, Tensor]:
    inputs, outputs = shifted(data.targets, learner.parameters.target_vocabulary)
    found = of_codes(learner._module(data.inputs, inputs)[0], outputs)
    words = [
        [" ".join(str(code) for code in row if code != PADDING) for row in codes.tolist()]
        for codes in (learner._decode(trimmed(data.inputs)), data.targets)
    ]
    return {"accuracy": found["accuracy"], "loss": found["loss"], "error_rate": word_error_rate(*words)}


def nats(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of each text, (examples,)."""
    pairs = zip(logits.double(), targets, strict=True)
    return torch.stack([perplexity(row[None], own[None], ignore_index=PADDING).log() for row, own in pairs])


def of_each(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the accuracy in each text, (examples,)."""
    ways: Any = {"average": "micro", "multidim_average": "samplewise", "ignore_index": PADDING}
    return multiclass_accuracy(logits.mT, targets, logits.shape[2], **ways)


def of_answers(learner: Any, data: Examples) -> dict[str, Tensor]:
    inputs, targets = learner._task(data, own_draws(data.inputs, 2))
    logits = learner._module(inputs, learner._shifted(targets))
    loss = nats(logits, targets).mean()
    exact = multiclass_exact_match(logits.mT, targets, logits.shape[2], ignore_index=PADDING)
    text = targets.where(targets < 256, PADDING)
    accuracy = of_each(logits[..., :256], text).double().mean()
    return {"loss": loss, "perplexity": loss.exp(), "exact_match": exact, "accuracy": accuracy}


def of_tokens(learner: Any, data: Examples) -> dict[str, Tensor]:
    texts = _texts(data.inputs)
    tokens = learner._tokens(texts)
    logits, targets = learner.logits(tokens)[:, :-1], tokens[:, 1:]
    of_text, counts = nats(logits, targets), (targets != PADDING).sum(1)
    bits = of_text * counts / torch.tensor([len(text) for text in texts]) / math.log(2)
    loss = of_text.mean()
    accuracy = of_each(logits, targets).double().mean()
    return {"loss": loss, "perplexity": loss.exp(), "accuracy": accuracy, "bits_per_character": bits.mean()}


def of_numbers(learner: Any, data: Examples) -> dict[str, Tensor]:
    found = learner._module(data.inputs).double()
    wanted = data.targets.view_as(found).double()
    error = mean_squared_error(found.flatten(), wanted.flatten())
    return {"loss": error, "mse": error, "r2": r2_score(found, wanted)}


def of_forecasts(learner: Any, data: Examples) -> dict[str, Tensor]:
    found = learner._module(data.inputs).double().flatten()
    wanted = data.targets.double().flatten()
    error, absolute = mean_squared_error(found, wanted), mean_absolute_error(found, wanted)
    return {"loss": error, "mse": error, "mean_absolute_error": absolute, "r2": r2_score(found, wanted)}


def of_reconstructions(learner: Any, data: Examples) -> dict[str, Tensor]:
    found = mean_squared_error(learner._module(data.inputs).double(), data.inputs.double())
    return {"mse": found, "loss": found}


SMALL = {"width": 16, "layers": 1, "heads": 2}


@pytest.mark.parametrize(
    ("named", "data", "expected"),
    [
        ({"name": "mlp"}, lambda: digits(64), of_classes),
        ({"name": "gru", "task": "classify", "features": 8, "hidden": 16}, series, of_classes),
        ({"name": "transformer", "task": "classify", "classes": 3, **SMALL}, texts_of_classes, of_classes),
        ({"name": "bert", "classes": 3, **SMALL}, texts_of_classes, of_classes),
        ({"name": "hf_sequence_classifier", "base": "t5", "classes": 3}, texts_of_classes, of_classes),
        ({"name": "lstm", "hidden": 16}, ragged, of_next_codes_last),
        ({"name": "gpt", **SMALL}, windows, of_next_codes),
        ({"name": "bert", **SMALL}, windows, of_masked),
        ({"name": "seq2seq", "hidden": 16}, pronunciations, of_translations),
        ({"name": "transformer", **SMALL}, pronunciations, of_translations),
        ({"name": "t5", **SMALL}, windows, of_answers),
        ({"name": "t5", "task": "text", **SMALL}, answers, of_answers),
        ({"name": "hf_causal_lm", "base": "gpt2"}, ragged, of_tokens),
        ({"name": "mlp_regressor", "inputs": [64], "outputs": 3, "metrics": ["r2"]}, sums, of_numbers),
        ({"name": "gru", "task": "forecast", "features": 8, "hidden": 8, "outputs": 3}, sums_of_series, of_forecasts),
        ({"name": "autoencoder"}, lambda: digits(1, 8, 8), of_reconstructions),
        ({"name": "conv_autoencoder"}, lambda: digits(1, 8, 8), of_reconstructions),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, Mapping) else "",
)
def test_measures_are_torchmetrics_of_all_outputs_at_once(
    named: dict[str, Any], data: Callable[[], Examples], expected: Callable[[Any, Examples], dict[str, Tensor]]
) -> None:
    learner: Any = build_learner(Named(**named))
    examples = data()
    learner.check(examples)
    state = trained(learner, learner.init(1), examples, epochs=2, batch_size=16, optimizer=adam(0.01))
    found = learner.evaluate(state, examples).metrics
    with torch.no_grad():
        wanted = {name: float(value) for name, value in expected(learner, examples).items()}
    assert found == pytest.approx(wanted, rel=1e-6, abs=1e-6)
    # Where all were right, or none, little could be wrong.
    assert 0 < wanted.get("accuracy", 0.5) < 1
