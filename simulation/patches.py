"""Convolution as one matrix product over gathered patches, for filters that differ from client to client.

Under a vmap torch turns a convolution into one with a group for each client. Here the patches under the filter become the rows of a
matrix, images lie in memory with their channels last, and a batched product serves all clients:

    out = P(x) W,    dW = P(x)' g,    dx = P'(g W')

Source: Chellapilla, Puri and Simard, "High Performance Convolutional Neural Networks for Document Processing", IWFHR 2006.
https://inria.hal.science/inria-00112631
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

MEMORY_ORDER = (2, 3, 1, 0)
"""How the axes of a filter (out, in, height, width) should lie in memory: the product then needs no copy of it."""


def is_plain(convolution: nn.Conv2d) -> bool:
    """Tell whether `PatchConvolution` can stand in: odd square filters, a bias, and as many zeros around as keep the size, or none."""
    height, width = convolution.kernel_size
    return (
        height == width
        and height % 2 == 1
        and (_is_same(convolution) or convolution.padding in ("valid", (0, 0)))
        and convolution.padding_mode == "zeros"
        and convolution.stride == convolution.dilation == (1, 1)
        and convolution.groups == 1
        and convolution.bias is not None
    )


class PatchConvolution(nn.Module):
    """Stands in for an `nn.Conv2d` that `is_plain`, with the same parameters by the same names."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        assert convolution.bias is not None
        self.weight = convolution.weight
        self.bias = convolution.bias
        self.margin = convolution.kernel_size[0] // 2 if _is_same(convolution) else 0

    def forward(self, images: Tensor) -> Tensor:
        """Images (batch, in, height, width) to (batch, out, height, width), whose sides are smaller without a margin of zeros."""
        return convolve(images, self.weight, self.bias, self.margin)


def convolve(images: Tensor, weight: Tensor, bias: Tensor, margin: int) -> Tensor:
    """Return images under their filters, (..., batch, out, height, width).

    Args:
        images: (..., batch, in, height, width); channels should lie last in memory, as they do in what is returned.
        weight: (..., out, in, k, k), with the same axes of clients before; should lie in memory in `MEMORY_ORDER`.
        bias: (..., out).
        margin: Zeros on each side of an image.
    """
    filters = weight.movedim((-2, -1, -3, -4), (-4, -3, -2, -1))  # (..., k, k, in, out)
    outputs, _ = _Convolution.apply(images.movedim(-3, -1), filters, bias, margin)  # type: ignore[no-untyped-call]
    return outputs.movedim(-1, -3)  # type: ignore[no-any-return]


def convolved(
    images: Tensor, weight: Tensor, bias: Tensor, margin: int
) -> tuple[Tensor, Callable[[Tensor, bool], tuple[Tensor | None, dict[str, Tensor]]]]:
    """Return what `convolve` does, and what returns the gradients of images, if they are wanted, of weight and of bias from its own."""
    filters = weight.movedim((-2, -1, -3, -4), (-4, -3, -2, -1))  # (..., k, k, in, out)
    shape = images.movedim(-3, -1).shape
    outputs, rows = _forward(images.movedim(-3, -1), filters, bias, margin)

    def pull(grad: Tensor, is_wanted: bool) -> tuple[Tensor | None, dict[str, Tensor]]:
        grads = _backward(grad.movedim(-3, -1), rows, filters, shape if is_wanted else None, margin)
        images_grad, filters_grad, bias_grad = grads
        own = {"weight": filters_grad.movedim((-4, -3, -2, -1), (-2, -1, -3, -4)), "bias": bias_grad}
        return None if images_grad is None else images_grad.movedim(-1, -3), own

    return outputs.movedim(-1, -3), pull


def _forward(images: Tensor, weight: Tensor, bias: Tensor, margin: int) -> tuple[Tensor, Tensor]:
    """Return outputs (..., batch, height, width, out) and the patches, (..., rows, k * k * in)."""
    kernel = weight.shape[-3]
    rows = _patches(images, kernel, margin)
    outputs = torch.matmul(rows, weight.flatten(-4, -2)).add_(bias.unsqueeze(-2))  # (..., batch * positions, out)
    height, width = (side + 2 * margin - kernel + 1 for side in images.shape[-3:-1])
    return outputs.view(*images.shape[:-3], height, width, -1), rows


