"""Convolution as one matrix product over gathered patches, for filters that differ from client to client.

Under a vmap torch turns a convolution into one with a group for each client, which a CPU computes slowly. Here the patches under the
filter become the rows of a matrix, images lie in memory with their channels last, and a batched product serves all clients:

    out = P(x) W,    dW = P(x)' g,    dx = P'(g W')

Source: Chellapilla, Puri and Simard, "High Performance Convolutional Neural Networks for Document Processing", IWFHR 2006.
https://inria.hal.science/inria-00112631
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

MEMORY_ORDER = (2, 3, 1, 0)
"""How the axes of a filter (out, in, height, width) should lie in memory: the product then needs no copy of it."""


def is_plain(convolution: nn.Conv2d) -> bool:
    """Tell whether `PatchConvolution` can stand in: odd square filters, a bias, zeros around, an output as large as the input."""
    (height, width), padding = convolution.kernel_size, convolution.padding
    return (
        height == width
        and height % 2 == 1
        and padding in ("same", (height // 2, height // 2))
        and convolution.padding_mode == "zeros"
        and convolution.stride == convolution.dilation == (1, 1)
        and convolution.groups == 1
        and convolution.bias is not None
    )


class PatchConvolution(nn.Module):
    """Stands in for an `nn.Conv2d` that `is_plain`, with the same parameters by the same names."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight = convolution.weight
        self.bias = convolution.bias

    def forward(self, images: Tensor) -> Tensor:
        """Images (batch, in, height, width) to (batch, out, height, width)."""
        weight = self.weight.permute(*MEMORY_ORDER)  # (height, width, in, out)
        outputs, _ = _Convolution.apply(images.permute(0, 2, 3, 1), weight, self.bias)  # type: ignore[no-untyped-call]
        return outputs.permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class _Convolution(torch.autograd.Function):
    """Images (..., batch, height, width, in) and filters (..., k, k, in, out) with any axes of clients before them."""

    @staticmethod
    def forward(images: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        rows = _patches(images, weight.shape[-3])
        outputs = torch.matmul(rows, weight.flatten(-4, -2)).add_(bias.unsqueeze(-2))  # (..., batch * positions, out)
        return outputs.view(*images.shape[:-1], -1), rows

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[1], output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        weight, rows = ctx.saved_tensors
        flat = grads[0].flatten(-4, -2)  # (..., batch * positions, out)
        weight_grad = torch.matmul(rows.transpose(-1, -2), flat).view(weight.shape)
        images_grad = None
        if ctx.needs_input_grad[0]:
            rows_grad = torch.matmul(flat, weight.flatten(-4, -2).transpose(-1, -2))  # (..., rows, k * k * in)
            images_grad = _scattered(rows_grad, (*grads[0].shape[:-1], weight.shape[-2]), weight.shape[-3])
        return images_grad, weight_grad, flat.sum(-2)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[Any, tuple[int, int]]:
        stacked = [
            tensor.expand(info.batch_size, *tensor.shape) if axis is None else tensor.movedim(axis, 0)
            for tensor, axis in zip(inputs, in_dims, strict=True)
        ]
        return _Convolution.apply(*stacked), (0, 0)  # type: ignore[no-untyped-call]


def _patches(images: Tensor, kernel: int) -> Tensor:
    """Return what the filter sees at each position: (..., batch, height, width, channels) to (..., rows, k * k * channels)."""
    height, width, channels = images.shape[-3:]
    margin = kernel // 2
    padded = functional.pad(images.flatten(0, -4), (0, 0, margin, margin, margin, margin)).flatten(1, 2)
    gathered = padded.index_select(1, _taps(height, width, kernel, images.device))
    clients = images.shape[:-4]
    return gathered.view(*clients, -1, kernel * kernel * channels)


def _scattered(rows: Tensor, shape: tuple[int, ...], kernel: int) -> Tensor:
    """Return the sum of what each image of `shape` got from the patches that saw it: the transpose of `_patches`."""
    height, width, channels = shape[-3:]
    margin = kernel // 2
    patches = rows.view(-1, height, width, kernel, kernel, channels)
    padded = rows.new_zeros(len(patches), height + 2 * margin, width + 2 * margin, channels)
    for down in range(kernel):
        for right in range(kernel):
            padded[:, down : down + height, right : right + width].add_(patches[:, :, :, down, right])
    return padded[:, margin : margin + height, margin : margin + width].reshape(shape)


@cache
def _taps(height: int, width: int, kernel: int, device: torch.device) -> Tensor:
    """Return where in a padded image each position's patch lies, int64 (height * width * k * k,)."""
    row = width + kernel - 1
    offsets = torch.arange(kernel)[:, None] * row + torch.arange(kernel)
    starts = torch.arange(height)[:, None] * row + torch.arange(width)
    return (starts[:, :, None, None] + offsets).flatten().to(device)
