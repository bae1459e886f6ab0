"""The engines of a simulation by name, and which of them to take."""

import os
from collections.abc import Mapping
from typing import Annotated, Literal, Protocol

import torch
from pydantic import Field

from client.data import LocalData
from client.device import choose_device
from models import build_learner
from simulation.cohort import SimulatedCohort
from simulation.processes import ProcessesCohort
from simulation.reasons import reason_against
from simulation.serial import SerialCohort
from simulation.vectorized import VectorizedCohort
from wire.spec import RunSpec
from wire.tensors import Layout
from wire.validation import Strict

EngineName = Literal["auto", "serial", "vectorized", "processes", "ray"]

VECTORIZED_PARAMETERS = 500_000
"""Largest model that `auto` gives to the vectorized engine on a CPU, where a larger one keeps the cores busy by itself."""


class Resources(Strict):
    """What an engine may use. It decides how fast a simulation is, and on another kind of device the last bits of its numbers."""

    device: str = "auto"
    """Where clients train: "auto", "cpu", "cuda", "cuda:N" or "mps"."""
    workers: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Workers of `processes` and `ray`; None: one for each GPU, or for each core or, with Ray, each CPU of the cluster."""
    block: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Most clients that `vectorized` trains at a time; "auto": as many as fit into part of the memory."""
    ray_address: str | None = None
    """A Ray cluster to join, such as "auto" or "ray://head:10001"; None: one of the simulation's own."""

    def devices(self) -> list[torch.device]:
        """Return the device of each worker of this machine. Raises `ChoralError` for a device that is not there."""
        device = choose_device(self.device)
        places = [device]
        if device.type == "cuda" and device.index is None:
            places = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
        elif device.type == "cpu":
            places = [device] * max(1, len(os.sched_getaffinity(0)) // torch.get_num_threads())
        count = self.workers or len(places)
        return [places[worker % len(places)] for worker in range(count)]


class Build(Protocol):
    """Makes an engine."""

    def __call__(self, spec: RunSpec, sites: Mapping[str, LocalData], resources: Resources) -> SimulatedCohort:
        """Make the engine for a run over these clients. Raises as the engine does."""


def _serial(spec: RunSpec, sites: Mapping[str, LocalData], resources: Resources) -> SimulatedCohort:
    return SerialCohort(spec, sites, choose_device(resources.device))


def _vectorized(spec: RunSpec, sites: Mapping[str, LocalData], resources: Resources) -> SimulatedCohort:
    block = None if resources.block == "auto" else resources.block
    return VectorizedCohort(spec, sites, choose_device(resources.device), block)


def _processes(spec: RunSpec, sites: Mapping[str, LocalData], resources: Resources) -> SimulatedCohort:
    return ProcessesCohort(spec, sites, resources.devices())


def _ray(spec: RunSpec, sites: Mapping[str, LocalData], resources: Resources) -> SimulatedCohort:
    # Here, because Ray is an extra, and takes two seconds to import.
    from simulation.on_ray import RayCohort

    return RayCohort(spec, sites, resources.ray_address, resources.workers, resources.device)


ENGINES: Mapping[str, Build] = {
    "serial": _serial,
    "vectorized": _vectorized,
    "processes": _processes,
    "ray": _ray,
}


def choose(name: EngineName, spec: RunSpec, resources: Resources) -> tuple[str, str]:
    """Return the engine to take and why.

    Raises:
        LearnerError: The zoo cannot build the learner.
        ChoralError: The device is not in this machine.
    """
    if name != "auto":
        return name, "as asked for"
    device, devices = choose_device(resources.device), resources.devices()
    reason = reason_against(spec)
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
