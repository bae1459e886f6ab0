"""What learners are trained to do: losses, reported measures and the checks of data that belong to them.

Accuracies are plain torch, because the vectorized engine takes them of many clients in one vmap, in which torchmetrics' checks cannot run,
and because torchmetrics takes seconds to import. A test compares them with its own.
"""

from collections.abc import Mapping
from math import log
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from models.errors import unsuited
from models.learner import PADDING, Examples


def classification_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy, nats, of logits (batch, classes) and int64 classes (batch,)."""
    return functional.cross_entropy(outputs, targets)


def classification_measures(outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
    """Return the accuracy of logits (batch, classes), 0 to 1."""
    return {"accuracy": (outputs.argmax(dim=1) == targets).double().mean()}


def code_loss(
    logits: Tensor, targets: Tensor, reduction: Literal["mean", "none"] = "mean", label_smoothing: float = 0.0
) -> Tensor:
    """Return the mean cross-entropy, nats, of logits (..., codes) and int64 codes (...) that are no padding.

    Args:
        logits: Unnormalised, with the codes on the last axis.
        targets: A code for each, or PADDING.
        reduction: "mean", or "none" for the losses in the shape of the targets.
        label_smoothing: Part of each target that is spread over all codes.
    """
    # One axis before the codes: torch's kernel for more adds in another order each time on a GPU.
    losses = functional.cross_entropy(
        logits.flatten(0, -2),
        targets.flatten(),
        ignore_index=PADDING,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )
    return losses.view_as(targets) if reduction == "none" else losses


def next_code_measures(outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
    """Return accuracy and bits per character of logits (batch, codes, time) and codes (batch, time) that are no padding."""
    bits = code_loss(outputs.movedim(1, -1), targets) / log(2)
    hits = (outputs.argmax(dim=1) == targets).double().sum()
    return {"accuracy": hits / (targets != PADDING).sum(), "bits_per_character": bits}


def check_examples(data: Examples) -> None:
    """Check that there is something to train on. Raises `DataError`."""
    if not len(data):
        raise unsuited("Training data: batches must have at least 1 examples", "0")


def check_features(learner: str, data: Examples, shape: tuple[int, ...]) -> None:
    """Check that inputs are float32 and of `shape`. Raises `DataError`."""
    if data.inputs.dtype != torch.float32 or data.example_shape != shape:
        found = f"{data.example_shape} {str(data.inputs.dtype).removeprefix('torch.')}"
        raise unsuited(f"Learner {learner}: examples must have shape {shape} float32", found)


def check_bystanders(learner: str, data: Examples) -> None:
    """Check targets that a learner does not look at: classes, a row of numbers, or none. Raises `DataError`."""
    if data.targets.dim() > 2 or len(data.targets) != len(data):
        rule = f"Learner {learner}: targets must be numbers, a row of them or none, for each of {len(data)} examples"
        raise unsuited(rule, f"shape {tuple(data.targets.shape)}")


def check_classes(learner: str, data: Examples, count: int) -> None:
    """Check that each example has one class, int64 from 0 to count - 1. Raises `DataError`."""
    if data.targets.shape != (len(data),):
        raise unsuited(f"Learner {learner}: classes must be one an example", f"shape {tuple(data.targets.shape)}")
    check_codes(learner, "classes", data.targets, count)


def check_values(learner: str, data: Examples, count: int) -> None:
    """Check that each example has `count` finite numbers to predict, float32; a single one needs no axis. Raises `DataError`."""
    shapes = [(len(data), count), (len(data),)][: 2 if count == 1 else 1]
    if data.targets.dtype != torch.float32 or data.targets.shape not in shapes:
        found = f"shape {tuple(data.targets.shape)} {str(data.targets.dtype).removeprefix('torch.')}"
        raise unsuited(f"Learner {learner}: targets must be {count} float32 an example", found)
    if not (is_finite := data.targets.isfinite()).all():
        row = int(is_finite.logical_not().nonzero()[0, 0])
        raise unsuited(f"Learner {learner}: targets must be finite", f"another one in example {row}")


def check_codes(learner: str, what: str, codes: Tensor, count: int) -> None:
    """Check that `codes` are int64 from 0 to count - 1. Raises `DataError`, naming the first example that is not."""
    if codes.dtype != torch.int64:
        raise unsuited(f"Learner {learner}: {what} must be int64", str(codes.dtype).removeprefix("torch."))
    wrong = ((codes < 0) | (codes >= count)).flatten(1).any(1) if codes.dim() > 1 else (codes < 0) | (codes >= count)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        value = codes[row].flatten()
        bad = int(value[(value < 0) | (value >= count)][0])
        raise unsuited(f"Learner {learner}: {what} must be 0 to {count - 1}", f"{bad} in example {row}")
