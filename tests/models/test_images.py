"""Layers for images: what they compute, and how it lies in memory."""

import pytest
import torch
from torch import nn

from models.images import FlatImages


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=["last", "first"])
def test_flat_images_give_back_gradients_that_lie_as_the_images(memory_format: torch.memory_format) -> None:
    images = torch.randn(2, 3, 4, 5).contiguous(memory_format=memory_format).requires_grad_()
    seen: list[torch.Tensor] = []
    doubled = images * 2
    flat = FlatImages()(doubled)
    doubled.register_hook(seen.append)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(flat, nn.Flatten()(doubled))
    gradient = torch.randn(2, 60)
    flat.backward(gradient)
    assert seen[0].is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(images.grad, 2 * gradient.view(2, 3, 4, 5))
