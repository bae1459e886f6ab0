"""What of a run spec cannot be had together with secure aggregation, said before the run."""

import math

from privacy.errors import SecureAggregationError
from privacy.secagg.head import Head
from privacy.secagg.parameters import parameters_for
from privacy.secagg.session import size_problem
from wire.errors import SpecError
from wire.secure import SecureAggregationSpec
from wire.spec import RunSpec

KEY = "privacy.secure_aggregation"

QUALITY_CAP = 64
"""Least weight cap with weights by quality, which are multiples of 1/64 example."""


def check_masking(spec: RunSpec) -> None:
    """Check that every round of a run, from the smallest that may close to the largest that may be asked, can be masked.

    Raises:
        SpecError: It cannot; the message names the key, the rule and the value.
    """
    if (secure := spec.secure) is None:
        return
    if spec.cohort.size is None:
        raise SpecError(
            "Run spec: cohort.size must be given with privacy.secure_aggregation, because ring and graph depend on it, got "
            f"fraction {spec.cohort.fraction:g}."
        )
    asked = math.ceil(spec.cohort.size * spec.cohort.over_selection)
    _check_count(spec.cohort.fewest, secure)
    for count in range(spec.cohort.fewest, min(asked, spec.cohort.fewest + 128) + 1):
        _check_count(count, secure)
    problem = Head(secure.ring_bits, asked, secure.weight_cap, tuple(secure.metrics)).problem
    if problem := problem or size_problem(secure, asked):
        raise SpecError(f"Run spec: privacy.secure_aggregation: {problem}.", KEY)
    if spec.weight_by == "quality" and secure.weight_cap < QUALITY_CAP:
        raise SpecError(
            f"Run spec: privacy.secure_aggregation.weight_cap must be at least {QUALITY_CAP} times a client's examples with "
            f"weight_by quality, got {secure.weight_cap}.",
            f"{KEY}.weight_cap",
        )
    goal = spec.stop_when
    if goal is not None and spec.evaluate.on == "clients" and goal.metric not in secure.metrics:
        known = ", ".join(secure.metrics) or "none"
        raise SpecError(
            f"Run spec: stop_when.metric must be one of privacy.secure_aggregation.metrics ({known}), got {goal.metric}.",
            "stop_when.metric",
        )


def _check_count(count: int, secure: SecureAggregationSpec) -> None:
    try:
        graph = parameters_for(count, secure.corrupt_ppm, secure.dropout_ppm)
    except SecureAggregationError as error:
        raise SpecError(f"Run spec: cohort: a round of {count} clients cannot be masked. {error}", "cohort") from error
    if (fewest := graph.fewest_survivors(secure.minimum_cohort)) > count:
        raise SpecError(
            f"Run spec: cohort: every round that may close must have at least {fewest} clients, so that a sum is of "
            f"minimum_cohort ({secure.minimum_cohort}) honest ones, got {count}. Raise cohort.quorum or cohort.size.",
            "cohort",
        )
