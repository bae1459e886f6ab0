"""The engines of a simulation by name, and which of them to take."""

from collections.abc import Mapping
from typing import Literal

from client.data import LocalData
from models import build_learner
from simulation.cohort import SimulatedCohort
from simulation.interrupt import interruptible
from simulation.processes import ProcessesCohort
from simulation.reasons import reason_against
from simulation.resources import Resources
from simulation.serial import SerialCohort
from simulation.vectorized import VectorizedCohort
from wire.spec import RunSpec
from wire.tensors import Layout

EngineName = Literal["auto", "serial", "vectorized", "processes", "ray"]

VECTORIZED_PARAMETERS = 500_000
"""Largest model that `auto` gives to the vectorized engine on a CPU, where a larger one keeps the cores busy by itself."""


def build(engine: str, spec: RunSpec, sites: Mapping[str, LocalData], resources: Resources) -> SimulatedCohort:
    """Build the engine of that name for a run over these clients. Raises as the engine does."""
    match engine:
        case "serial":
            return SerialCohort(spec, sites, resources)
        case "vectorized":
            return VectorizedCohort(spec, sites, resources)
        case "processes":
            return ProcessesCohort(spec, sites, resources)
        case "ray":
            with interruptible():
                # Here, because Ray is an extra, and takes two seconds to import.
                from simulation.on_ray import RayCohort

                return RayCohort(spec, sites, resources)
    raise AssertionError(engine)


def choose(name: EngineName, spec: RunSpec, resources: Resources, found: str = "") -> tuple[str, str]:
    """Return the engine to take and why.

    Args:
        name: What was asked for.
        spec: The run.
        resources: What the engine may use.
        found: Why the vectorized engine cannot be taken, if that is known.

    Raises:
        LearnerError: The zoo cannot build the learner.
        ChoralError: The device is not in this machine.
    """
    if name != "auto":
        return name, "as asked for"
    device, devices = resources.one_device(), resources.devices()
    reason = found or reason_against(spec, device)
    if not reason:
        count = Layout.of(build_learner(spec.learner, "meta").init(0)).size
        if device.type != "cpu":
            return "vectorized", f"on {device.type}, many clients at a time are faster than one after another"
        if count <= VECTORIZED_PARAMETERS:
            return "vectorized", f"with {count:,} parameters, many clients at a time are faster than one after another"
        reason = f"with {count:,} parameters, a client keeps a core busy by itself"
    if len(devices) > 1:
        return "processes", f"{reason}, and there is room for {len(devices)} workers"
    return "serial", reason