def _backward(
    grad: Tensor, rows: Tensor, weight: Tensor, image_shape: tuple[int, ...] | None, margin: int
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return the gradients of images, none without their shape, of filters and of bias."""
    flat = grad.flatten(-4, -2)  # (..., batch * positions, out)
    images_grad = None
    if image_shape is not None:
        rows_grad = torch.matmul(flat, weight.flatten(-4, -2).transpose(-1, -2))  # (..., rows, k * k * in)
        images_grad = _scattered(rows_grad, image_shape, weight.shape[-3], margin)
    return images_grad, torch.matmul(rows.transpose(-1, -2), flat).view(weight.shape), flat.sum(-2)


class _Convolution(torch.autograd.Function):
    """Images (..., batch, height, width, in) and filters (..., k, k, in, out) with any axes of clients before them."""

    @staticmethod
    def forward(images: Tensor, weight: Tensor, bias: Tensor, margin: int) -> tuple[Tensor, Tensor]:
        return _forward(images, weight, bias, margin)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[1], output[1])
        ctx.image_shape, ctx.margin = inputs[0].shape, inputs[3]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        weight, rows = ctx.saved_tensors
        shape = ctx.image_shape if ctx.needs_input_grad[0] else None
        return *_backward(grads[0], rows, weight, shape, ctx.margin), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, tuple[int, int]]:
        *tensors, margin = inputs
        stacked = [
            tensor.expand(info.batch_size, *tensor.shape) if axis is None else tensor.movedim(axis, 0)
            for tensor, axis in zip(tensors, in_dims, strict=False)
        ]
        return _Convolution.apply(*stacked, margin), (0, 0)  # type: ignore[no-untyped-call]


def _is_same(convolution: nn.Conv2d) -> bool:
    height, width = convolution.kernel_size
    return convolution.padding in ("same", (height // 2, width // 2))


def _patches(images: Tensor, kernel: int, margin: int) -> Tensor:
    """Return what the filter sees at each position: (..., batch, height, width, channels) to (..., rows, k * k * channels)."""
    height, width, channels = images.shape[-3:]
    flat = images.flatten(0, -4)
    padded = functional.pad(flat, (0, 0, margin, margin, margin, margin)) if margin else flat
    taps = _taps(height + 2 * margin, width + 2 * margin, kernel, images.device)
    clients = images.shape[:-4]
    return padded.flatten(1, 2).index_select(1, taps).view(*clients, -1, kernel * kernel * channels)


def _scattered(rows: Tensor, shape: tuple[int, ...], kernel: int, margin: int) -> Tensor:
    """Return the sum of what each image of `shape` got from the patches that saw it: the transpose of `_patches`."""
    height, width, channels = shape[-3:]
    down_count, right_count = height + 2 * margin - kernel + 1, width + 2 * margin - kernel + 1
    patches = rows.view(-1, down_count, right_count, kernel, kernel, channels)
    padded = rows.new_zeros(len(patches), height + 2 * margin, width + 2 * margin, channels)
    for down in range(kernel):
        for right in range(kernel):
            padded[:, down : down + down_count, right : right + right_count].add_(patches[:, :, :, down, right])
    return padded[:, margin : margin + height, margin : margin + width].reshape(shape)


@cache
@torch.inference_mode(False)
def _taps(height: int, width: int, kernel: int, device: torch.device) -> Tensor:
    """Return where in an image, with its margin, each position's patch lies, int64 (positions * k * k,)."""
    offsets = torch.arange(kernel)[:, None] * width + torch.arange(kernel)
    starts = torch.arange(height - kernel + 1)[:, None] * width + torch.arange(width - kernel + 1)
    return (starts[:, :, None, None] + offsets).flatten().to(device)
