"""Variational autoencoder: a network that writes examples from a few hidden numbers, and one that guesses the numbers from an example.

    p(z) = N(0, I),   p(x | z) = Bernoulli(sigmoid(f(z))) or N(f(z), s^2 I),   q(z | x) = N(m(x), diag v(x))

Training maximises the evidence lower bound, because the likelihood itself is an integral over z:

    log p(x) >= ELBO(x) = E_q[log p(x | z)] - KL(q(z | x) || p(z))
    KL = 1/2 sum_j (m_j^2 + v_j - 1 - log v_j)

The mean over q is taken of one draw z = m + sqrt(v) * e with e from N(0, I), through which gradients pass to m and v. More draws give a
tighter bound, log 1/K sum_k p(x, z_k) / q(z_k | x), which is the likelihood itself in the limit.

Source: Kingma and Welling, "Auto-Encoding Variational Bayes", ICLR 2014, equations 3, 4 and 10, appendices B and C; Burda, Grosse and
Salakhutdinov, "Importance Weighted Autoencoders", ICLR 2016, equation 8 (the tighter bound).
https://arxiv.org/abs/1312.6114  https://arxiv.org/abs/1509.00519
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from models import tasks
from models.activations import ACTIVATIONS, ActivationName
from models.errors import unsuited
from models.gradient import GradientLearner, GradientParameters
from models.learner import Examples, SampleRequest
from models.random_stream import RandomStream
from wire.tensors import State

LOG_2PI = math.log(2 * math.pi)


class VAEParameters(GradientParameters):
    """Parameters of the learner `vae`."""

    inputs: list[Annotated[int, Field(ge=1)]] = Field(default=[64], min_length=1, max_length=4)
    """Shape of one example; more than one axis is flattened."""
    hidden: list[Annotated[int, Field(ge=1)]] = Field(default=[64], max_length=64)
    """Width of each hidden layer from the example to the latent numbers; the way back has them in the other order."""
    activation: ActivationName = "relu"
    """Activation after each hidden layer."""
    latent: int = Field(default=8, ge=1)
    """Latent numbers of an example."""
    decoder: Literal["bernoulli", "gaussian"] = "bernoulli"
    """What an example is drawn from: `bernoulli` for values of 0 to 1, `gaussian` for any, with one variance that is learned."""
    importance_samples: int = Field(default=0, ge=0, le=10_000)
    """Draws of the importance-weighted estimate that an evaluation reports as `log_likelihood`; 0: none."""


class Draw(nn.Module):
    """Draws z = m + sqrt(v) * e: the reparameterisation trick (equation 4). Has no parameters of its own."""

    def forward(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """Draw from the normal distribution of that mean and variance, from torch's global generator."""
        return mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)


