"""What an engine may use of this machine, or of a cluster."""

import os
from typing import Annotated

import torch
from pydantic import Field

from client.device import choose_device
from wire.validation import Strict


class Resources(Strict):
    """What an engine may use. It decides how fast a simulation is, and on another kind of device the last bits of its numbers."""

    device: str = "auto"
    """Where clients train: "auto", "cpu", "cuda", "cuda:N" or "mps"."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Threads for training on a CPU, of each worker; None: one, or for `vectorized` one for each core."""
    workers: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Workers of `processes` and `ray`; None: one for each GPU, or for each core or, with Ray, each CPU of the cluster."""
    block: Annotated[int, Field(ge=1)] | None = None
    """Most clients that `vectorized` trains at a time; None: as many as fit into part of the memory."""
    ray_address: str | None = None
    """A Ray cluster to join, such as "auto" or "ray://head:10001"; None: one of the simulation's own."""

    def one_device(self) -> torch.device:
        """Return the device of an engine that needs one. Raises `ChoralError` for a device that is not there."""
        return choose_device(self.device)

    def devices(self) -> list[torch.device]:
        """Return the device of each worker of this machine. Raises `ChoralError` for a device that is not there."""
        device = choose_device(self.device)
        places = [device]
        if device.type == "cuda" and device.index is None:
            places = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
        elif device.type == "cpu":
            places = [device] * max(1, core_count() // (self.threads or 1))
        count = self.workers or len(places)
        return [places[worker % len(places)] for worker in range(count)]


def core_count() -> int:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
