"""Parts of local data: what a client trains on and what it holds out for evaluation."""

from dataclasses import dataclass

import torch

from models.errors import DataError
from models.learner import Examples
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
    """Deal `examples` at random into two parts: the same parts for the same count, fraction and seed.

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
    held_out_count = max(1, round(count * held_out_fraction)) if held_out_fraction else 0
    if held_out_count >= count:
        raise DataError(
            f"Data of kind {kind}: held_out_fraction must leave at least 1 example to train on, "
            f"got {held_out_fraction} of {count}. Lower it, or add examples."
        )
    order = torch.randperm(count, generator=derive_generator(seed, "hold-out"))
    return LocalData(kind, examples.select(order[held_out_count:]), examples.select(order[:held_out_count]))
