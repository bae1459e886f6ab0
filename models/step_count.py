"""How many steps a federation has trained a model for: a tensor of the state, because a fit sees nothing else of what was before it.

Each client counts its own steps on from what it received, and the weighted mean moves the count: after some rounds it is the number of
steps of a mean client. It counts in units of 1,024 steps, so that what one round adds is small, and exact in float32 up to 16 million.
"""

import torch
from torch import Tensor, nn

UNIT = 1024


class StepCount(nn.Module):
    """Steps of training so far."""

    units: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("units", torch.zeros(()))

    @property
    def steps(self) -> float:
        """Steps so far, of a mean client; never below 0, whatever noise was added to the mean."""
        return max(0.0, float(self.units) * UNIT)

    def count(self) -> None:
        """Count one step more."""
        self.units += 1 / UNIT
