"""What a module computes for a stack of clients: each one's own examples through its own parameters, each layer in one call.

Inputs are (clients, batch, ...), parameters (clients, ...). A layer without parameters takes the first two axes for one, or does not
care; a dense layer is a batched product, a convolution has a group for each client or is a product too. Whatever has no such form is
computed under `torch.func.vmap`, whose calls cost much more.

Each layer says itself how gradients go back through it: torch's kernels, called in the order, the layout and the memory that suit them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional

from models.activations import Gaussian, Step
from models.dropout import Dropout, draw_mask
from models.images import FlatImages
from simulation.patches import MEMORY_ORDER, PatchConvolution, convolved, is_plain

aten = torch.ops.aten

Own = Mapping[str, Tensor]
"""A layer's own parameters and masks by name, (clients, ...)."""

Pull = Callable[[Tensor, bool], tuple[Tensor | None, Own]]
"""From the gradient of a layer's outputs: that of its inputs, if it is wanted, and those of its own parameters."""

Form = Callable[[nn.Module, Own, Tensor], tuple[Tensor, Pull]]
"""Returns the outputs of a layer, (clients, batch, ...), from what is its own and its inputs, and the way back."""


class MaskedDropout(nn.Module):
    """Dropout whose draws come from outside: `mask` is 0, or 1 / (1 - rate)."""

    mask: Tensor

    def __init__(self, replaced: nn.Dropout) -> None:
        super().__init__()
        self.rate = replaced.p
        self._is_own = isinstance(replaced, Dropout)
        self.register_buffer("mask", torch.ones(()))

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Return a mask of one client's values: on a CPU what the dropout that this one replaces would draw."""
        if self._is_own and generator.device.type == "cpu":
            return draw_mask(shape, self.rate, generator=generator)
        keep = 1 - self.rate
        return torch.empty(*shape, device=generator.device).bernoulli_(keep, generator=generator).div_(keep)

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
        self.is_by_hand = not any(layer.form in _BY_AUTOGRAD for layer in self._layers)
        """Every layer's way back is written out, so that autograd is not needed."""
        learns = [any(True for _ in layer.module.parameters()) for layer in self._layers]
        self._first = learns.index(True) if any(learns) else len(learns)

    @torch.no_grad()
    def __call__(
        self, state: Mapping[str, Tensor], inputs: Tensor
    ) -> tuple[Tensor, Callable[[Tensor], dict[str, Tensor]]]:
        """Return the outputs, (clients, batch, ...), and what turns their gradient, which is used up, into that of every parameter.

        Args:
            state: Every parameter, and every mask of `dropouts`, by name, (clients, ...).
            inputs: (clients, batch, ...).
        """
        pulls: list[Pull] = []
        for layer in self._layers:
            own = {name: state[full] for name, full in layer.names.items()}
            inputs, pull = layer.form(layer.module, own, inputs)
            pulls.append(pull)

        def back(grad: Tensor) -> dict[str, Tensor]:
            grads: dict[str, Tensor] = {}
            following: Tensor | None = grad
            # No decorator, which would take longer to make than a small layer's way back.
            with torch.no_grad():
                while len(pulls) > self._first:
                    layer, pull = self._layers[len(pulls) - 1], pulls.pop()
                    assert following is not None
                    following, own = pull(following, len(pulls) > self._first)
                    grads |= {layer.names[name]: value for name, value in own.items()}
            return grads

        return inputs, back

    def _layers_of(self, module: nn.Module, prefix: str) -> Iterator[_Layer]:
        if type(module) is nn.Sequential:
            # Not `named_children`, which leaves out a layer that comes a second time.
            for name, part in module._modules.items():
                assert part is not None
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
            setattr(module, name, MaskedDropout(part))
        elif isinstance(part, nn.Conv2d) and is_plain(part):
            setattr(module, name, PatchConvolution(part))
        else:
            _with_stand_ins(part)
    return module


def _dense(layer: nn.Module, own: Own, inputs: Tensor) -> tuple[Tensor, Pull]:
    weight, bias, rows = own["weight"], own.get("bias"), inputs.flatten(1, -2)
    turned = weight.transpose(1, 2)
    outputs = torch.bmm(rows, turned) if bias is None else torch.baddbmm(bias.unsqueeze(1), rows, turned)

    def pull(grad: Tensor, is_wanted: bool) -> tuple[Tensor | None, Own]:
        grad = grad.flatten(1, -2)
        # In this order, and not as the transpose of rows' by grad: so it lies in memory as the weight does.
        grads = {"weight": torch.bmm(grad.transpose(1, 2), rows)}
        if bias is not None:
            grads["bias"] = grad.sum(1)
        return torch.bmm(grad, weight).view(inputs.shape) if is_wanted else None, grads

    return outputs.view(*inputs.shape[:-1], -1), pull


def _convolution(layer: nn.Module, own: Own, inputs: Tensor) -> tuple[Tensor, Pull]:
    assert isinstance(layer, PatchConvolution)
    if not _are_clients_channels(inputs.device):
        return convolved(inputs, own["weight"], own["bias"], layer.margin)
    images = _as_channels(inputs).contiguous(memory_format=torch.channels_last)
    weight, margin, count = own["weight"].flatten(0, 1), layer.margin, len(inputs)
    outputs = functional.conv2d(images, weight, own["bias"].flatten(), padding=margin, groups=count)

    def pull(grad: Tensor, is_wanted: bool) -> tuple[Tensor | None, Own]:
        grad = _as_channels(grad)

        def part(*mask: bool) -> Sequence[Tensor]:
            ones, zeros = [1, 1], [0, 0]
            found: Sequence[Tensor] = aten.convolution_backward(
                grad, images, weight, None, ones, [margin, margin], ones, False, zeros, count, mask
            )
            return found

        # One after the other, which is faster than all of them in one call.
        grads = {"weight": part(False, True, False)[1].view(own["weight"].shape)}
        grads["bias"] = grad.sum((0, 2, 3)).view(own["bias"].shape)
        return _as_clients(part(True, False, False)[0], count) if is_wanted else None, grads

    return _as_clients(outputs, count), pull


