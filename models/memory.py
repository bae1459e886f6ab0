"""How much memory a step of training by gradient descent takes, told from a few examples before any large batch is tried.

    step = parameters * (gradient + one in passing + slots of the optimizer + 3 for FedProx)  +  passes(batch)  +  batch

passes(n) is what autograd keeps of the forward pass, and two gradients of the largest tensor of that: one comes into a layer's backward
pass while another goes out. It is a part that all batches have and a part for each example: it is measured where two and four examples
take a step, and the line through both gives it for any n. Sequences are padded to the longest of their batch, so that the longest that
there are take those steps. FedProx, whose term has no part in them, keeps the parameters that it pulls to and the distance from them, and
passes a gradient of that.

Source of the measure: PyTorch's documentation, "Hooks for autograd saved tensors".
https://docs.pytorch.org/tutorials/intermediate/autograd_saved_tensors_hooks_tutorial.html
"""

from collections import Counter
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from models.learner import PADDING, Examples
from models.optimizers import build_optimizer
from wire.spec import LocalSpec, Named

FEW, SEVERAL = 2, 4
"""Examples that take a step to be measured; batch norm needs two."""


class KeptForBackward:
    """Counts the bytes of the tensors that autograd keeps while a context of `watching` is open.

    Attributes:
        most: Bytes that it kept at a time, at most.
        largest: Bytes of the largest tensor that it kept.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        """Leave out whatever shares memory with a known tensor, such as a parameter."""
        self.most = self.largest = 0
        self._bytes = 0
        self._places: Counter[int] = Counter()
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}

    def watching(self) -> torch.autograd.graph.saved_tensors_hooks:
        """Return the context."""
        return torch.autograd.graph.saved_tensors_hooks(lambda tensor: _Kept(self, tensor), lambda kept: kept.tensor)

    def count(self, tensor: Tensor, change: int) -> None:
        """Count one more or one less (1, -1) that keeps the memory of a tensor, which many may share."""
        storage = tensor.untyped_storage()
        if (place := storage.data_ptr()) in self._known:
            return
        self._places[place] += change
        if self._places[place] == max(0, change):
            self._bytes += change * storage.nbytes()
            self.most, self.largest = max(self.most, self._bytes), max(self.largest, storage.nbytes())


class _Kept:
    """One tensor, for as long as autograd keeps it."""

    def __init__(self, counter: KeptForBackward, tensor: Tensor) -> None:
        self.tensor = tensor
        self._counter = counter
        counter.count(tensor, 1)

    def __del__(self) -> None:
        self._counter.count(self.tensor, -1)


def step_bytes(trained: int, data: Examples, local: LocalSpec, passes: Callable[[Examples], int]) -> int:
    """Estimate the bytes that a step takes beside the model and the data.

    Args:
        trained: Bytes of all parameters that are trained.
        data: What batches are taken from, at least one example.
        local: Batch size and optimizer.
        passes: Takes a step, without FedProx, on a few examples and returns the bytes of its forward and backward pass.
    """
    count = min(local.batch_size, len(data))
    several = longest(data, min(SEVERAL, count))
    total = passes(several)
    if count > SEVERAL:
        total += max(0, total - passes(longest(data, FEW))) * (count - SEVERAL) // (SEVERAL - FEW)
    copies = 2 + 3 * bool(local.proximal_mu) + slots(local.optimizer)
    batch = (several.inputs.nbytes + several.targets.nbytes) * count // len(several)
    return int(trained * copies) + total + batch


def longest(data: Examples, count: int) -> Examples:
    """Return the examples with the least padding, the longest first."""
    entries = torch.zeros(len(data), dtype=torch.int64, device=data.inputs.device)
    for part in (data.inputs.reshape(len(data), -1), data.targets.reshape(len(data), -1)):
        entries += (~part.isnan() if part.is_floating_point() else part != PADDING).sum(1)
    return data.select(entries.argsort(descending=True, stable=True)[:count])


def slots(named: Named) -> float:
    """Return how many numbers an optimizer keeps for each parameter: as many as after a step on a small tensor, or as L-BFGS may."""
    parameter = torch.zeros(32, 32, requires_grad=True)
    optimizer = build_optimizer(named, [parameter])
    if isinstance(optimizer, torch.optim.LBFGS):
        # Its history of steps and of changes of the gradient, and the direction, the gradients and the place between them.
        return 2 * int(optimizer.param_groups[0]["history_size"]) + 4
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    kept = [value for value in optimizer.state[parameter].values() if isinstance(value, Tensor)]
    return sum(value.numel() for value in kept) / parameter.numel()
