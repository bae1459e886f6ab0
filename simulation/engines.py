"""The engines of a simulation by name, and which of them to take."""

from collections.abc import Callable, Mapping
from typing import Literal

from client.data import LocalData
from models import build_learner
from simulation.reasons import reason_against
from simulation.serial import SerialCohort
from simulation.vectorized import VectorizedCohort
from wire.spec import RunSpec
from wire.tensors import Layout

EngineName = Literal["auto", "serial", "vectorized"]

ENGINES: Mapping[str, Callable[[RunSpec, Mapping[str, LocalData]], SerialCohort | VectorizedCohort]] = {
    "serial": SerialCohort,
    "vectorized": VectorizedCohort,
}

VECTORIZED_PARAMETERS = 500_000
"""Largest model that `auto` gives to the vectorized engine: on a CPU, a larger one keeps the cores busy by itself."""


def choose(name: EngineName, spec: RunSpec) -> tuple[str, str]:
    """Return the engine to take and why.

    Raises:
        LearnerError: The zoo cannot build the learner.
    """
    if name != "auto":
        return name, "as asked for"
    if reason := reason_against(spec):
        return "serial", reason
    count = Layout.of(build_learner(spec.learner, "meta").init(0)).size
    if count > VECTORIZED_PARAMETERS:
        return "serial", f"with {count:,} parameters, a client keeps the cores busy by itself"
    return "vectorized", f"with {count:,} parameters, many clients at a time are faster than one after another"
