"""Scheduled sampling: in training, each code that the decoder is fed is the true one with a probability that falls from step to step.

With i the steps of training so far, that probability is

    linear            max(floor, k - slope * i)
    exponential       k^i                          k < 1
    inverse sigmoid   k / (k + exp(i / k))         k >= 1

and otherwise the code is drawn from what the model itself predicted.

Source: Bengio, Vinyals, Jaitly and Shazeer, "Scheduled Sampling for Sequence Prediction with Recurrent Neural Networks", NeurIPS 2015,
section 2.4. https://arxiv.org/abs/1506.03099
"""

import math

import torch
from torch import Tensor


def linear(steps: float, k: float, slope: float, floor: float) -> float:
    """Return the probability of a true code after `steps` steps, which falls by `slope` a step from `k` to `floor`."""
    return max(floor, k - slope * steps)


def exponential(steps: float, k: float) -> float:
    """Return the probability of a true code after `steps` steps: `k`, below 1, to their power."""
    return float(k**steps)


def inverse_sigmoid(steps: float, k: float) -> float:
    """Return the probability of a true code after `steps` steps: nearly 1 at first, 1/2 after k * log(k) of them."""
    # k / (k + exp(i / k)) = sigmoid(log k - i / k), by a tanh, which does not overflow.
    return (1 + math.tanh((math.log(k) - steps / k) / 2)) / 2


def mixed(true: Tensor, logits: Tensor, true_part: float) -> Tensor:
    """Return each true code, int64 (batch,), with probability `true_part`, and otherwise one drawn by `logits`, (batch, codes)."""
    drawn = torch.multinomial(logits.detach().float().softmax(dim=1), 1).squeeze(1)
    return torch.where(torch.rand(len(true), device=true.device) < true_part, true, drawn)
