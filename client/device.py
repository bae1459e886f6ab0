"""Where training happens: CUDA, MPS or the CPU."""

import torch

from wire.errors import ChoralError


def choose_device(wanted: str = "auto") -> torch.device:
    """Return a device: the one asked for, or the fastest that is there.

    Args:
        wanted: "auto", "cpu", "cuda", "cuda:N" or "mps".

    Raises:
        ChoralError: The device is unknown, or not in this machine.
    """
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ChoralError(f"Device: must be auto or a device of this machine, got {wanted!r}: {reason}") from error
    return device


def set_threads(count: int | None) -> int:
    """Use `count` threads for training on a CPU (torch's own choice if None), and return how many are used."""
    if count is not None:
        torch.set_num_threads(count)
    return torch.get_num_threads()
