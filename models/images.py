"""Layers for images that lie in memory with their channels last."""

import torch
from torch import Tensor, nn


class FlatImages(nn.Flatten):
    """`nn.Flatten` of images (batch, channels, height, width), whose gradient lies in memory as they do.

    From a gradient that does not, torch's pools make two more copies of all images, which takes longer than the pooling.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Return the images as vectors, (batch, channels * height * width)."""
        if images.requires_grad and images.is_contiguous(memory_format=torch.channels_last):
            images.register_hook(_channels_last)  # type: ignore[no-untyped-call]
        return super().forward(images)


def _channels_last(gradient: Tensor) -> Tensor:
    return gradient.contiguous(memory_format=torch.channels_last)
