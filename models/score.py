"""Denoising score matching: a network learns which way the data grows denser, at several levels of noise.

    score          s(x, sigma) = gradient of log q_sigma(x),   q_sigma = the data with noise N(0, sigma^2 I) in it
    denoising      E ||s_theta(x + sigma e, sigma) + e / sigma||^2,   e ~ N(0, I), is least where s_theta is the score
    loss           mean of sigma^2 times that over the levels sigma_1 > ... > sigma_L, so that each counts the same

With s_theta = -e_theta / sigma the loss is E ||e - e_theta||^2: what is learned is to predict the noise. Here the loss is of one number of
an example, and twice the paper's, which halves it.

Were the data N(m, d^2 I), the best e_theta of x' = x + sigma e would be sigma (x' - m) / (d^2 + sigma^2). A network F says what to add:

    e_theta(x', sigma) = sigma (x' - m) / t^2 + sigma / t * exp(g(sigma)) F((x' - m) / t, sigma),   t^2 = d^2 + sigma^2

so that it is given inputs of one size at all levels. The score of a smooth density stays finite as sigma falls, and e_theta falls with
sigma; where data lie near a surface it does not. The scale g is learned, and begins at 0, which suits what is smooth. A network that puts
out e_theta itself has errors of one size at all levels, and divided by a small sigma they are large errors of the score.

Samples are drawn by annealed Langevin dynamics, from the largest sigma to the smallest, so many steps at each:

    x <- x + alpha / 2 * s_theta(x, sigma) + sqrt(alpha) z,   z ~ N(0, I),   alpha = step_size * sigma^2

and a last step to the mean, x + sigma_L^2 s_theta(x, sigma_L), which takes out the noise that is left.

Source: Vincent, "A Connection Between Score Matching and Denoising Autoencoders", Neural Computation 23, 2011, equation 9; Song and Ermon,
"Generative Modeling by Estimating Gradients of the Data Distribution", NeurIPS 2019, equations 5 and 6, algorithm 1; Song and Ermon,
"Improved Techniques for Training Score-Based Generative Models", NeurIPS 2020, section 3.3 (s_theta by sigma); Karras, Aittala, Aila and
Laine, "Elucidating the Design Space of Diffusion-Based Generative Models", NeurIPS 2022, section 5 (what is skipped, and the inputs' size);
Jolicoeur-Martineau et al., "Adversarial score matching and improved sampling for image generation", ICLR 2021, section 3.1 (the last step).
https://doi.org/10.1162/NECO_a_00142  https://arxiv.org/abs/1907.05600  https://arxiv.org/abs/2006.09011  https://arxiv.org/abs/2206.00364
https://arxiv.org/abs/2009.05475
"""

from collections.abc import Callable
from functools import cached_property, partial
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from models import tasks
from models.denoiser import Denoiser, DenoiserParameters, LevelEmbedding
from models.errors import unsuited
from models.learner import Examples
from wire.tensors import State

Score = Callable[[Tensor], Tensor]
"""The score of examples, (batch, ...), of their shape."""


class ScoreMatchingParameters(DenoiserParameters):
    """Parameters of the learner `score_matching`."""

    noise_levels: int = Field(default=12, ge=1, le=10_000)
    """Levels of noise, from `sigma_high` to `sigma_low`, each the same part of the one before."""
    sigma_high: float = Field(default=1.0, gt=0)
    """Largest standard deviation of the noise, about as large as examples are apart."""
    sigma_low: float = Field(default=0.05, gt=0)
    """Smallest standard deviation of the noise, too small to matter to an example."""
    mean: float = 0.3
    """About the mean of the data's numbers, m."""
    deviation: float = Field(default=0.4, gt=0)
    """About their standard deviation, d."""
    langevin_steps: int = Field(default=100, ge=1, le=100_000)
    """Steps at each level when samples are drawn."""
    step_size: float = Field(default=0.2, gt=0, lt=4)
    """Step of the Langevin dynamics as a part of sigma squared."""

    @model_validator(mode="after")
    def _falls(self) -> Self:
        if self.sigma_low > self.sigma_high:
            raise ValueError(f"sigma_low must be at most sigma_high ({self.sigma_high:g}), got {self.sigma_low:g}")
        return self


