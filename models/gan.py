"""Generative adversarial network: one network makes examples out of noise, another tells them from real ones.

The two play a zero-sum game: what the discriminator D wins, the generator G loses.

    min_G max_D V(D, G) = E_x log D(x) + E_z log(1 - D(G(z))),   z ~ N(0, I)

Against a fixed G the best answer is D(x) = p(x) / (p(x) + g(x)), and its value is twice the Jensen-Shannon divergence of the data's p and
the generator's g, less log 4. At the equilibrium g = p: D is 1/2 everywhere and V is -log 4. Where D tells examples apart with ease,
log(1 - D) hardly changes with G; so G raises log D(G(z)) instead, which has the same fixed point (the non-saturating loss).

    discriminator_loss = -V        generator_loss = -E_z log D(G(z))

Neither says how good the examples are: both are log 4 and log 2 at the equilibrium, and anywhere on the way. So the loss of an evaluation
is the energy distance between real examples X and made ones Y, which is 0 if they have one distribution and else above:

    2 E|X - Y| - E|X - X'| - E|Y - Y'|

Source: Goodfellow et al., "Generative Adversarial Nets", NeurIPS 2014, equation 1, algorithm 1, proposition 1 and theorem 1; Radford, Metz
and Chintala, "Unsupervised representation learning with deep convolutional generative adversarial networks", ICLR 2016, section 3 (the
networks for images); Szekely and Rizzo, "Energy statistics: a class of statistics based on distances", Journal of Statistical Planning and
Inference 143, 2013, equation 2.3.
https://arxiv.org/abs/1406.2661  https://arxiv.org/abs/1511.06434  https://doi.org/10.1016/j.jspi.2013.03.018
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from models import tasks
from models.activations import ACTIVATIONS, ActivationName
from models.errors import unsuited
from models.gradient import GradientLearner, GradientParameters, Step
from models.images import FlatImages
from models.learner import Contribution, Examples, Report, SampleRequest
from models.local_step import lowering
from models.random_stream import RandomStream
from models.settings import refuse_unused
from wire.spec import LocalSpec
from wire.tensors import State

EVALUATION_SAMPLES = 512
"""Examples that are made to be compared with a batch of real ones."""


class GANParameters(GradientParameters):
    """Parameters of the learner `gan`."""

    statistics: Literal["averaged"] = "averaged"
    """Means and variances of batch norm are averaged like parameters: the generator has no data of a client's own to make them of."""
    kind: Literal["points", "images"] = "points"
    """What is made: `points` by dense layers, or `images` of values 0 to 1 by convolutions, a DCGAN."""
    inputs: list[Annotated[int, Field(ge=1)]] = Field(default=[2], min_length=1, max_length=4)
    """Shape of one example; of images channels, height and width."""
    latent: int = Field(default=16, ge=1)
    """Numbers of noise that an example is made of."""
    hidden: list[Annotated[int, Field(ge=1)]] = Field(default=[128, 128], max_length=64)
    """Of points: width of each hidden layer, of both networks."""
    channels: list[Annotated[int, Field(ge=1)]] = Field(default=[32, 64], min_length=1, max_length=8)
    """Of images: channels of each convolution of the discriminator, which halves height and width; the generator has them in reverse."""
    activation: ActivationName | None = None
    """Activation of the hidden layers of both networks. Default: ReLU in the generator, leaky ReLU of slope 0.2 in the discriminator."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.kind == "images":
            part = 2 ** len(self.channels)
            if len(self.inputs) != 3 or any(side % part or side < 2 * part for side in self.inputs[1:]):
                raise ValueError(
                    f"inputs must be channels, height and width, both a multiple of {part} and at least {2 * part} for "
                    f"{len(self.channels)} convolutions, got {self.inputs}"
                )
        refuse_unused(self, f"where kind is {self.kind}", "hidden" if self.kind == "images" else "channels")
        return self


class Players(nn.Module):
    """Both networks: noise (batch, latent) to examples (batch, ...), and examples to the logit of D, (batch, 1)."""

    def __init__(self, generator: nn.Module, discriminator: nn.Module) -> None:
        super().__init__()
        self.generator = generator
        self.discriminator = discriminator


def discriminator_loss(real: Tensor, made: Tensor) -> Tensor:
    """Return -V, nats, from the logits of D for real and made examples: -log D(x) is softplus(-logit), -log(1 - D(x)) softplus(logit)."""
    return functional.softplus(-real).mean() + functional.softplus(made).mean()


def generator_loss(made: Tensor) -> Tensor:
    """Return the non-saturating loss, nats, from the logits of D for made examples."""
    return functional.softplus(-made).mean()


def energy_distance(left: Tensor, right: Tensor) -> Tensor:
    """Return the energy distance of the distributions that two sets of examples, each (examples, ...), were drawn from.

    Without bias, so that of one distribution it is 0 in the mean, and at times below.
    """
    left, right = left.flatten(1).float(), right.flatten(1).float()
    return 2 * _distances(left, right).mean() - _spread(left) - _spread(right)


def _spread(points: Tensor) -> Tensor:
    """Return the mean distance of two different points; 0 where there is one alone."""
    return _distances(points, points).sum() / max(1, len(points) * (len(points) - 1))


def _distances(left: Tensor, right: Tensor) -> Tensor:
    # Not by matrix products, after which a point may have a distance from itself.
    return torch.cdist(left, right, compute_mode="donot_use_mm_for_euclid_dist")


class GAN(GradientLearner):
    """Generative adversarial network: makes points or images out of noise.

    Both networks federate. Each has an optimizer of its own, of the kind that `local.optimizer` says; a step is one of the discriminator
    and then one of the generator. `train_loss` is the sum of both losses.
    """

    samples_text = False
    task = "generate"
    data = "points, images"
    parameters: GANParameters
    _module: Players

    def build(self) -> nn.Module:
        """Return generator and discriminator."""
        return _dense_players(self.parameters) if self.parameters.kind == "points" else _image_players(self.parameters)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the energy distance of made examples and real ones, `targets`, each (examples, ...)."""
        return energy_distance(outputs, targets)

    def measure(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Return the losses of both for made examples and real ones, `targets`."""
        real, made = self._judge(targets), self._judge(outputs)
        return {"generator_loss": generator_loss(made), "discriminator_loss": discriminator_loss(real, made)}

    def measure_batch(self, batch: Examples) -> Mapping[str, Tensor]:
        """Return the energy distance of a batch and as many made examples as always, and the losses of both."""
        made = self._make(self._noise(EVALUATION_SAMPLES))
        return {"loss": self.loss(made, batch.inputs), **self.measure(made, batch.inputs)}

    def fit(
        self, state: State, data: Examples, local: LocalSpec, generator: torch.Generator, report: Report
    ) -> Contribution:
        """Train both, and report the mean losses of both in the last epoch. Raises as `GradientLearner.fit`."""
        found = super().fit(state, data, local, generator, report)
        if not local.epochs:
            return found
        last = torch.stack(self._losses[-(len(self._losses) // local.epochs) :]).sum(0) / len(data)
        names = ("train_generator_loss", "train_discriminator_loss")
        return replace(found, metrics={**found.metrics, **dict(zip(names, last.tolist(), strict=True))})

    def begin(self, local: LocalSpec) -> Step:
        """Return what takes a step of the discriminator and one of the generator, each with its own optimizer."""
        train_discriminator = lowering(self._module.discriminator.parameters(), local)
        train_generator = lowering(self._module.generator.parameters(), local)
        self._losses: list[Tensor] = []

        def step(batch: Examples) -> Tensor:
            noise = self._noise(len(batch))
            with torch.no_grad():
                made = self._make(noise)
            of_discriminator = train_discriminator(
                lambda: discriminator_loss(self._judge(batch.inputs), self._judge(made))
            )
            # Autocast has kept both networks' weights, those of the discriminator as they were before its step.
            torch.clear_autocast_cache()
            of_generator = train_generator(lambda: generator_loss(self._judge(self._make(noise))))
            self._losses.append(torch.stack([of_generator, of_discriminator]) * len(batch))
            return of_generator + of_discriminator

        return step

    @torch.no_grad()
    def sample(self, state: State, request: SampleRequest) -> Tensor:
        """Return what the generator makes, float32 (count, ...)."""
        self._load(state)
        self._module.eval()
        seed = int(torch.randint(1 << 62, (), generator=request.generator))
        with RandomStream(seed, self._device).drawing(), self._autocast():
            return self._make(self._noise(request.count))

    def check(self, data: Examples) -> None:
        """Check that examples have the shape `inputs`, and of images the values 0 to 1."""
        tasks.check_features("gan", data, tuple(self.parameters.inputs))
        tasks.check_bystanders("gan", data)
        if self.parameters.kind == "images" and not ((data.inputs >= 0) & (data.inputs <= 1)).all():
            found = f"{float(data.inputs.min()):g} to {float(data.inputs.max()):g}"
            raise unsuited("Learner gan: values of images must be 0 to 1", found)

    def _noise(self, count: int) -> Tensor:
        return torch.randn(count, self.parameters.latent, device=self._device)

    def _make(self, noise: Tensor) -> Tensor:
        examples: Tensor = self._module.generator(noise)
        return examples.float()

    def _judge(self, examples: Tensor) -> Tensor:
        """Return the logits of D, (examples,)."""
        logits: Tensor = self._module.discriminator(examples)
        return logits.float().squeeze(1)


def _dense_players(parameters: GANParameters) -> Players:
    shape, size, hidden = tuple(parameters.inputs), math.prod(parameters.inputs), parameters.hidden
    of_generator, of_discriminator = _activations(parameters)
    generator = [*_dense([parameters.latent, *hidden, size], of_generator), nn.Unflatten(1, shape)]  # (batch, *inputs)
    discriminator = [nn.Flatten(), *_dense([size, *hidden, 1], of_discriminator)]  # (batch, 1)
    return Players(nn.Sequential(*generator), nn.Sequential(*discriminator))


def _activations(parameters: GANParameters) -> tuple[nn.Module, nn.Module]:
    """Return what follows the hidden layers of generator and discriminator; neither has parameters, so all layers may share it."""
    if parameters.activation is not None:
        return ACTIVATIONS[parameters.activation](), ACTIVATIONS[parameters.activation]()
    return nn.ReLU(), nn.LeakyReLU(0.2)


def _dense(widths: Sequence[int], activation: nn.Module) -> list[nn.Module]:
    """Return layers from each width to the next, with an activation, which has no parameters, between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), activation]
    return layers[:-1]


