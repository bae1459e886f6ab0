"""How classes lie over the clients of a partition."""

import numpy as np

from models.learner import Examples
from simulation.dirichlet import Counts
from simulation.partition import Partition, has_classes


def class_counts(examples: Examples, parts: Partition) -> tuple[Counts, Counts] | None:
    """Return the classes, int64 (classes,) ascending, and each client's examples of them, int64 (clients, classes).

    None where targets are no classes, such as those of text.
    """
    if not has_classes(examples):
        return None
    classes, numbers = np.unique(examples.targets.numpy(), return_inverse=True)
    counts = np.stack([np.bincount(numbers[rows], minlength=len(classes)) for rows in parts.rows])
    return classes, counts


def class_skew(counts: Counts) -> float:
    """Return the mean, over clients, of the total variation distance of their shares of the classes from those of all data.

    Args:
        counts: (clients, classes), at least one example a client.

    Returns:
        0 where all clients have the same shares, up to below 1.
    """
    shares = counts / counts.sum(axis=1, keepdims=True)
    pooled = counts.sum(axis=0) / counts.sum()
    return float(np.abs(shares - pooled).sum(axis=1).mean() / 2)
