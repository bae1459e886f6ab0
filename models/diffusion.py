"""Denoising diffusion: examples are dissolved in noise step by step, and a network learns the way back.

    forward        q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I),   t = 1 ... T
    at once        q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I),   abar_t = product of (1 - beta_s) up to t       (equation 4)
    back           q(x_{t-1} | x_t, x_0) = N(mu_t(x_t, x_0), btilde_t I)                                            (equations 6 and 7)
                   mu_t = sqrt(abar_{t-1}) beta_t / (1 - abar_t) x_0 + sqrt(1 - beta_t) (1 - abar_{t-1}) / (1 - abar_t) x_t
                   btilde_t = (1 - abar_{t-1}) / (1 - abar_t) beta_t
    loss           E ||e - e_theta(sqrt(abar_t) x_0 + sqrt(1 - abar_t) e, t)||^2,   t uniform, e ~ N(0, I)              (equation 14)

To sample, begin with noise x_T and go back: the network's noise gives an x_0, and the posterior of that x_0 gives x_{t-1} (algorithm 2).

Source: Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models", NeurIPS 2020; Nichol and Dhariwal, "Improved Denoising Diffusion
Probabilistic Models", ICML 2021, equation 17 (the cosine schedule).
https://arxiv.org/abs/2006.11239  https://arxiv.org/abs/2102.09672
"""

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from models import tasks
from models.denoiser import Denoiser, DenoiserParameters
from models.errors import unsuited
from models.learner import Examples

ScheduleName = Literal["linear", "cosine"]


@dataclass(frozen=True)
class Schedule:
    """How much noise each step adds.

    Steps are counted from 0: row t is step t + 1 of the paper.

    Attributes:
        betas: Variance of the noise of each step, float64 (steps,).
    """

    betas: Tensor = field(repr=False)

    @classmethod
    def named(cls, name: ScheduleName, steps: int) -> "Schedule":
        """Return the schedule that rises linearly, from 1e-4 to 0.02 in 1,000 steps, or whose abar falls like a squared cosine."""
        if name == "linear":
            scale = 1000 / steps
            return cls(torch.linspace(1e-4 * scale, 0.02 * scale, steps, dtype=torch.float64).clamp(max=0.999))
        places = torch.arange(steps + 1, dtype=torch.float64) / steps
        falling = torch.cos((places + 0.008) / 1.008 * math.pi / 2).square()
        return cls((1 - falling[1:] / falling[:-1]).clamp(max=0.999))

    @cached_property
    def kept(self) -> Tensor:
        """What is left of the variance of an example after each step, abar, float64 (steps,)."""
        return (1 - self.betas).cumprod(0)

    @cached_property
    def kept_before(self) -> Tensor:
        """The same before each step, float64 (steps,)."""
        return torch.cat([torch.ones(1, dtype=torch.float64), self.kept[:-1]])

    def noisy(self, clean: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        """Return x_t of x_0 and the noise in it (equation 4), float32.

        Args:
            clean: x_0, (batch, ...).
            noise: Standard normal, of that shape.
            steps: t of each, int64 (batch,).
        """
        kept = self.kept[steps.cpu()]
        return _times(kept.sqrt(), clean) + _times((1 - kept).sqrt(), noise)

    def clean(self, noisy: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        """Return x_0 of x_t and the noise in it: what `noisy` takes back."""
        kept = self.kept[steps.cpu()]
        return _times(kept.rsqrt(), noisy) - _times((1 / kept - 1).sqrt(), noise)

    def posterior(self, clean: Tensor, noisy: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean, (batch, ...), and the variance, (batch,), of q(x_{t-1} | x_t, x_0) (equation 7)."""
        rows = steps.cpu()
        beta, kept, before = self.betas[rows], self.kept[rows], self.kept_before[rows]
        mean = _times(before.sqrt() * beta / (1 - kept), clean)
        mean = mean + _times((1 - beta).sqrt() * (1 - before) / (1 - kept), noisy)
        return mean, (1 - before) / (1 - kept) * beta


def _times(factors: Tensor, examples: Tensor) -> Tensor:
    """Return examples, (batch, ...), each times its factor, float64 (batch,), in the type of the examples."""
    factors = factors.to(examples.device, examples.dtype)
    return factors.reshape(-1, *[1] * (examples.dim() - 1)) * examples


class DDPMParameters(DenoiserParameters):
    """Parameters of the learner `ddpm`."""

    steps: int = Field(default=100, ge=2, le=10_000)
    """Steps from an example to noise, T."""
    schedule: ScheduleName = "linear"
    """How the noise of a step grows."""
    low: float = 0.0
    """Smallest value of the data."""
    high: float = 1.0
    """Largest value of the data; from `low` to here is scaled to -1 to 1."""

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.high <= self.low:
            raise ValueError(f"high must be above low ({self.low:g}), got {self.high:g}")
        return self


class DDPM(Denoiser):
    """Denoising diffusion model: makes examples out of noise, step by step."""

    task = "generate"
    data = "images, vectors"
    parameters: DDPMParameters

    @property
    def levels(self) -> int:
        """The steps."""
        return self.parameters.steps

    @cached_property
    def schedule(self) -> Schedule:
        """How much noise each step adds."""
        return Schedule.named(self.parameters.schedule, self.parameters.steps)

    def corrupt(self, inputs: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """Return x_t of the scaled examples."""
        low, high = self.parameters.low, self.parameters.high
        return self.schedule.noisy((inputs - low) * (2 / (high - low)) - 1, noise, levels)

    def draw(self, count: int) -> Tensor:
        """Go back from noise, step by step, and keep within the range of the data what comes out at the end.

        What the network takes for x_0 on the way is not kept within it: far up, where the noise in x_t is many times what is left of x_0,
        that would leave out its errors to one side alone, and samples would come out too much alike.
        """
        noisy = torch.randn(count, *self.parameters.inputs, device=self._device)
        for step in reversed(range(self.parameters.steps)):
            steps = torch.full((count,), step, device=self._device)
            clean = self.schedule.clean(noisy, self.predict(noisy, steps), steps)
            mean, variance = self.schedule.posterior(clean, noisy, steps)
            # The last step's variance is 0.
            noisy = mean + _times(variance.sqrt(), torch.randn_like(noisy))
        return self.parameters.low + (noisy.clamp(-1, 1) + 1) * ((self.parameters.high - self.parameters.low) / 2)

    def check(self, data: Examples) -> None:
        """Check that examples have the shape `inputs` and values from `low` to `high`."""
        tasks.check_features("ddpm", data, tuple(self.parameters.inputs))
        tasks.check_bystanders("ddpm", data)
        low, high = self.parameters.low, self.parameters.high
        if not ((data.inputs >= low) & (data.inputs <= high)).all():
            found = f"{float(data.inputs.min()):g} to {float(data.inputs.max()):g}"
            raise unsuited(f"Learner ddpm: values must be low to high, {low:g} to {high:g}", found, "Set low and high.")
