"""How many clients fit into memory at a time when they are trained as one."""

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call

from models.gradient import GradientLearner
from models.random_stream import RandomStream

CPU_BYTES = 512 << 20
"""What a block may take in a CPU's memory: more clients than that gain nothing there."""

CUDA_PART = 0.5
"""Part of a GPU's free memory that a block may take."""

PARAMETER_COPIES = 7
"""Of each parameter: itself, its gradient, its change, up to three slots of an optimizer, and one in passing."""

ACTIVATION_COPIES = 4
"""Of each number that a layer puts out: itself, its gradient, and what a layer keeps for it."""


def most_clients(learner: GradientLearner, example: Tensor, batch_size: int, device: torch.device) -> int:
    """Estimate how many clients fit at a time; at least 1.

    Args:
        learner: What is trained.
        example: Input of one example, (1, ...).
        batch_size: Examples in a step of one client.
        device: Whose memory.
    """
    with RandomStream(0).drawing(), torch.device("meta"):
        module = learner.build()
    parameter_count = sum(parameter.numel() for parameter in module.parameters())
    numbers = PARAMETER_COPIES * parameter_count + ACTIVATION_COPIES * batch_size * _activation_count(module, example)
    budget = CPU_BYTES if device.type == "cpu" else CUDA_PART * torch.cuda.mem_get_info(device)[0]
    return max(1, int(budget // (4 * numbers)))


@torch.no_grad()
def _activation_count(module: nn.Module, example: Tensor) -> int:
    """Return how many numbers the layers put out for one example, with the patches that convolutions gather."""
    counts: list[int] = []

    def note(part: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        counts.append(output.numel())
        if isinstance(part, nn.Conv2d):
            counts.append(output.numel() // part.out_channels * part.in_channels * math.prod(part.kernel_size))

    for part in module.modules():
        if next(part.children(), None) is None:
            part.register_forward_hook(note)
    # Not on the meta device, for which torch works out shapes in Python and imports its compiler. The parameters' values do not matter.
    anything = {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in module.named_parameters()}
    functional_call(module, anything, (example.cpu(),))
    return sum(counts)
