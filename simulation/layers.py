"""What a module computes for a stack of clients: each one's own examples through its own parameters, each layer in one call.

Inputs are (clients, batch, ...), parameters (clients, ...). A layer without parameters takes the first two axes for one, or does not
care; a dense layer is a batched product, a convolution has a group for each client or is a product too. Whatever has no such form is
computed under `torch.func.vmap`, whose calls cost much more.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional

from simulation.patches import MEMORY_ORDER, PatchConvolution, convolve, is_plain

Own = Mapping[str, Tensor]
"""A layer's own parameters and masks by name, (clients, ...)."""

Form = Callable[[nn.Module, Own, Tensor], Tensor]
"""Returns the outputs of a layer, (clients, batch, ...), from what is its own and its inputs."""


class MaskedDropout(nn.Module):
    """Dropout whose draws come from outside: `mask` is 0, or 1 / (1 - rate)."""

    mask: Tensor

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("mask", torch.ones(()))

    def forward(self, inputs: Tensor) -> Tensor:
        """Multiply by the mask."""
        return inputs * self.mask


@dataclass(frozen=True, slots=True)
class _Layer:
    module: nn.Module
    form: Form
    names: Mapping[str, str]
    """Of what is its own: in the whole module, by that in the layer."""


class StackedModule:
    """A module's layers, for many clients at once."""

    def __init__(self, module: nn.Module) -> None:
        """Take over `module`: some of its layers are replaced, their parameters keep their names."""
        self.module = _with_stand_ins(module)
        self.dropouts = {
            name: part for name, part in module.named_modules() if isinstance(part, MaskedDropout) and part.rate
        }
        self._tensors = [name for name, _ in module.named_parameters()] + [f"{name}.mask" for name in self.dropouts]
        self._layers = list(self._layers_of(self.module, ""))

    def __call__(self, state: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Return the outputs, (clients, batch, ...).

        Args:
            state: Every parameter, and every mask of `dropouts`, by name, (clients, ...).
            inputs: (clients, batch, ...).
        """
        for layer in self._layers:
            inputs = layer.form(layer.module, {own: state[name] for own, name in layer.names.items()}, inputs)
        return inputs

    def _layers_of(self, module: nn.Module, prefix: str) -> Iterator[_Layer]:
        if type(module) is nn.Sequential:
            for name, part in module.named_children():
                yield from self._layers_of(part, f"{prefix}{name}.")
        else:
            names = {name.removeprefix(prefix): name for name in self._tensors if name.startswith(prefix)}
            yield _Layer(module, _FORMS.get(type(module), _under_vmap), names)


def memory_order(device: torch.device) -> tuple[int, ...]:
    """Return how the axes of a filter (out, in, height, width) should lie in memory."""
    return (0, 2, 3, 1) if _are_clients_channels(device) else MEMORY_ORDER


def _with_stand_ins(module: nn.Module) -> nn.Module:
    for name, part in list(module.named_children()):
        if isinstance(part, nn.Dropout):
            setattr(module, name, MaskedDropout(part.p))
        elif isinstance(part, nn.Conv2d) and is_plain(part):
            setattr(module, name, PatchConvolution(part))
        else:
            _with_stand_ins(part)
    return module


class _Dense(torch.autograd.Function):
    """Inputs (clients, batch, in) by weights (clients, out, in), whose gradient autograd's own rule would leave transposed in memory."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return torch.baddbmm(bias.unsqueeze(1), inputs, weight.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        inputs, weight = ctx.saved_tensors
        inputs_grad = torch.bmm(grads[0], weight) if ctx.needs_input_grad[0] else None
        return inputs_grad, torch.bmm(grads[0].transpose(1, 2), inputs), grads[0].sum(1)


def _dense(layer: nn.Module, own: Own, inputs: Tensor) -> Tensor:
    if "bias" not in own:
        return _under_vmap(layer, own, inputs)
    outputs: Tensor = _Dense.apply(inputs.flatten(1, -2), own["weight"], own["bias"])  # type: ignore[no-untyped-call]
    return outputs.view(*inputs.shape[:-1], -1)


def _convolution(layer: nn.Module, own: Own, inputs: Tensor) -> Tensor:
    assert isinstance(layer, PatchConvolution)
    if not _are_clients_channels(inputs.device):
        return convolve(inputs, own["weight"], own["bias"], layer.margin)
    images = _as_channels(inputs).contiguous(memory_format=torch.channels_last)
    weight, bias = own["weight"].flatten(0, 1), own["bias"].flatten()
    outputs = functional.conv2d(images, weight, bias, padding=layer.margin, groups=len(inputs))
    return _as_clients(outputs, len(inputs))


def _pool(layer: nn.Module, own: Own, inputs: Tensor) -> Tensor:
    if not _are_clients_channels(inputs.device):
        return _one_by_one(layer, own, inputs)
    return _as_clients(layer(_as_channels(inputs)), len(inputs))


def _are_clients_channels(device: torch.device) -> bool:
    """Tell whether images should lie in memory as (batch, height, width, clients, channels): a CPU is fast with groups in that order."""
    return device.type == "cpu"


def _as_channels(images: Tensor) -> Tensor:
    return images.transpose(0, 1).flatten(1, 2)  # (batch, clients * channels, height, width)


def _as_clients(images: Tensor, count: int) -> Tensor:
    return images.view(len(images), count, -1, *images.shape[2:]).transpose(
        0, 1
    )  # (clients, batch, channels, height, width)


def _dropout(layer: nn.Module, own: Own, inputs: Tensor) -> Tensor:
    return inputs * own["mask"] if own else inputs


def _pointwise(layer: nn.Module, own: Own, inputs: Tensor) -> Tensor:
    outputs: Tensor = layer(inputs)
    return outputs


def _one_by_one(layer: nn.Module, own: Own, inputs: Tensor) -> Tensor:
    outputs: Tensor = layer(inputs.flatten(0, 1))
    return outputs.view(*inputs.shape[:2], *outputs.shape[1:])


def _under_vmap(layer: nn.Module, own: Own, inputs: Tensor) -> Tensor:
    outputs: Tensor = vmap(lambda own, inputs: functional_call(layer, own, (inputs,)))(dict(own), inputs)
    return outputs


_FORMS: Mapping[type[nn.Module], Form] = {
    nn.Linear: _dense,
    PatchConvolution: _convolution,
    MaskedDropout: _dropout,
    nn.Flatten: _one_by_one,
    **dict.fromkeys((nn.Identity, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU), _pointwise),
    **dict.fromkeys((nn.MaxPool2d, nn.AvgPool2d), _pool),
}
