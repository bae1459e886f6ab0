"""What measuring a model on data gives."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Means of metrics over `example_count` examples."""

    example_count: int
    metrics: Mapping[str, float]
