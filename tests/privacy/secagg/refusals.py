"""Run specs that cannot be masked, each with what is said of it."""

from typing import Any

Refusal = tuple[dict[str, Any], str]

SPEC: dict[str, Any] = {
    "name": "masked",
    "learner": {"name": "mlp", "inputs": [1, 8, 8]},
    "rounds": 1,
    "cohort": {"size": 5},
    "privacy": {"secure_aggregation": {"corrupt_fraction": 0.0, "dropout_fraction": 0.2}},
}
"""One that can."""


def masked(secure: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Return a spec with parts of it changed."""
    rules = SPEC["privacy"]["secure_aggregation"] | (secure or {})
    return SPEC | {"privacy": {"secure_aggregation": rules}} | changes


REFUSALS: dict[str, Refusal] = {
    "too-few-for-one-sum": (
        masked(cohort={"size": 5, "quorum": 2}),
        "Run spec: cohort: every round that may close must have at least 3 clients, so that a sum is of minimum_cohort (3) "
        "honest ones, got 2. Raise cohort.quorum or cohort.size.",
    ),
    "a-fraction-of-whoever-is-there": (
        masked(cohort={"fraction": 0.5, "quorum": 4}),
        "Run spec: cohort.size must be given with privacy.secure_aggregation, because ring and graph depend on it, got fraction 0.5.",
    ),
    "one-client": (
        masked(cohort={"size": 5, "quorum": 1}),
        "Run spec: cohort: a round of 1 clients cannot be masked. "
        "Secure aggregation: client_count must be 2 to 100000, got 1. Change it for all parties.",
    ),
    "corrupt-beside-the-honest": (
        masked({"corrupt_fraction": 0.34, "dropout_fraction": 0.0}, cohort={"size": 3}),
        "Run spec: cohort: every round that may close must have at least 4 clients, so that a sum is of minimum_cohort (3) "
        "honest ones, got 3. Raise cohort.quorum or cohort.size.",
    ),
    "no-threshold": (
        masked({"corrupt_fraction": 0.4, "dropout_fraction": 0.4}),
        "Run spec: cohort: a round of 5 clients cannot be masked. Secure aggregation of 5 clients: threshold must be at "
        "least 4, so that 2t > n + a with 2 corrupt, and at most 3, so that t <= n - D with 2 missing, got none. "
        "Lower the corrupt or the dropout fraction, so that corrupt + 2 * dropout stays below 1.",
    ),
    "weights-beyond-the-ring": (
        masked({"ring_bits": 16, "weight_cap": 10_000}, cohort={"size": 5, "over_selection": 1.4}),
        "Run spec: privacy.secure_aggregation: clients * weight_cap must be below 2**ring_bits (2**16), got 7 * 10000.",
    ),
    "quality-below-the-cap": (
        masked({"weight_cap": 63}, weight_by="quality"),
        "Run spec: privacy.secure_aggregation.weight_cap must be at least 64 times a client's examples with weight_by quality, got 63.",
    ),
    "stop-by-a-metric-that-is-not-summed": (
        masked(stop_when={"metric": "f1", "at_least": 0.9}),
        "Run spec: stop_when.metric must be one of privacy.secure_aggregation.metrics (loss, accuracy), got f1.",
    ),
    "stop-without-any-metric": (
        masked({"metrics": []}, stop_when={"metric": "accuracy", "at_least": 0.9}),
        "Run spec: stop_when.metric must be one of privacy.secure_aggregation.metrics (none), got accuracy.",
    ),
    "metrics-named-twice": (
        masked({"metrics": ["loss", "loss"]}),
        "Run spec: privacy.secure_aggregation: metrics must be named once each, got loss, loss.",
    ),
}