def _image_players(parameters: GANParameters) -> Players:
    """Return a DCGAN: strides in place of pools, batch norm everywhere but where images come in and go out, weights drawn near 0."""
    channels, height, width = parameters.inputs
    top, part = parameters.channels[-1], 2 ** len(parameters.channels)
    shape = (top, height // part, width // part)
    of_generator, of_discriminator = _activations(parameters)
    up: list[nn.Module] = [nn.Linear(parameters.latent, math.prod(shape)), nn.Unflatten(1, shape)]
    for before, after in pairwise([*reversed(parameters.channels), channels]):
        up += [nn.BatchNorm2d(before), of_generator, nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)]
    down: list[nn.Module] = []
    for before, after in pairwise([channels, *parameters.channels]):
        norm = [nn.BatchNorm2d(after)] if down else []
        down += [nn.Conv2d(before, after, 4, stride=2, padding=1), *norm, of_discriminator]
    # A sigmoid is the paper's tanh, for values of 0 to 1.
    players = Players(
        nn.Sequential(*up, nn.Sigmoid()),  # (batch, *inputs)
        nn.Sequential(*down, FlatImages(), nn.Linear(math.prod(shape), 1)),  # (batch, 1)
    )
    for layer in players.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0 if isinstance(layer, nn.BatchNorm2d) else 0.0, 0.02)
    return players
