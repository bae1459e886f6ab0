"""Partition function Z of a restricted Boltzmann machine: exactly, and by annealed importance sampling.

    Z = sum_h exp(c'h) prod_i (1 + exp(b + W'h)_i), and the same with the layers exchanged

Annealing walks from a machine without weights, whose Z is known, to the machine itself, on distributions p_0, ..., p_n:

    p_k(v) ~ exp(b'v) prod_j (1 + exp(beta_k (c + W v)_j)),   beta_k = k / n
    Z / Z_0 = E[prod_k p*_k(v_k) / p*_{k-1}(v_k)],   v_1 from p_0, v_{k+1} by a Gibbs step that leaves p_k as it is

where p* is what stands on the right, without its constant. The mean of the products is unbiased, so its logarithm is too small on average.

Source: Salakhutdinov and Murray, "On the Quantitative Analysis of Deep Belief Networks", ICML 2008, section 4, Algorithm 1 and equations
15 to 18. https://doi.org/10.1145/1390156.1390266
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

STATES = 1 << 12
"""States of a layer that are looked at together."""


@dataclass(frozen=True, slots=True)
class Couplings:
    """Weights and biases of a machine, float64.

    Attributes:
        weight: (hidden, visible).
        visible_bias: (visible,).
        hidden_bias: (hidden,).
    """

    weight: Tensor
    visible_bias: Tensor
    hidden_bias: Tensor

    @property
    def turned(self) -> "Couplings":
        """The same machine with its layers exchanged."""
        return Couplings(self.weight.T, self.hidden_bias, self.visible_bias)


def exact_log_partition(couplings: Couplings) -> float:
    """Return log Z, nats, by a sum over all states of the smaller layer."""
    hidden, visible = couplings.weight.shape
    if hidden > visible:
        return exact_log_partition(couplings.turned)
    bits = torch.arange(hidden)
    parts = []
    for start in range(0, 1 << hidden, STATES):
        numbers = torch.arange(start, min(start + STATES, 1 << hidden))
        states = (numbers[:, None] >> bits & 1).double()  # (states, hidden)
        inputs = states @ couplings.weight + couplings.visible_bias  # (states, visible)
        parts.append(torch.logsumexp(states @ couplings.hidden_bias + functional.softplus(inputs).sum(1), dim=0))
    return float(torch.logsumexp(torch.stack(parts), dim=0))


def annealed_log_partition(couplings: Couplings, chains: int, steps: int, seed: int = 0) -> float:
    """Estimate log Z, nats, by annealed importance sampling; the same each time for a seed.

    Args:
        couplings: The machine.
        chains: Walks, 1 or more.
        steps: Distributions that each walk passes through, 1 or more.
        seed: 0 to 2**63 - 1.
    """
    generator = torch.Generator().manual_seed(seed)
    weight, visible_bias, hidden_bias = couplings.weight, couplings.visible_bias, couplings.hidden_bias
    visible = torch.bernoulli(visible_bias.sigmoid().expand(chains, -1), generator=generator)
    total = torch.zeros(chains, dtype=torch.float64)
    for step in range(1, steps + 1):
        before, beta = (step - 1) / steps, step / steps
        activations = visible @ weight.T + hidden_bias  # (chains, hidden)
        total += (functional.softplus(beta * activations) - functional.softplus(before * activations)).sum(1)
        hidden = torch.bernoulli((beta * activations).sigmoid(), generator=generator)
        visible = torch.bernoulli((beta * hidden @ weight + visible_bias).sigmoid(), generator=generator)
    log_base = functional.softplus(visible_bias).sum() + len(hidden_bias) * math.log(2)
    return float(log_base + torch.logsumexp(total, dim=0) - math.log(chains))
