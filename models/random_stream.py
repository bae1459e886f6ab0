"""Random draws that torch makes from its global generators, such as dropout's, as a stream of their own (law L8)."""

import contextlib
import threading
from collections.abc import Iterator
from types import ModuleType

import torch
from torch import Tensor

_GLOBAL_GENERATORS = threading.Lock()
"""They are the process's: one thread at a time draws from them."""


class RandomStream:
    """What is drawn in its contexts, one after another, follows from the seed alone, whatever else this process draws."""

    def __init__(self, seed: int, device: torch.device | None = None) -> None:
        """Begin a stream.

        Args:
            seed: 0 to 2**63 - 1.
            device: Where draws are made beside the CPU, if somewhere else.
        """
        self._states = {torch.device("cpu"): torch.Generator().manual_seed(seed).get_state()}
        if device is not None and device.type not in ("cpu", "meta"):
            self._states[device] = torch.Generator(device).manual_seed(seed).get_state()

    @contextlib.contextmanager
    def drawing(self) -> Iterator[None]:
        """Let the global generators go on with this stream while the context is open, then put them back. Not to be nested."""
        with _GLOBAL_GENERATORS:
            before = {device: _get_state(device) for device in self._states}
            try:
                for device, state in self._states.items():
                    _set_state(device, state)
                yield
                self._states = {device: _get_state(device) for device in self._states}
            finally:
                for device, state in before.items():
                    _set_state(device, state)


def _get_state(device: torch.device) -> Tensor:
    state: Tensor = _backend(device).get_rng_state(*_which(device))
    return state


def _set_state(device: torch.device, state: Tensor) -> None:
    _backend(device).set_rng_state(state, *_which(device))


def _backend(device: torch.device) -> ModuleType:
    return torch.random if device.type == "cpu" else torch.get_device_module(device)


def _which(device: torch.device) -> tuple[torch.device, ...]:
    """Return the argument that says which of several devices is meant."""
    return (device,) if device.type == "cuda" else ()
