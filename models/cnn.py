"""Convolutional network for images and series: blocks of convolution, activation and pooling, then a dense classifier.

    block_i:  x <- pool_2(act(norm(conv_i(x))))        logits = W dropout(act(V vec(x)))

Source: LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", Proc. IEEE 86(11), 1998, section II.
https://doi.org/10.1109/5.726791
"""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from models import tasks
from models.activations import ACTIVATIONS, ActivationName
from models.classifier import Classifier, ClassifierParameters
from models.dropout import Dropout
from models.images import FlatImages
from models.learner import Examples
from wire.tensors import State

Channels = Annotated[int, Field(ge=1)]


class CNNParameters(ClassifierParameters):
    """Parameters of the learner `cnn`."""

    image: list[Annotated[int, Field(ge=1)]] = Field(default=[1, 8, 8], min_length=3, max_length=3)
    """Channels, height and width of an image; one of height 1 is a series, along which filters and pooling go."""
    channels: list[Channels | Annotated[list[Channels], Field(min_length=1, max_length=8)]] = Field(
        default=[16, 32], min_length=1, max_length=8
    )
    """Channels of each block, which halves height and width in the end: of its convolution, or a list for several of them."""
    kernel: int = Field(default=3, ge=1, le=15)
    """Height and width of a filter, or its length along a series; odd."""
    padding: Literal["same", "valid"] = "same"
    """Whether zeros around an image let a convolution keep its size, or it loses its margin."""
    pooling: Literal["max", "average"] = "max"
    """How a block halves the image."""
    hidden: int = Field(default=0, ge=0)
    """Width of a dense layer before the classifier; 0: none."""
    classes: int = Field(default=10, ge=2)
    """Number of classes."""
    activation: ActivationName = "relu"
    """Activation after each convolution and the dense layer before the classifier."""
    batch_norm: bool = False
    """Batch normalisation after each convolution."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Part of the classifier's inputs that is dropped in training."""
    feature_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Part of what the last block puts out that is dropped in training."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {self.kernel}")
        side, margin = min(self.image[1:]), self.kernel - 1 if self.padding == "valid" else 0
        if self.is_series:
            side = self.image[2]
        for convolutions in self.blocks:
            side = (side - margin * len(convolutions)) // 2
        if side < 1:
            raise ValueError(f"image must be large enough for {len(self.blocks)} blocks, got {self.image[1:]}")
        return self

    @property
    def is_series(self) -> bool:
        """Whether there is a width alone."""
        return self.image[1] == 1

    @property
    def blocks(self) -> list[list[int]]:
        """Channels of each convolution of each block."""
        return [entry if isinstance(entry, list) else [entry] for entry in self.channels]


class CNN(Classifier):
    """Convolutional network that classifies images."""

    task = "classify"
    data = "images"
    parameters: CNNParameters

    def build(self) -> nn.Module:
        """Return the blocks and the classifier as one `nn.Sequential`."""
        channels, height, width = self.parameters.image
        activation = ACTIVATIONS[self.parameters.activation]
        layers: list[nn.Module] = []
        kernel, padding = self.parameters.kernel, self.parameters.padding
        margin = kernel - 1 if padding == "valid" else 0
        is_series = self.parameters.is_series
        filters, pool = ((1, kernel), (1, 2)) if is_series else ((kernel, kernel), (2, 2))
        for convolutions in self.parameters.blocks:
            for out_channels in convolutions:
                layers.append(nn.Conv2d(channels, out_channels, filters, padding=padding))
                if self.parameters.batch_norm:
                    layers.append(nn.BatchNorm2d(out_channels))
                layers.append(activation())  # (batch, out_channels, height, width)
                channels, height, width = out_channels, height if is_series else height - margin, width - margin
            layers.append(nn.MaxPool2d(pool) if self.parameters.pooling == "max" else nn.AvgPool2d(pool))
            height, width = height if is_series else height // 2, width // 2
        layers.append(FlatImages())  # (batch, channels * height * width)
        # Behind it, where draws do not depend on how images lie in memory.
        if self.parameters.feature_dropout:
            layers.append(Dropout(self.parameters.feature_dropout))
        features = channels * height * width
        if self.parameters.hidden:
            layers += [nn.Linear(features, self.parameters.hidden), activation()]  # (batch, hidden)
            features = self.parameters.hidden
        if self.parameters.dropout:
            layers.append(Dropout(self.parameters.dropout))
        layers.append(nn.Linear(features, self.parameters.classes))  # (batch, classes)
        return nn.Sequential(*layers)

    def check(self, data: Examples) -> None:
        """Check that examples are images of the shape `image` and targets are classes."""
        tasks.check_features("cnn", data, tuple(self.parameters.image))
        tasks.check_classes("cnn", data, self.parameters.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.parameters.image
        return channels, height, width

    @torch.no_grad()
    def maps(self, state: State, image: Tensor) -> Mapping[str, Tensor]:
        """Return the activations of each convolution, after norm and activation, and of each pooling, (channels, height, width)."""
        self._rest(state)
        found: dict[str, Tensor] = {}
        name, values = "", image.to(self._device)[None]
        for layer in self._module.children():
            if isinstance(layer, FlatImages):
                break
            values = layer(values)
            if isinstance(layer, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
                kind = "convolution" if isinstance(layer, nn.Conv2d) else f"{self.parameters.pooling} pool"
                name = f"{kind} {1 + sum(other.startswith(kind) for other in found)}"
            # Norm and activation take the place of the convolution before them.
            found[name] = values[0].cpu()
        return found
