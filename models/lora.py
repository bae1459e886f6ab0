"""Low-rank adaptation: a trained model stays as it is, and only a small correction of some layers is trained and travels.

    h = W x + b + (alpha / r) * B A x,   A (r, inputs),  B (outputs, r)                         equation 3

A starts at random and B at zero, so that the model starts as its base to the bit.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, section 4.1. https://arxiv.org/abs/2106.09685
"""

import math

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from wire.errors import LearnerError
from wire.validation import Strict

ADAPTERS = frozenset({"lora_a", "lora_b"})
"""Names of the tensors that are trained and travel."""


class LoRAParameters(Strict):
    """How to adapt a model."""

    rank: int = Field(default=4, ge=1, le=1024)
    """Rank r of the correction."""
    alpha: float = Field(default=8.0, gt=0)
    """The correction is multiplied by alpha / rank."""
    targets: list[str] = Field(default=["query", "value"], min_length=1)
    """Layers that are adapted, by the last part of their names; in a GPT-2 of transformers c_attn does what query and value do."""


class AdaptedLinear(nn.Module):
    """A dense layer with a correction. Its weight and bias keep their names, so that a base is loaded as into the plain layer."""

    def __init__(self, layer: nn.Linear, parameters: LoRAParameters) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        # Where the layer's own weight lies, and of its type.
        self.lora_a = nn.Parameter(layer.weight.new_empty(parameters.rank, layer.in_features))
        self.lora_b = nn.Parameter(layer.weight.new_zeros(layer.out_features, parameters.rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        self._scale = parameters.alpha / parameters.rank

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        correction = functional.linear(functional.linear(inputs, self.lora_a), self.lora_b)  # (..., outputs)
        return functional.linear(inputs, self.weight, self.bias) + self._scale * correction


def adapt(module: nn.Module, parameters: LoRAParameters, learner: str) -> None:
    """Put an `AdaptedLinear` in the place of every dense layer that is a target. The learner is named in the error.

    Raises:
        LearnerError: A target is no dense layer of `module`, which may have been adapted in part.
    """
    layers = {name: part for name, part in module.named_modules() if isinstance(part, nn.Linear)}
    kinds = {name.rpartition(".")[2] for name in layers}
    if unknown := sorted(set(parameters.targets) - kinds):
        known = ", ".join(sorted(kinds))
        raise LearnerError(f"Learner {learner}: lora.targets must be among {known}, got {unknown[0]!r}.")
    for name, layer in layers.items():
        owner, _, kind = name.rpartition(".")
        if kind in parameters.targets:
            setattr(module.get_submodule(owner), kind, AdaptedLinear(layer, parameters))


def base_names(module: nn.Module) -> frozenset[str]:
    """Return the names of an adapted module's tensors that are its base's."""
    return frozenset(name for name in module.state_dict() if name.rpartition(".")[2] not in ADAPTERS)
