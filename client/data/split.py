"""Parts of local data: what a client trains on and what it holds out for evaluation."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.errors import DataError
from models.learner import Examples, Timeline
from wire.seeds import derive_generator


@dataclass(frozen=True, slots=True)
class LocalData:
    """The data of one client.

    Attributes:
        kind: What it was read from, such as "csv"; "memory" for examples that came from no source.
        training: At least one example.
        held_out: Examples that are only evaluated on; may be none.
    """

    kind: str
    training: Examples
    held_out: Examples


def split(examples: Examples, held_out_fraction: float, seed: int, kind: str = "memory") -> LocalData:
    """Deal `examples` into two parts: the same parts for the same examples, fraction and seed.

    At random; but of windows with a timeline, the last ones of each series are held out, and windows whose targets overlap theirs are
    dropped. A series too short for both parts is only trained on.

    Args:
        examples: At least one; left unchanged.
        held_out_fraction: Part to hold out, 0 to below 1, rounded to whole examples, at least one if it is above 0.
        seed: Seed of the permutation.
        kind: What the examples were read from.

    Raises:
        DataError: The fraction is out of range, or no example would stay to train on. Nothing was changed.
    """
    if not 0 <= held_out_fraction < 1:
        raise DataError(
            f"Data of kind {kind}: held_out_fraction must be at least 0 and below 1, got {held_out_fraction}. "
            "Give the part to hold out, such as 0.2."
        )
    count = len(examples)
    if examples.timeline is None:
        order = torch.randperm(count, generator=derive_generator(seed, "hold-out"))
        held_out_count = _part(count, held_out_fraction)
        training, held_out = order[held_out_count:], order[:held_out_count]
    else:
        training, held_out = _in_time(examples.timeline, held_out_fraction)
    if len(training) == 0 or (held_out_fraction and len(held_out) == 0):
        raise DataError(
            f"Data of kind {kind}: held_out_fraction must leave at least 1 example to train on, "
            f"got {held_out_fraction} of {count}. Lower it, or add examples."
        )
    return LocalData(kind, _chosen(examples, training), _chosen(examples, held_out))


def _in_time(timeline: Timeline, held_out_fraction: float) -> tuple[Tensor, Tensor]:
    """Return the windows to train on and those to hold out, ascending: no target of one part is a target of the other."""
    series, steps = timeline.series.numpy(), timeline.steps.numpy()
    order = np.lexsort((steps, series))
    is_training, is_held_out = np.ones(len(order), dtype=bool), np.zeros(len(order), dtype=bool)
    for rows in np.split(order, np.flatnonzero(np.diff(series[order])) + 1):
        last = rows[len(rows) - _part(len(rows), held_out_fraction) :]
        is_early = steps[rows] <= steps[last].min(initial=np.iinfo(np.int64).max) - timeline.horizon
        if is_early.any():
            is_training[rows], is_held_out[last] = is_early, True
    return torch.from_numpy(np.flatnonzero(is_training)), torch.from_numpy(np.flatnonzero(is_held_out))


def _part(count: int, fraction: float) -> int:
    return max(1, round(count * fraction)) if fraction else 0


def _chosen(examples: Examples, rows: Tensor) -> Examples:
    return Examples(examples.inputs[rows], examples.targets[rows])
