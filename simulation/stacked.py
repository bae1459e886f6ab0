"""Many clients' models as one: parameters stacked along a first axis, each layer called once for the step of all of them.

A client's loss depends on its own slice alone, so the gradient of the losses' sum holds each client's own gradient. An optimizer whose
arithmetic is element by element then steps all clients at once: torch.optim's own code, on the stacked tensors.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from models.gradient import EVALUATION_BATCH_SIZE, GradientLearner
from models.learner import Examples
from models.optimizers import Optimizer, build_optimizer
from models.random_stream import RandomStream
from simulation.layers import MaskedDropout, StackedModule, memory_order
from simulation.patches import PatchConvolution
from simulation.plan import Plan
from wire.spec import LocalSpec
from wire.tensors import State

ELEMENTWISE = frozenset(
    {"adadelta", "adagrad", "adam", "adamax", "adamw", "asgd", "nadam", "radam", "rmsprop", "rprop", "sgd"}
)
"""Optimizers that treat each number by itself, and all that they step alike."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What a block of clients brings, in the order of its plan.

    Attributes:
        changes: float32 (clients, parameters), each row in the order of the layout.
        losses: Mean training loss of the last epoch, float64 (clients,).
    """

    changes: Tensor
    losses: Tensor


class StackedLearner:
    """A learner's module and loss, for many clients at once. Not safe for concurrent use."""

    def __init__(self, learner: GradientLearner, device: torch.device) -> None:
        self._device = device
        with RandomStream(0, device).drawing(), device:
            self._plain = learner.build().to(device).eval()
            self._stacked = StackedModule(learner.build().to(device).train())
        self._module = self._stacked.module
        self._names = [name for name, _ in self._module.named_parameters()]
        self._dropouts = self._stacked.dropouts
        self._mask_shapes: dict[str, tuple[int, ...]] = {}
        self._losses = learner.losses
        self._losses_and_gradient = learner.losses_and_gradient
        self._measures = vmap(lambda output, target: dict(learner.measure(output[None], target[None])))

    @torch.no_grad()
    def measure(self, state: State, data: Examples, report: Callable[[], None]) -> dict[str, Tensor]:
        """Return the loss and the reported measures of each example, float64 (examples,). `report` as in `fit`, called once a batch."""
        parts: dict[str, list[Tensor]] = {}
        for start in range(0, len(data), EVALUATION_BATCH_SIZE):
            report()
            rows = slice(start, start + EVALUATION_BATCH_SIZE)
            inputs, targets = data.inputs[rows], data.targets[rows]
            outputs = functional_call(self._plain, dict(state), (inputs,))
            values = {"loss": self._losses(outputs, targets), **self._measures(outputs, targets)}
            for name, value in values.items():
                parts.setdefault(name, []).append(value.double())
        return {name: torch.cat(values) for name, values in parts.items()}

    def fit(self, state: State, data: Examples, plan: Plan, local: LocalSpec, report: Callable[[], None]) -> Trained:
        """Train the clients of a plan, each from `state`.

        Args:
            state: float32 tensors on the device, left unchanged.
            data: The examples that the plan's rows count.
            plan: Who takes what in which step.
            local: Batch size, optimizer and the terms beside the loss.
            report: Called once a step; raises `TrainingStopped` to end the fit.
        """
        # Without autograd's records, and where nobody needs autograd at all, without its bookkeeping for each call: a tenth of small steps.
        with torch.inference_mode(self._stacked.is_by_hand), torch.no_grad():
            return self._fit(state, data, plan, local, report)

    def _fit(self, state: State, data: Examples, plan: Plan, local: LocalSpec, report: Callable[[], None]) -> Trained:
        stacks = [self._stack(name, state[name], len(plan.sizes)) for name in self._names]
        starts = [state[name] for name in self._names]
        draws = (
            [torch.Generator(self._device).manual_seed(seed) for seed in plan.dropout_seeds] if self._dropouts else []
        )
        rows = torch.from_numpy(plan.rows).to(self._device)
        totals = torch.zeros(len(plan.sizes), dtype=torch.float64, device=self._device)
        leaves: list[Tensor] = []
        optimizer: Optimizer | None = None
        for step, (weights, shares) in enumerate(_weights(plan, self._device)):
            report()
            count, width = weights.shape
            if optimizer is None or count != len(leaves[0]):
                narrower = [stack[:count] for stack in stacks]
                optimizer = _carried(optimizer, leaves, build_optimizer(local.optimizer, narrower), narrower)
                leaves = narrower
            batch = data.select(rows[step, :count, :width].flatten())
            inputs = batch.inputs.view(count, width, *batch.inputs.shape[1:])
            masks = self._masks(plan, step, inputs, draws)
            outputs, back = self._stacked({**dict(zip(self._names, leaves, strict=True)), **masks}, inputs)
            losses, grad = self._losses_and_gradient(outputs.flatten(0, 1), batch.targets, weights.flatten())
            grads = back(grad.view(outputs.shape))
            _descend(optimizer, leaves, [grads[name] for name in self._names], starts, local)
            totals[:count] += (losses.view(count, width) * weights).sum(1) * shares
        return Trained(_changes(stacks, starts), totals)

    def _stack(self, name: str, tensor: Tensor, count: int) -> Tensor:
        """Return `count` copies, (clients, ...); filters lie in memory as the convolution wants them."""
        owner = self._module.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, PatchConvolution) and tensor.dim() == 4:
            order = memory_order(self._device)
            copies = (
                tensor.permute(order).expand(count, *[-1] * len(order)).clone(memory_format=torch.contiguous_format)
            )
            return copies.permute(0, *(1 + order.index(axis) for axis in range(len(order))))
        return tensor.expand(count, *tensor.shape).clone(memory_format=torch.contiguous_format)

    def _masks(self, plan: Plan, step: int, inputs: Tensor, draws: Sequence[torch.Generator]) -> dict[str, Tensor]:
        """Draw what each client drops in a step, from a generator of its own."""
        if not self._dropouts:
            return {}
        count, width = inputs.shape[:2]
        if not self._mask_shapes:
            self._mask_shapes = self._shapes_before(self._dropouts, inputs[0, :1])
        masks = {
            name: torch.ones(count, width, *shape, device=self._device) for name, shape in self._mask_shapes.items()
        }
        for place in range(count):
            own = int(plan.counts[step, place])
            for name, mask in masks.items():
                mask[place, :own] = self._dropouts[name].draw((own, *mask.shape[2:]), draws[place])
        return {f"{name}.mask": mask for name, mask in masks.items()}

    @torch.no_grad()
    def _shapes_before(self, parts: dict[str, MaskedDropout], inputs: Tensor) -> dict[str, tuple[int, ...]]:
        """Return the shape of one example as each part sees it, in the order in which they are called."""
        shapes: dict[str, tuple[int, ...]] = {}
        names = {part: name for name, part in parts.items()}

        def note(part: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            shapes[names[part]] = tuple(arguments[0].shape[1:])  # type: ignore[index]

        hooks = [part.register_forward_pre_hook(note) for part in parts.values()]
        self._module(inputs)
        for hook in hooks:
            hook.remove()
        return shapes


def _weights(plan: Plan, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield for each step the weight of each example in its client's mean, (clients, batch), and of the step in the last epoch's mean."""
    counts = plan.counts[:, :, None]
    is_own = np.arange(plan.rows.shape[2]) < counts
    weights = torch.from_numpy((is_own / np.maximum(counts, 1)).astype(np.float32)).to(device)
    shares = torch.from_numpy(plan.last_counts / plan.sizes).to(device)
    for step, longest in enumerate(plan.counts.max(axis=1, initial=0)):
        active = plan.active(step)
        yield weights[step, :active, :longest], shares[step, :active]


def _carried(before: Optimizer | None, old: Sequence[Tensor], after: Optimizer, new: Sequence[Tensor]) -> Optimizer:
    """Give an optimizer of fewer clients what another has kept for them, and return it."""
    if before is not None:
        for wide, narrow in zip(old, new, strict=True):
            for slot, value in before.state[wide].items():
                is_own = isinstance(value, Tensor) and value.shape == wide.shape
                after.state[narrow][slot] = value[: len(narrow)] if is_own else value
    return after


def _descend(
    optimizer: Optimizer,
    leaves: Sequence[Tensor],
    grads: Sequence[Tensor],
    starts: Sequence[Tensor],
    local: LocalSpec,
) -> None:
    """Take one step of every client: FedProx pulls it to its start, then its gradient is clipped by its own norm."""
    if local.proximal_mu:
        for grad, leaf, start in zip(grads, leaves, starts, strict=True):
            grad.add_(leaf - start, alpha=local.proximal_mu)
    if local.clip_norm is not None:
        norms = torch.stack([torch.linalg.vector_norm(grad.flatten(1), dim=1) for grad in grads])
        total = torch.linalg.vector_norm(norms, dim=0)
        # As torch.nn.utils.clip_grad_norm_ has it.
        scales = (local.clip_norm / (total + 1e-6)).clamp(max=1.0)
        for grad in grads:
            grad.mul_(scales.view(-1, *[1] * (grad.dim() - 1)))
    for leaf, grad in zip(leaves, grads, strict=True):
        leaf.grad = grad
    optimizer.step()


def _changes(stacks: Sequence[Tensor], starts: Sequence[Tensor]) -> Tensor:
    changes, end = stacks[0].new_empty(len(stacks[0]), sum(start.numel() for start in starts)), 0
    for stack, start in zip(stacks, starts, strict=True):
        part, end = changes[:, end : end + start.numel()], end + start.numel()
        torch.sub(stack, start, out=part.view(stack.shape))
    return changes
