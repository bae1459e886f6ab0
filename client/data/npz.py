"""NumPy archives: one array of inputs and one of targets, as they are."""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from client.data.fields import reason, shown
from client.data.keys import Keys, require_key
from client.data.options import NpzOptions
from client.data.paths import require_file
from client.data.sequences import require_padded
from models.errors import DataError
from models.learner import PADDING, Examples

Array = npt.NDArray[Any]

_ARCHIVE_ERRORS = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    MemoryError,
    RuntimeError,  # encrypted, or compressed in a way that Python does not know
    zipfile.BadZipFile,
    zlib.error,
)


def load_npz(path: Path, options: NpzOptions) -> Examples:
    """Read two arrays of a NumPy archive. Objects are refused, so nothing in the file can run.

    Returns:
        Inputs float32, or int64 with `codes`, in the shape they have. Targets int64 in the shape they have; with `values` float32
        and (examples, 1) where they have one axis; with `unlabelled` int64 (examples, 0).

    Raises:
        DataError: The file is no such archive, an array is missing or of another kind, the lengths differ, or a value
            cannot be used.
    """
    require_file("NPZ file", path)
    subject = f"NPZ file {path}"
    inputs, targets = _arrays(path, options)
    if inputs.ndim < 2 or targets.ndim < 1:
        raise DataError(
            f"{subject}: inputs must have the axes (examples, ...) and targets (examples,) or more, "
            f"got {inputs.shape} and {targets.shape}. Reshape them."
        )
    if len(inputs) != len(targets) or len(inputs) == 0:
        raise DataError(
            f"{subject}: inputs and targets must be equally many and at least 1, got {len(inputs)} and {len(targets)}. "
            "Save one target for each input."
        )
    if options.values and targets.ndim == 1:
        targets = targets[:, None]
    as_targets = _as_floats if options.values else _as_integers
    as_inputs = _as_integers if options.codes else _as_floats
    has_sequences = options.ragged and not options.unlabelled
    return Examples(
        torch.from_numpy(as_inputs(f"{subject}, array {options.inputs!r}", inputs, options.ragged)),
        torch.from_numpy(as_targets(f"{subject}, array {options.targets!r}", targets, has_sequences)),
    )


def npz_keys(path: Path, options: NpzOptions) -> Keys:
    """Return the natural key of each example that `load_npz` reads, (examples,): int64 or text.

    Raises:
        DataError: There is no such array, or it does not hold one integer or text for each example.
    """
    require_file("NPZ file", path)
    subject = f"NPZ file {path}"
    name = require_key(subject, options.key)
    # Targets take less memory.
    examples, keys = _read(path, options.inputs if options.unlabelled else options.targets, name)
    if keys.shape != examples.shape[:1] or keys.dtype.kind not in "iuU":
        raise DataError(
            f"{subject}, array {name!r}: key must hold one integer or text for each of {len(examples)} examples, "
            f"got {keys.dtype} of shape {keys.shape}. Save it so."
        )
    return keys if keys.dtype.kind == "U" else _as_integers(f"{subject}, array {name!r}", keys)


def _arrays(path: Path, options: NpzOptions) -> tuple[Array, Array]:
    """Return inputs and targets; without labels, targets of no columns."""
    if options.unlabelled:
        (inputs,) = _read(path, options.inputs)
        return inputs, np.empty((*inputs.shape[:1], 0), dtype=np.int64)
    inputs, targets = _read(path, options.inputs, options.targets)
    return inputs, targets


def _read(path: Path, *names: str) -> list[Array]:
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, Mapping):
                raise DataError(
                    f"NPZ file {path}: file must be an archive, got a single array. Save it with numpy.savez."
                )
            for name in names:
                if name not in archive:
                    raise DataError(
                        f"NPZ file {path}: arrays must include {name!r}, got {', '.join(archive) or 'none'}. "
                        "Name them with inputs=, targets= and key=."
                    )
            return [archive[name] for name in names]
    except _ARCHIVE_ERRORS as error:
        raise DataError(
            f"NPZ file {path}: file must be a NumPy archive without objects, got {reason(error)}. "
            "Save numeric arrays with numpy.savez."
        ) from error


def _as_floats(subject: str, values: Array, is_ragged: bool = False) -> npt.NDArray[np.float32]:
    _require_numbers(subject, values)
    with np.errstate(over="ignore"):
        floats = np.ascontiguousarray(values, dtype=np.float32)
    is_wrong = ~np.isfinite(floats)
    if is_ragged:
        require_padded(subject, np.isnan(floats), "NaN")
        is_wrong &= ~np.isnan(floats)
    _refuse(subject, values, is_wrong, "finite in float32")
    return floats


def _as_integers(subject: str, values: Array, is_ragged: bool = False) -> npt.NDArray[np.int64]:
    _require_numbers(subject, values)
    if values.dtype.kind == "f":
        is_whole = (values == np.floor(values)) & (np.abs(values) < 2.0**63)
        _refuse(subject, values, ~is_whole, "whole numbers within 64 bits")
    if values.dtype.kind == "u":
        _refuse(subject, values, values > np.iinfo(np.int64).max, "whole numbers within 64 bits")
    integers = np.ascontiguousarray(values, dtype=np.int64)
    if is_ragged and values.ndim > 1:  # not one class an example
        require_padded(subject, integers == PADDING, str(PADDING))
    return integers


def _require_numbers(subject: str, values: Array) -> None:
    if values.dtype.kind not in "fiub":
        raise DataError(f"{subject}: values must be real numbers, got {values.dtype}. Save the array as numbers.")


def _refuse(subject: str, values: Array, is_wrong: npt.NDArray[np.bool_], rule: str) -> None:
    rows, *rest = np.nonzero(is_wrong)
    if len(rows):
        value = values[(rows[0], *(axis[0] for axis in rest))].item()
        raise DataError(
            f"{subject}, row {rows[0]} (the first is 0): values must be {rule}, got {shown(value)}. Mend or drop it."
        )
