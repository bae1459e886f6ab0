"""Professor forcing: a decoder learns to behave alike whether it is fed true codes (taught) or its own (free).

A discriminator learns to tell the hidden states of the one from those of the other, and the decoder to make the free ones pass for taught.

    C_d = -log D(taught) - log(1 - D(free))      for the discriminator's parameters
    NLL + C_f,   C_f = -log D(free)              for the model's

As in the paper, C_d counts while the discriminator is right on less than 99 % of a batch, C_f while it is right on more than 75 %.

Source: Lamb et al., "Professor Forcing: A New Algorithm for Training Recurrent Networks", NeurIPS 2016, section 2.
https://arxiv.org/abs/1610.09038
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from models.ragged import read

TOO_GOOD, TOO_BAD = 0.99, 0.75
"""The discriminator's accuracy from which it pauses, and up to which the model need not heed it."""


class Discriminator(nn.Module):
    """Tells from a run of hidden states whether the decoder was taught: a GRU reads them both ways, and a dense layer judges."""

    def __init__(self, states: int, width: int) -> None:
        super().__init__()
        self.gru = nn.GRU(states, width, batch_first=True, bidirectional=True)
        self.judge = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, states: Tensor, lengths: Tensor) -> Tensor:
        """Return the logit of D, (batch,), for hidden states (batch, time, states), each run of one of `lengths`, (batch,)."""
        _, last = read(self.gru, states, lengths)  # (2, batch, width)
        logits: Tensor = self.judge(torch.cat([last[0], last[1]], dim=1)).squeeze(1)
        return logits


@dataclass(frozen=True, slots=True)
class Contest:
    """How a batch came out, means over its sequences.

    Attributes:
        discriminator_loss: C_d, with gradients for the discriminator alone.
        fooling_loss: C_f, with gradients for the model alone.
        accuracy: How often the discriminator was right, 0 to 1.
    """

    discriminator_loss: Tensor
    fooling_loss: Tensor
    accuracy: Tensor

    @property
    def objective(self) -> Tensor:
        """What the contest adds to the model's loss: the gradients of both sides, each while the paper lets it count."""
        return (self.accuracy < TOO_GOOD) * self.discriminator_loss + (self.accuracy > TOO_BAD) * self.fooling_loss


def contest(discriminator: Discriminator, taught: Tensor, free: Tensor, lengths: Tensor) -> Contest:
    """Let the discriminator judge the hidden states of the same sequences, taught and free, each (batch, time, states)."""
    on_taught, on_free = discriminator(taught.detach(), lengths), discriminator(free.detach(), lengths)
    found = functional.softplus(-on_taught).mean() + functional.softplus(on_free).mean()
    fixed = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    fooling = functional.softplus(-functional_call(discriminator, fixed, (free, lengths))).mean()
    right = torch.cat([on_taught > 0, on_free <= 0]).double().mean()
    return Contest(found, fooling, right)