class Autoencoder(nn.Module):
    """Encoder q(z | x) and decoder p(x | z). Calling it gives the two terms of the ELBO for each example."""

    def __init__(self, parameters: VAEParameters) -> None:
        super().__init__()
        self.shape = tuple(parameters.inputs)
        size, latent = math.prod(self.shape), parameters.latent
        self.encoder = dense([size, *parameters.hidden, 2 * latent], parameters.activation)
        self.draw = Draw()
        self.decoder = dense([latent, *reversed(parameters.hidden), size], parameters.activation)
        is_gaussian = parameters.decoder == "gaussian"
        self.log_variance = nn.Parameter(torch.zeros(())) if is_gaussian else None

    def forward(self, inputs: Tensor) -> Tensor:
        """Return -E_q[log p(x | z)], of one draw, and KL(q(z | x) || p(z)): (batch, 2), nats."""
        mean, log_variance = self.encode(inputs)
        latent = self.draw(mean, log_variance)  # (batch, latent)
        return torch.stack([-self.log_likelihoods(inputs, latent), divergences(mean, log_variance)], dim=1)

    def encode(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and logarithm of the variance of q(z | x), each (batch, latent)."""
        mean, log_variance = self.encoder(inputs.flatten(1)).float().chunk(2, dim=1)
        return mean, log_variance

    def log_likelihoods(self, inputs: Tensor, latent: Tensor) -> Tensor:
        """Return log p(x | z) of each example, (batch,), nats."""
        outputs, inputs = self.outputs(latent), inputs.flatten(1)  # (batch, size)
        if self.log_variance is None:
            return -functional.binary_cross_entropy_with_logits(outputs, inputs, reduction="none").sum(1)
        squares = (inputs - outputs).square() * torch.exp(-self.log_variance)
        return -0.5 * (squares + self.log_variance + LOG_2PI).sum(1)

    def outputs(self, latent: Tensor) -> Tensor:
        """Return f(z), (batch, size): logits for Bernoulli, means for a normal distribution."""
        outputs: Tensor = self.decoder(latent)
        return outputs.float()

    def log_weights(self, inputs: Tensor) -> Tensor:
        """Return log p(x, z) / q(z | x) of one draw of z for each example, (batch,): its mean is the ELBO."""
        mean, log_variance = self.encode(inputs)
        latent = self.draw(mean, log_variance)
        # log p(z) - log q(z | x), in which log 2 pi cancels.
        squares = (latent - mean).square() * torch.exp(-log_variance)
        prior_to_posterior: Tensor = 0.5 * (squares + log_variance - latent.square()).sum(1)
        return self.log_likelihoods(inputs, latent) + prior_to_posterior

    def means(self, latent: Tensor) -> Tensor:
        """Return the mean of p(x | z), (batch, ...)."""
        outputs = self.outputs(latent).view(-1, *self.shape)
        return outputs.sigmoid() if self.log_variance is None else outputs


def dense(widths: Sequence[int], activation: ActivationName) -> nn.Sequential:
    """Return dense layers of these widths with an activation between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), ACTIVATIONS[activation]()]  # (batch, after)
    return nn.Sequential(*layers[:-1])


def divergences(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return KL(N(mean, variance) || N(0, I)) of each row, (batch,), nats (appendix B)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


class VAE(GradientLearner):
    """Variational autoencoder: makes examples out of a few hidden numbers.

    Targets have no part in it. The loss is minus the ELBO, nats an example: `reconstruction`, which is -E_q[log p(x | z)], plus `kl`.
    """

    samples_text = False
    task = "generate"
    data = "vectors, small images"
    parameters: VAEParameters
    _module: Autoencoder

    def build(self) -> nn.Module:
        """Return encoder and decoder."""
        return Autoencoder(self.parameters)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Minus the ELBO."""
        return outputs.sum(1).mean()

    def measure(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """The ELBO and its two terms."""
        reconstruction, kl = outputs.mean(0)
        return {"elbo": -reconstruction - kl, "reconstruction": reconstruction, "kl": kl}

    def measure_batch(self, batch: Examples) -> Mapping[str, Tensor]:
        """Loss, ELBO and its terms, and if it is wanted the importance-weighted estimate of log p(x)."""
        means = super().measure_batch(batch)
        if not (count := self.parameters.importance_samples):
            return means
        total = self._module.log_weights(batch.inputs).double()  # (batch,)
        for _ in range(count - 1):
            total = torch.logaddexp(total, self._module.log_weights(batch.inputs).double())
        return {**means, "log_likelihood": (total - math.log(count)).mean()}

    @torch.no_grad()
    def sample(self, state: State, request: SampleRequest) -> Tensor:
        """Return the means of p(x | z) for z drawn from the prior, float32 (count, ...): without the noise of single pixels."""
        self._load(state)
        self._module.eval()
        seed = int(torch.randint(1 << 62, (), generator=request.generator))
        with RandomStream(seed, self._device).drawing(), self._autocast():
            latent = torch.randn(request.count, self.parameters.latent, device=self._device)
            return self._module.means(latent)

    def check(self, data: Examples) -> None:
        """Check that examples have the shape `inputs` and values that the decoder can give."""
        tasks.check_features("vae", data, tuple(self.parameters.inputs))
        tasks.check_bystanders("vae", data)
        is_wrong = ~((data.inputs >= 0) & (data.inputs <= 1))
        if self.parameters.decoder == "bernoulli" and is_wrong.any():
            value = float(data.inputs[is_wrong][0])
            raise unsuited(
                "Learner vae: values must be 0 to 1 for a bernoulli decoder",
                f"{value:g}",
                "Scale them, or take gaussian.",
            )
