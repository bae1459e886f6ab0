"""What a round's record says in numbers of those who took part."""

from collections import Counter

from server.inbox import weighted_means
from server.records import RoundRecord

REFUSED = "refused_"
"""Beginning of the names of counts among a round's metrics."""


def training_means(record: RoundRecord) -> dict[str, float]:
    """Return the means of what training measured."""
    return as_training(weighted_means([(part.example_count, part.metrics) for part in record.contributions]))


def as_training(metrics: dict[str, float]) -> dict[str, float]:
    """Return metrics of training, each named "train_...": a client's word is never taken for an evaluation."""
    return {f"train_{name.removeprefix('train_')}": mean for name, mean in metrics.items()}


def refusal_counts(record: RoundRecord) -> dict[str, float]:
    """Return how many contributions were refused for each reason, such as "refused_not_finite"."""
    counts = Counter(f"{REFUSED}{refusal.reason}" for refusal in record.refusals)
    return {name: float(count) for name, count in sorted(counts.items())}


def summary(reasons: Counter[str], silent_count: int) -> str:
    """Return, for instance, "2 not_finite, 1 no_answer"."""
    counts = Counter(reasons)
    counts["no_answer"] = silent_count
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()) if count) or "none refused"