def _max_pool(layer: nn.Module, own: Own, inputs: Tensor) -> tuple[Tensor, Pull]:
    assert isinstance(layer, nn.MaxPool2d)
    parted, joined = (_as_channels, _as_clients) if _are_clients_channels(inputs.device) else (_as_one, _as_each)
    images, count = parted(inputs), len(inputs)
    window = [_pair(value) for value in (layer.kernel_size, layer.stride, layer.padding, layer.dilation)]
    outputs, places = aten.max_pool2d_with_indices(images, *window, layer.ceil_mode)

    def pull(grad: Tensor, is_wanted: bool) -> tuple[Tensor | None, Own]:
        # Laid out as the images: see `FlatImages`.
        grad = _like(parted(grad), images)
        back = aten.max_pool2d_with_indices_backward(grad, images, *window, layer.ceil_mode, places)
        return joined(back, count), {}

    return joined(outputs, count), pull


def _are_clients_channels(device: torch.device) -> bool:
    """Tell whether images should lie in memory as (batch, height, width, clients, channels): a CPU is fast with groups in that order."""
    return device.type == "cpu"


def _as_channels(images: Tensor) -> Tensor:
    return images.transpose(0, 1).flatten(1, 2)  # (batch, clients * channels, height, width)


def _as_clients(images: Tensor, count: int) -> Tensor:
    return images.view(len(images), count, -1, *images.shape[2:]).transpose(
        0, 1
    )  # (clients, batch, channels, height, width)


def _like(gradient: Tensor, images: Tensor) -> Tensor:
    is_last = images.is_contiguous(memory_format=torch.channels_last)
    return gradient.contiguous(memory_format=torch.channels_last if is_last else torch.contiguous_format)


def _as_one(images: Tensor) -> Tensor:
    return images.flatten(0, 1)  # (clients * batch, ...)


def _as_each(images: Tensor, count: int) -> Tensor:
    return images.view(count, -1, *images.shape[1:])  # (clients, batch, ...)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def _dropout(layer: nn.Module, own: Own, inputs: Tensor) -> tuple[Tensor, Pull]:
    mask = own.get("mask")
    if mask is None:
        return _identity(layer, own, inputs)
    return inputs * mask, lambda grad, is_wanted: (grad * mask, {})


def _identity(layer: nn.Module, own: Own, inputs: Tensor) -> tuple[Tensor, Pull]:
    return inputs, lambda grad, is_wanted: (grad, {})


def _relu(layer: nn.Module, own: Own, inputs: Tensor) -> tuple[Tensor, Pull]:
    outputs = torch.relu(inputs)
    # In the gradient's own memory: no other layer keeps what comes down from above.
    return outputs, lambda grad, is_wanted: (aten.threshold_backward.grad_input(grad, outputs, 0, grad_input=grad), {})


def _flatten(layer: nn.Module, own: Own, inputs: Tensor) -> tuple[Tensor, Pull]:
    outputs = _as_each(layer(_as_one(inputs)), len(inputs))
    return outputs, lambda grad, is_wanted: (grad.reshape(inputs.shape), {})


def _by_autograd(compute: Callable[[nn.Module, Own, Tensor], Tensor]) -> Form:
    def form(layer: nn.Module, own: Own, inputs: Tensor) -> tuple[Tensor, Pull]:
        with torch.enable_grad():
            leaves = {name: own[name].detach().requires_grad_() for name, _ in layer.named_parameters()}
            source = inputs.detach().requires_grad_(inputs.is_floating_point())
            outputs = compute(layer, {**own, **leaves}, source)

        def pull(grad: Tensor, is_wanted: bool) -> tuple[Tensor | None, Own]:
            found = torch.autograd.grad(outputs, [*leaves.values(), *([source] if is_wanted else [])], grad)
            # A copy, because it may share its memory with itself or with another gradient, and what comes down is written to.
            return found[-1].clone(memory_format=torch.contiguous_format) if is_wanted else None, dict(
                zip(leaves, found, strict=False)
            )

        return outputs.detach(), pull

    return form


_pointwise = _by_autograd(lambda layer, own, inputs: layer(inputs))
_one_by_one = _by_autograd(lambda layer, own, inputs: _as_each(layer(_as_one(inputs)), len(inputs)))
_under_vmap = _by_autograd(
    lambda layer, own, inputs: vmap(lambda own, inputs: functional_call(layer, own, (inputs,)))(
        dict(own), inputs.clone()
    )
)

_BY_AUTOGRAD = frozenset({_pointwise, _one_by_one, _under_vmap})
_FORMS: Mapping[type[nn.Module], Form] = {
    nn.Linear: _dense,
    PatchConvolution: _convolution,
    MaskedDropout: _dropout,
    nn.Identity: _identity,
    nn.ReLU: _relu,
    nn.Flatten: _flatten,
    FlatImages: _flatten,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _one_by_one,
    **dict.fromkeys((nn.Tanh, nn.Sigmoid, nn.GELU, nn.LeakyReLU, Step, Gaussian), _pointwise),
}
