"""Sequences of many lengths side by side: shorter ones end in padding, codes in -1 and series in NaN."""

import torch
from torch import Tensor

from models import tasks
from models.errors import unsuited
from models.learner import PADDING


def padding(sequences: Tensor) -> Tensor:
    """Return which steps are padding, bool (batch, time).

    Args:
        sequences: int64 codes (batch, time), or float32 series (batch, time, features), a step of which is padding if all of it is NaN.
    """
    return sequences.isnan().all(dim=2) if sequences.is_floating_point() else sequences == PADDING


def lengths(sequences: Tensor) -> Tensor:
    """Return how many steps come before the padding of each sequence, int64 (batch,)."""
    return (~padding(sequences)).sum(dim=1)


def check_sequences(learner: str, what: str, codes: Tensor, count: int) -> None:
    """Check that `codes` are padded sequences, int64 (examples, time), of 1 or more codes from 0 to count - 1. Raises `DataError`.

    Errors call them `what`, such as "sources".
    """
    if codes.dim() != 2:
        rule = f"Learner {learner}: {what} must be sequences of codes, (time,) each"
        raise unsuited(rule, f"shape {tuple(codes.shape[1:])}")
    is_padding = codes == PADDING
    tasks.check_codes(learner, what, codes.masked_fill(is_padding, 0), count)
    _check_padding(learner, what, is_padding)


def check_series(learner: str, series: Tensor, width: int) -> None:
    """Check that `series` have `width` finite numbers in each step. Raises `DataError`."""
    if series.dtype != torch.float32 or series.dim() != 3 or series.shape[2] != width:
        found = f"{tuple(series.shape[1:])} {str(series.dtype).removeprefix('torch.')}"
        raise unsuited(f"Learner {learner}: examples must be series of shape (time, {width}) float32", found)
    is_padding = padding(series)
    require(learner, "steps must be finite, or all NaN behind the last one", series.isfinite().all(dim=2) | is_padding)
    _check_padding(learner, "series", is_padding)


def _check_padding(learner: str, what: str, is_padding: Tensor) -> None:
    """Check that sequences have a step each, and padding nowhere but at their end."""
    require(learner, f"{what} must have at least 1 step each", ~is_padding.all(dim=1, keepdim=True))
    require(learner, f"{what} must not go on behind padding", ~is_padding[:, :-1] | is_padding[:, 1:])


def require(learner: str, rule: str, holds: Tensor) -> None:
    """Raise `DataError` that names the first example of `holds`, bool (examples, ...), of which something is false."""
    if not holds.all():
        row = int((~holds).flatten(1).any(dim=1).nonzero()[0])
        raise unsuited(f"Learner {learner}: {rule}", f"others in example {row}")
