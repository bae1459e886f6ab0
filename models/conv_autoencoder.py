"""Convolutional autoencoder: an autoencoder of images whose encoder halves height and width at each layer, and whose decoder doubles them.

    h_0 = x,  h_i = act(conv_i(h_{i-1})), with stride 2        c = W vec(h_n) + b
    g_n = act(V c + d),  g_{i-1} = act(conv_i'(g_i)),  x' = g_0 without the act, conv_i' a transposed convolution with stride 2

Filters are the same all over an image, so there are fewer weights to learn than between dense layers of these sizes.

Source: Masci, Meier, Ciresan and Schmidhuber, "Stacked convolutional auto-encoders for hierarchical feature extraction", ICANN 2011,
section 3, https://doi.org/10.1007/978-3-642-21735-7_7; with strides in place of pooling as in Radford, Metz and Chintala, "Unsupervised
representation learning with deep convolutional generative adversarial networks", ICLR 2016, section 3. https://arxiv.org/abs/1511.06434
"""

import math
from typing import Annotated

from pydantic import Field
from torch import nn

from models.activations import ACTIVATIONS, ActivationName
from models.autoencoder import EncoderDecoder, ReconstructionParameters, Reconstructor
from models.learner import Examples


class ConvAutoencoderParameters(ReconstructionParameters):
    """Parameters of the learner `conv_autoencoder`."""

    image: list[Annotated[int, Field(ge=1)]] = Field(default=[1, 8, 8], min_length=3, max_length=3)
    """Channels, height and width of an image."""
    channels: list[Annotated[int, Field(ge=1)]] = Field(default=[16, 32], min_length=1, max_length=8)
    """Channels of each layer of the encoder; the decoder has them in reverse."""
    code: int = Field(default=16, ge=1)
    """Width of the code."""
    activation: ActivationName = "relu"
    """Activation after each layer but those that put out code and reconstruction."""


class ConvAutoencoder(Reconstructor):
    """Convolutional autoencoder, with the uses of the dense one."""

    task = "reduce, denoise, find anomalies"
    data = "images"
    parameters: ConvAutoencoderParameters

    def build(self) -> nn.Module:
        """Return encoder and decoder, which mirror each other."""
        channels, height, width = self.parameters.image
        activation = ACTIVATIONS[self.parameters.activation]
        encoder: list[nn.Module] = []
        decoder: list[nn.Module] = []
        for out_channels in self.parameters.channels:
            encoder += [nn.Conv2d(channels, out_channels, 3, stride=2, padding=1), activation()]
            # Of sides n, the one leaves (n + 1) // 2 and the other makes 2n - 1: an even side needs one more.
            missing = (1 - height % 2, 1 - width % 2)
            grow = nn.ConvTranspose2d(out_channels, channels, 3, stride=2, padding=1, output_padding=missing)
            decoder = [activation(), grow, *decoder]
            channels, height, width = out_channels, (height + 1) // 2, (width + 1) // 2
        shape = (channels, height, width)
        encoder += [nn.Flatten(), nn.Linear(math.prod(shape), self.parameters.code)]  # (batch, code)
        decoder = [nn.Linear(self.parameters.code, math.prod(shape)), nn.Unflatten(1, shape), *decoder]
        return EncoderDecoder(nn.Sequential(*encoder), nn.Sequential(*decoder))  # (batch, *image)

    @property
    def example_shape(self) -> tuple[int, ...]:
        """The parameter `image`."""
        return tuple(self.parameters.image)

    def check(self, data: Examples) -> None:
        """Check that examples are images of the shape `image`, and that anomalies can be told."""
        self._check("conv_autoencoder", data)
