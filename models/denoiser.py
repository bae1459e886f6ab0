"""What learners share that take noise out of examples: the loss over levels of noise, and the networks that predict the noise.

    x' = what is left of x at a level of noise, with noise e ~ N(0, I) in it        loss = E ||e_theta(x', level) - e||^2 / size

A model that is trained with so much noise never comes to rest, and its samples are better from an average of it over time. Here time is
rounds, and the coordinator keeps the average, so that clients upload no more than without it:

    average_t = d_t average_{t-1} + (1 - d_t) theta_t,   d_t = min(decay, (1 + t) / (10 + t)),   theta_t = what round t made

The state has the average by the names of the parameters, because that is the model, and theta, where the next round begins, by `LAST`.

Source: Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models", NeurIPS 2020, section 3.2 (that predicting noise is denoising score
matching) and appendix B (the U-Net, here without its self-attention, and the average); Vaswani et al., "Attention Is All You Need", NeurIPS
2017, section 3.5 (the sinusoids); Ronneberger, Fischer and Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI
2015; TensorFlow, tf.train.ExponentialMovingAverage (d_t of an average that is young).
https://arxiv.org/abs/2006.11239  https://arxiv.org/abs/1706.03762  https://arxiv.org/abs/1505.04597
https://www.tensorflow.org/api_docs/python/tf/train/ExponentialMovingAverage
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from models.gradient import GradientLearner, GradientParameters
from models.learner import Contribution, Examples, Report, SampleRequest
from models.optimizers import ServerOptimizer
from models.random_stream import RandomStream
from models.settings import refuse_unused
from wire.spec import LocalSpec
from wire.tensors import State

EVALUATION_DRAWS = 8
"""Levels, and noises, at which each example is measured."""

LAST = "last."
"""Begins the names of the parameters as the last round left them."""

ROUNDS = "rounds"
"""How many rounds are in the average, in the state."""


class DenoiserParameters(GradientParameters):
    """Parameters of every learner that takes noise out."""

    inputs: list[Annotated[int, Field(ge=1)]] = Field(default=[1, 8, 8], min_length=1, max_length=4)
    """Shape of one example; for a U-Net channels, height and width."""
    network: Literal["mlp", "unet"] = "mlp"
    """What predicts the noise: dense layers for any examples, or a U-Net for images."""
    hidden: list[Annotated[int, Field(ge=1)]] = Field(default=[256, 256, 256, 256], max_length=64)
    """Of an MLP: width of each hidden layer; around one as wide as the one before, what comes in passes by. None: an affine map."""
    channels: list[Annotated[int, Field(ge=8, multiple_of=8)]] = Field(default=[32, 64], min_length=1, max_length=8)
    """Of a U-Net: channels at full height and width, at half of them, and so on."""
    embedding: int = Field(default=64, ge=4, multiple_of=2)
    """Numbers that tell a network the level of noise."""
    average_decay: float = Field(default=0.99, ge=0, lt=1)
    """Most that a round leaves of the average of the models before it; 0: there is no average, and clients download half as much."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        part = 2 ** (len(self.channels) - 1)
        if self.network == "unet" and (len(self.inputs) != 3 or any(side % part for side in self.inputs[1:])):
            raise ValueError(
                f"inputs must be channels, height and width, both a multiple of {part} for a unet of "
                f"{len(self.channels)} channels, got {self.inputs}"
            )
        refuse_unused(self, f"where network is {self.network}", "hidden" if self.network == "unet" else "channels")
        return self


