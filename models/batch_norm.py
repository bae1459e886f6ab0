"""Batch norm whose statistics each client keeps to itself: they are made anew from its own training data whenever they are needed.

Nothing has to be remembered from round to round, so a client may be ended and started at any time. Scale and shift are shared. FedBN keeps
those local too, which would need clients with a memory.

Sources: Ioffe and Szegedy, "Batch Normalization", ICML 2015, Algorithm 2. https://arxiv.org/abs/1502.03167
Andreux et al., "Siloed Federated Learning for Multi-Centric Histopathology Datasets", DART 2020 (SiloBN). https://arxiv.org/abs/2008.07424
Li et al., "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization", ICLR 2021. https://arxiv.org/abs/2102.07623
"""

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def statistics_of(module: nn.Module, frozen: frozenset[str] = frozenset()) -> frozenset[str]:
    """Return the names of the running means and variances in a module, without those that are frozen."""
    norms = (name for name, part in module.named_modules() if isinstance(part, _BatchNorm))
    return frozenset(f"{name}.{part}" for name in norms for part in ("running_mean", "running_var")) - frozen


def gather_statistics(module: nn.Module, names: frozenset[str], batches: Iterable[Tensor]) -> None:
    """Set the running means and variances of those `names` to the means over `batches` of what each batch has.

    Args:
        module: In evaluation mode, in which it stays: nothing else of it learns or drops.
        names: As `statistics_of` returns them.
        batches: Inputs, at least one batch, of two or more examples where batch norm needs two.
    """
    norms = [part for name, part in module.named_modules() if f"{name}.running_mean" in names]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        assert isinstance(norm, _BatchNorm)
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean, in which every batch counts the same
        norm.train()
    for inputs in batches:
        module(inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
