"""Where training happens: CUDA, MPS or the CPU."""

import os

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
            _compute_alike()
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ChoralError(f"Device: must be auto or a device of this machine, got {wanted!r}: {reason}") from error
    if device.type == "cuda":
        _compute_alike()
    return device


def _compute_alike() -> None:
    """Let this process compute the same each time on its GPU, as every law of exactness asks, and float32 in full float32.

    Learners with `precision: bfloat16` may use kernels of attention that add in another order each time.
    """
    # Read when cuBLAS is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.allow_tf32 = False
    # Warns of an operation that has no such kernel. (torch.use_deterministic_algorithms would first import a compiler.)
    torch.set_deterministic_debug_mode("warn")
    # Deterministic algorithms would else fill all new memory with NaN before it is written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cuda.enable_mem_efficient_sdp(False)


def set_threads(count: int | None) -> int:
    """Use `count` threads for training on a CPU (torch's own choice if None), and return how many are used."""
    if count is not None:
        torch.set_num_threads(count)
    return torch.get_num_threads()
