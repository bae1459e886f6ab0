"""Restricted Boltzmann machine: binary pixels v and hidden units h, joined by weights, and no unit by another of its own layer.

    p(v, h) = exp(-E(v, h)) / Z,   E(v, h) = -b'v - c'h - h'W v
    p(h_j = 1 | v) = sigmoid(c + W v)_j,   p(v_i = 1 | h) = sigmoid(b + W'h)_i
    p(v) = exp(-F(v)) / Z,   F(v) = -b'v - sum_j log(1 + exp(c + W v)_j)

Contrastive divergence follows the gradient of log p(v), in which draws of the model are those of a Gibbs chain that started at the data
and took k steps:

    d log p / dW  ~  <sigmoid(c + W v) v'>_data - <sigmoid(c + W v) v'>_chain

Here it is the gradient of a loss, F(v_data) - F(v_chain), whose second v is held fixed. They are the same because
dF/dW = -sigmoid(c + W v) v', dF/db = -v and dF/dc = -sigmoid(c + W v); as a loss it goes with every optimizer, proximal term and clipping
of other learners.

Source: Hinton, "Training Products of Experts by Minimizing Contrastive Divergence", Neural Computation 14(8), 2002, section 5; Hinton, "A
Practical Guide to Training Restricted Boltzmann Machines", UTML TR 2010-003.
https://doi.org/10.1162/089976602760128018  https://www.cs.toronto.edu/~hinton/absps/guideTR.pdf
"""

import math
from collections.abc import Mapping
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from models import tasks
from models.errors import unsuited
from models.gradient import GradientLearner, GradientParameters
from models.learner import Examples, SampleRequest
from models.partition_function import Couplings, annealed_log_partition, exact_log_partition
from models.random_stream import RandomStream
from models.settings import refuse_unused
from wire.tensors import State

ENUMERABLE_UNITS = 20
"""Most units of the smaller layer whose states, about a million, are counted one by one."""


class RBMParameters(GradientParameters):
    """Parameters of the learner `rbm`."""

    inputs: list[Annotated[int, Field(ge=1)]] = Field(default=[64], min_length=1, max_length=4)
    """Shape of one example: a visible unit for each of its values."""
    hidden: int = Field(default=16, ge=1)
    """Hidden units."""
    steps: int = Field(default=1, ge=1, le=1000)
    """Steps of the Gibbs chain that contrastive divergence takes from the data, k in CD-k."""
    threshold: float = Field(default=0.5, ge=0, lt=1)
    """A value above it is 1, any other is 0."""
    partition: Literal["auto", "exact", "annealed"] = "auto"
    """How an evaluation finds log Z: over all states of the smaller layer, by annealed importance sampling, or exactly where it has at most
    20 units."""
    annealing_chains: int = Field(default=100, ge=1, le=10_000)
    """Chains of annealed importance sampling."""
    annealing_steps: int = Field(default=1000, ge=1, le=100_000)
    """Temperatures that each of them passes through."""
    sampling_steps: int = Field(default=1000, ge=1, le=100_000)
    """Steps of the Gibbs chain that ends in a sample."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.partition == "exact" and self.smaller_layer > ENUMERABLE_UNITS:
            raise ValueError(
                f"partition must be auto or annealed where both layers have more than {ENUMERABLE_UNITS} units, got exact"
            )
        if self.is_exact:
            refuse_unused(self, "where log Z is found exactly", "annealing_chains", "annealing_steps")
        return self

    @property
    def smaller_layer(self) -> int:
        """Units of the smaller layer."""
        return min(math.prod(self.inputs), self.hidden)

    @property
    def is_exact(self) -> bool:
        """Whether log Z is found exactly."""
        return self.partition != "annealed" and self.smaller_layer <= ENUMERABLE_UNITS


class Machine(nn.Module):
    """The units' weights and biases. Calling it gives the free energy."""

    def __init__(self, visible: int, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.01 * torch.randn(hidden, visible))
        self.visible_bias = nn.Parameter(torch.zeros(visible))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))

    def forward(self, visible: Tensor) -> Tensor:
        """Return F(v) of each row, (batch,)."""
        activations = functional.linear(visible, self.weight, self.hidden_bias).float()  # (batch, hidden)
        return -(visible * self.visible_bias).sum(1) - functional.softplus(activations).sum(1)

    def step(self, visible: Tensor) -> Tensor:
        """Draw h from p(h | v), then v from p(v | h): one step of the Gibbs chain, (batch, visible)."""
        hidden = functional.linear(visible, self.weight, self.hidden_bias).float().sigmoid().bernoulli()
        return functional.linear(hidden, self.weight.T, self.visible_bias).float().sigmoid().bernoulli()

    def pseudo_log_likelihoods(self, visible: Tensor) -> Tensor:
        """Return sum_i log p(v_i | all other v) of each row, (batch,), nats: Z cancels in it."""
        activations = functional.linear(visible, self.weight, self.hidden_bias).float()  # (batch, hidden)
        unflipped = functional.softplus(activations).sum(1)
        total = torch.zeros_like(unflipped)
        for unit in range(visible.shape[1]):
            flip = 1 - 2 * visible[:, unit]  # (batch,)
            flipped = activations + flip[:, None] * self.weight[:, unit]
            # F of the flipped v less F of v.
            rise = unflipped - functional.softplus(flipped).sum(1) - flip * self.visible_bias[unit]
            total += functional.logsigmoid(rise)
        return total

    @property
    def couplings(self) -> Couplings:
        """Weights and biases, on the CPU in float64."""
        return Couplings(*(tensor.detach().cpu().double() for tensor in self.parameters()))