class ScoreMatching(Denoiser):
    """Score network: learns which way the data grows denser.

    That is the gradient of its log density, along which examples are drawn out of noise.
    """

    task = "generate"
    data = "images, vectors"
    parameters: ScoreMatchingParameters

    @property
    def levels(self) -> int:
        """The levels of noise."""
        return self.parameters.noise_levels

    @cached_property
    def sigmas(self) -> Tensor:
        """Standard deviation of the noise at each level, falling, float32 (levels,)."""
        high, low = (torch.tensor(sigma).log10() for sigma in (self.parameters.sigma_high, self.parameters.sigma_low))
        return torch.logspace(float(high), float(low), self.levels)

    def build(self) -> nn.Module:
        """Return the network, with a scale for each level."""
        return LevelScale(super().build(), self.parameters.embedding)

    def predict(self, noisy: Tensor, levels: Tensor) -> Tensor:
        """Return e_theta, float32 (batch, ...): of N(m, d^2 I), and what the network adds."""
        sigmas = self._sigmas_of(levels, noisy)
        spread = torch.hypot(sigmas, torch.full_like(sigmas, self.parameters.deviation))
        scaled = (noisy - self.parameters.mean) / spread
        return sigmas / spread * (scaled + super().predict(scaled, levels))

    def corrupt(self, inputs: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """Return x + sigma e."""
        return inputs + self._sigmas_of(levels, inputs) * noise

    @torch.no_grad()
    def score(self, state: State, inputs: Tensor, level: int) -> Tensor:
        """Return s_theta of `inputs`, float32 (examples, ...), at a level from 0, the most noise, to `noise_levels` - 1."""
        self._load(state)
        self._module.eval()
        with self._autocast():
            return self._score_at(level, inputs.to(self._device))

    def draw(self, count: int) -> Tensor:
        """Walk from the largest level of noise to the smallest."""
        samples = self.sigmas[0] * torch.randn(count, *self.parameters.inputs, device=self._device)
        for level, sigma in enumerate(self.sigmas.tolist()):
            score = partial(self._score_at, level)
            step = self.parameters.step_size * sigma**2
            samples = langevin(samples, score, step, self.parameters.langevin_steps)
        last: Tensor = samples + sigma**2 * score(samples)
        return last

    def check(self, data: Examples) -> None:
        """Check that examples have the shape `inputs` and are finite."""
        tasks.check_features("score_matching", data, tuple(self.parameters.inputs))
        tasks.check_bystanders("score_matching", data)
        if not (is_finite := data.inputs.isfinite()).all():
            row = int(is_finite.flatten(1).all(1).logical_not().nonzero()[0])
            raise unsuited("Learner score_matching: values must be finite", f"another one in example {row}")

    def _score_at(self, level: int, inputs: Tensor) -> Tensor:
        levels = torch.full((len(inputs),), level, device=self._device)
        return -self.predict(inputs, levels) / self._sigmas_of(levels, inputs)

    def _sigmas_of(self, levels: Tensor, examples: Tensor) -> Tensor:
        """Return the standard deviation at levels, int64 (batch,), with as many axes as the examples."""
        return self.sigmas.to(self._device)[levels].reshape(-1, *[1] * (examples.dim() - 1))


class LevelScale(nn.Module):
    """A network whose outputs are multiplied by a number that is learned for each level, 1 at first."""

    def __init__(self, network: nn.Module, embedding: int) -> None:
        super().__init__()
        self.network = network
        self.embed = LevelEmbedding(embedding)
        self.log_scale = nn.Linear(embedding, 1)
        nn.init.zeros_(self.log_scale.weight)
        nn.init.zeros_(self.log_scale.bias)

    def forward(self, noisy: Tensor, levels: Tensor) -> Tensor:
        """Return the network's outputs, (batch, ...), scaled."""
        scales: Tensor = self.log_scale(self.embed(levels)).exp()  # (batch, 1)
        outputs: Tensor = self.network(noisy, levels)
        return scales.reshape(-1, *[1] * (outputs.dim() - 1)) * outputs


def langevin(samples: Tensor, score: Score, step: float, count: int) -> Tensor:
    """Take `count` steps of Langevin dynamics and return where they lead. Draws from torch's global generator.

    Args:
        samples: Where they begin, (batch, ...).
        score: The score of the distribution that they come to.
        step: Variance of the noise of a step; the smaller, the nearer they come.
        count: Steps.
    """
    for _ in range(count):
        samples = samples + 0.5 * step * score(samples) + step**0.5 * torch.randn_like(samples)
    return samples
