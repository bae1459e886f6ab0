"""Sequences of different lengths in one array: the shorter ones end in padding."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from models.errors import DataError
from models.learner import PADDING


def padded(sequences: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    """Return sequences of codes, at least one, below each other, (sequences, longest), with `PADDING` at their ends."""
    whole = np.full((len(sequences), max(map(len, sequences))), PADDING, dtype=np.int64)
    for row, codes in enumerate(sequences):
        whole[row, : len(codes)] = codes
    return whole


def require_padded(subject: str, is_padding: npt.NDArray[np.bool_], mark: str) -> None:
    """Check that every sequence starts with a step that is none of padding, and that nothing but padding follows padding.

    Args:
        subject: The array, for errors.
        is_padding: Which values are padding, (examples, steps, ...).
        mark: How padding is written.

    Raises:
        DataError: It is not so; the row is named.
    """
    parts = is_padding.reshape(*is_padding.shape[:2], math.prod(is_padding.shape[2:]))  # (examples, steps, features)
    marked: npt.NDArray[np.int64] = parts.sum(axis=2)
    is_blank = marked == parts.shape[2]
    _refuse(subject, is_blank.all(axis=1), "sequence must have at least 1 step", f"{mark} alone")
    _refuse(subject, ((marked > 0) & ~is_blank).any(axis=1), f"{mark} must fill a step", "a part of one")
    is_followed = (is_blank[:, :-1] & ~is_blank[:, 1:]).any(axis=1)
    _refuse(subject, is_followed, f"{mark} must stand at the end of a sequence alone", "a value after it")


def _refuse(subject: str, is_wrong: npt.NDArray[Any], rule: str, found: str) -> None:
    if is_wrong.any():
        row = int(is_wrong.argmax())
        raise DataError(f"{subject}, row {row} (the first is 0): {rule}, got {found}. Mend or drop it.")