class RBM(GradientLearner):
    """Restricted Boltzmann machine: a distribution over binary examples.

    It learns by contrastive divergence. The loss of an evaluation is minus `log_likelihood`, nats an example. Targets have no part in it.
    """

    samples_text = False
    task = "generate"
    data = "binary vectors, small images"
    parameters: RBMParameters
    _module: Machine

    def build(self) -> nn.Module:
        """Return the machine."""
        return Machine(math.prod(self.parameters.inputs), self.parameters.hidden)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The free energy, which is minus log p(v) up to log Z."""
        return outputs.mean()

    def measure(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Nothing more can be told from free energies."""
        return {}

    def batch_loss(self, batch: Examples) -> Tensor:
        """The free energy of the data less that of the chain's end, which has the gradient of contrastive divergence.

        It tells nothing of the likelihood: it may be negative, and need not fall.
        """
        data = self._binarised(batch.inputs)
        with torch.no_grad():
            chain = data
            for _ in range(self.parameters.steps):
                chain = self._module.step(chain)
        return self.loss(self._module(data), batch.targets) - self.loss(self._module(chain), batch.targets)

    def measure_batch(self, batch: Examples) -> Mapping[str, Tensor]:
        """Free energy, which `finish` turns into the likelihood, and pseudo-likelihood."""
        visible = self._binarised(batch.inputs)
        pseudo_log_likelihood = self._module.pseudo_log_likelihoods(visible).mean()
        return {"free_energy": self._module(visible).mean(), "pseudo_log_likelihood": pseudo_log_likelihood}

    def finish(self, means: dict[str, float]) -> dict[str, float]:
        """Likelihood and loss, for which log Z is found once an evaluation."""
        log_partition = self._log_partition()
        log_likelihood = -means.pop("free_energy") - log_partition
        return {"loss": -log_likelihood, "log_likelihood": log_likelihood, "log_partition": log_partition, **means}

    @torch.no_grad()
    def sample(self, state: State, request: SampleRequest) -> Tensor:
        """Return what Gibbs chains, begun at random, end in: 0 and 1, float32 (count, ...)."""
        self._load(state)
        seed = int(torch.randint(1 << 62, (), generator=request.generator))
        with RandomStream(seed, self._device).drawing(), self._autocast():
            size = (request.count, math.prod(self.parameters.inputs))
            visible = torch.full(size, 0.5, device=self._device).bernoulli()
            for _ in range(self.parameters.sampling_steps):
                visible = self._module.step(visible)
        return visible.view(-1, *self.parameters.inputs)

    def check(self, data: Examples) -> None:
        """Check that examples have the shape `inputs` and values of 0 to 1."""
        tasks.check_features("rbm", data, tuple(self.parameters.inputs))
        tasks.check_bystanders("rbm", data)
        is_wrong = ~((data.inputs >= 0) & (data.inputs <= 1))
        if is_wrong.any():
            raise unsuited("Learner rbm: values must be 0 to 1", f"{float(data.inputs[is_wrong][0]):g}", "Scale them.")

    def _binarised(self, inputs: Tensor) -> Tensor:
        return (inputs.flatten(1) > self.parameters.threshold).float()  # (batch, visible)

    def _log_partition(self) -> float:
        couplings = self._module.couplings
        if self.parameters.is_exact:
            return exact_log_partition(couplings)
        return annealed_log_partition(couplings, self.parameters.annealing_chains, self.parameters.annealing_steps)