class Denoiser(GradientLearner):
    """Trains a network to tell the noise in an example from the example. Targets have no part in it."""

    samples_text = False
    parameters: DenoiserParameters

    @property
    @abstractmethod
    def levels(self) -> int:
        """How many levels of noise there are."""

    @abstractmethod
    def corrupt(self, inputs: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """Return `inputs`, (batch, ...), with `noise` of that shape in them, as much as levels, int64 (batch,), from 0 up, say."""

    @abstractmethod
    def draw(self, count: int) -> Tensor:
        """Return new examples made from noise, (count, ...). Draws from torch's global generator."""

    def build(self) -> nn.Module:
        """Return the network."""
        return UNet(self.parameters) if self.parameters.network == "unet" else DenseDenoiser(self.parameters)

    def predict(self, noisy: Tensor, levels: Tensor) -> Tensor:
        """Return the noise that is in `noisy`, (batch, ...), as the network says, float32."""
        outputs: Tensor = self._module(noisy, levels)
        return outputs.float()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean squared error of the noise, of one number of it."""
        return functional.mse_loss(outputs, targets)

    def measure(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Return nothing: all that is measured is the loss."""
        return {}

    def batch_loss(self, batch: Examples) -> Tensor:
        """Return the loss at a level for each example, each as likely as the others."""
        levels = torch.randint(self.levels, (len(batch),), device=self._device)
        return self._loss_at(batch.inputs, levels)

    def measure_batch(self, batch: Examples) -> Mapping[str, Tensor]:
        """Return the loss at several levels for each example, all levels being as frequent as can be: less left to chance."""
        inputs = batch.inputs.repeat_interleave(EVALUATION_DRAWS, dim=0)
        return {"loss": self._loss_at(inputs, spread_levels(len(inputs), self.levels, self._device))}

    def _loss_at(self, inputs: Tensor, levels: Tensor) -> Tensor:
        noise = torch.randn_like(inputs)
        return self.loss(self.predict(self.corrupt(inputs, noise, levels), levels), noise)

    def init(self, seed: int) -> State:
        """Return a new model, which is also the average of itself."""
        model = super().init(seed)
        if not self.parameters.average_decay:
            return model
        return {**model, **{LAST + name: tensor.clone() for name, tensor in model.items()}, ROUNDS: torch.zeros(1)}

    def fit(
        self, state: State, data: Examples, local: LocalSpec, generator: torch.Generator, report: Report
    ) -> Contribution:
        """Train what the last round left, not the average. Raises as `GradientLearner.fit`."""
        return super().fit(self._last(state), data, local, generator, report)

    def apply(self, state: State, mean: State, server: ServerOptimizer, weight_total: int) -> State:
        """Take the server step on what the last round left, and take the outcome into the average."""
        moved = super().apply(self._last(state), mean, server, weight_total)
        if not self.parameters.average_decay:
            return moved
        rounds = float(state[ROUNDS]) + 1
        decay = min(self.parameters.average_decay, (1 + rounds) / (10 + rounds))
        average = {name: state[name].lerp_(tensor, 1 - decay) for name, tensor in moved.items()}
        return {**average, **{LAST + name: tensor for name, tensor in moved.items()}, ROUNDS: state[ROUNDS].add_(1)}

    def _last(self, state: State) -> State:
        """Return the parameters as the last round left them."""
        prefix = LAST if self.parameters.average_decay else ""
        return {entry.name: state[prefix + entry.name] for entry in self.contribution_layout.entries}

    @torch.no_grad()
    def sample(self, state: State, request: SampleRequest) -> Tensor:
        """Return new examples, float32 (count, ...)."""
        self._load(state)
        self._module.eval()
        seed = int(torch.randint(1 << 62, (), generator=request.generator))
        with RandomStream(seed, self._device).drawing(), self._autocast():
            return self.draw(request.count)


def spread_levels(count: int, levels: int, device: torch.device) -> Tensor:
    """Return levels, int64 (count,), in a random order: one drawn from each of `count` equal parts of 0 to `levels`."""
    places = torch.randperm(count, device=device) + torch.rand(count, device=device, dtype=torch.float64)
    return (places * (levels / count)).long().clamp(max=levels - 1)


class LevelEmbedding(nn.Module):
    """Sinusoids of a level, of wavelengths from 2 pi to 20,000 pi, and a dense layer: (batch,) to (batch, embedding)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, levels: Tensor) -> Tensor:
        """Return the embeddings of `levels`, int64 (batch,)."""
        half = self.layer.in_features // 2
        rates = torch.exp(-math.log(10_000.0) * torch.arange(half, device=levels.device) / half)  # (half,)
        angles = levels[:, None] * rates  # (batch, half)
        embedded: Tensor = self.layer(torch.cat([angles.sin(), angles.cos()], dim=1))
        return functional.silu(embedded)


class DenseDenoiser(nn.Module):
    """Dense layers, to each of which the level is added."""

    def __init__(self, parameters: DenoiserParameters) -> None:
        super().__init__()
        size = math.prod(parameters.inputs)
        widths = [size, *parameters.hidden, size]
        self.embed = LevelEmbedding(parameters.embedding)
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        self.levels = nn.ModuleList(nn.Linear(parameters.embedding, after) for after in widths[1:])

    def forward(self, noisy: Tensor, levels: Tensor) -> Tensor:
        """Return the predicted noise, of the shape of `noisy`, (batch, ...)."""
        embedded = self.embed(levels)  # (batch, embedding)
        outputs = noisy.flatten(1)
        for place, (layer, level) in enumerate(zip(self.layers, self.levels, strict=True)):
            change = layer(functional.silu(outputs) if place else outputs) + level(embedded)  # (batch, hidden)
            outputs = outputs + change if 0 < place < len(self.layers) - 1 and change.shape == outputs.shape else change
        return outputs.reshape(noisy.shape)


class ResidualBlock(nn.Module):
    """Two convolutions, with the level added between them, around which what comes in passes by."""

    def __init__(self, before: int, after: int, embedding: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(8, before), nn.SiLU(), nn.Conv2d(before, after, 3, padding=1))
        self.level = nn.Linear(embedding, after)
        self.second = nn.Sequential(nn.GroupNorm(8, after), nn.SiLU(), nn.Conv2d(after, after, 3, padding=1))
        self.around = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, images: Tensor, embedded: Tensor) -> Tensor:
        """Return images (batch, after, height, width) of images (batch, before, height, width)."""
        inner = self.first(images) + self.level(embedded)[:, :, None, None]
        outputs: Tensor = self.around(images) + self.second(inner)
        return outputs


class UNet(nn.Module):
    """Convolutions down to a small image and up again, where each size also sees what the way down left there."""

    def __init__(self, parameters: DenoiserParameters) -> None:
        super().__init__()
        channels, embedding = parameters.channels, parameters.embedding
        self.embed = LevelEmbedding(embedding)
        self.enter = nn.Conv2d(parameters.inputs[0], channels[0], 3, padding=1)
        self.down, self.shrink, self.up, self.grow = (nn.ModuleList() for _ in range(4))
        for before, after in pairwise(channels):
            self.down.append(ResidualBlock(before, before, embedding))
            self.shrink.append(nn.Conv2d(before, after, 3, stride=2, padding=1))
            self.grow.append(nn.ConvTranspose2d(after, before, 2, stride=2))
            self.up.append(ResidualBlock(2 * before, before, embedding))
        self.middle = ResidualBlock(channels[-1], channels[-1], embedding)
        self.leave = nn.Sequential(
            nn.GroupNorm(8, channels[0]), nn.SiLU(), nn.Conv2d(channels[0], parameters.inputs[0], 3, padding=1)
        )

    def forward(self, noisy: Tensor, levels: Tensor) -> Tensor:
        """Return the predicted noise, of the shape of `noisy`, (batch, channels, height, width)."""
        embedded = self.embed(levels)  # (batch, embedding)
        images, passed = self.enter(noisy), []
        for block, shrink in zip(self.down, self.shrink, strict=True):
            passed.append(block(images, embedded))  # (batch, before, side, side)
            images = shrink(passed[-1])  # (batch, after, side / 2, side / 2)
        images = self.middle(images, embedded)
        for block, grow in zip(reversed(self.up), reversed(self.grow), strict=True):
            images = block(torch.cat([grow(images), passed.pop()], dim=1), embedded)
        outputs: Tensor = self.leave(images)
        return outputs
