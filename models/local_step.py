"""A step of local training: an optimizer lowers a loss over some parameters.

FedProx adds mu/2 * ||w - w_global||^2 to the loss, where w_global is what the parameters are when the training begins.

Source: Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, equation 2. https://arxiv.org/abs/1812.06127
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from models.optimizers import build_optimizer
from wire.spec import LocalSpec

Lower = Callable[[Callable[[], Tensor]], Tensor]
"""Takes a step that lowers what a function computes, a scalar, and returns what that was before, without a gradient."""


def lowering(parameters: Iterable[nn.Parameter], local: LocalSpec) -> Lower:
    """Return what takes steps of a new optimizer over these parameters alone, with FedProx and clipping as `local` says."""
    own = list(parameters)
    optimizer = build_optimizer(local.optimizer, own)
    anchor = [parameter.detach().clone() for parameter in own] if local.proximal_mu else []

    def lower(compute: Callable[[], Tensor]) -> Tensor:
        losses: list[Tensor] = []

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = compute()
            objective = loss + _pull(own, anchor, local.proximal_mu) if anchor else loss
            objective.backward(inputs=own)  # type: ignore[no-untyped-call]
            if local.clip_norm is not None:
                nn.utils.clip_grad_norm_(own, local.clip_norm)
            losses.append(loss.detach())
            return objective.detach()

        # torch types the closure's result as a float, which would have to wait for the device in each step.
        optimizer.step(closure)  # type: ignore[arg-type]
        return losses[0]

    return lower


def _pull(parameters: list[nn.Parameter], anchor: list[Tensor], mu: float) -> Tensor:
    """Return mu/2 * ||w - anchor||^2."""
    pairs = zip(parameters, anchor, strict=True)
    distance = torch.stack([(parameter - start).square().sum() for parameter, start in pairs]).sum()
    return 0.5 * mu * distance
