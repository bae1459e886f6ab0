"""Learning rates that change from round to round: a factor for each round, which a learning rate is multiplied by.

Sources: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017, equation 5 (cosine), without restarts.
https://arxiv.org/abs/1608.03983  Vaswani et al., "Attention Is All You Need", NeurIPS 2017, equation 3 (warm-up, then the inverse root).
https://arxiv.org/abs/1706.03762
"""

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from wire.validation import Strict

_KINDS = {"final": ("linear", "cosine"), "decay": ("exponential", "step"), "every": ("step",)}
"""What kinds of a schedule a key is for, where it is not for all."""


class ScheduleSpec(Strict):
    """How a learning rate changes over the rounds of a run."""

    kind: Literal["constant", "linear", "cosine", "exponential", "step", "inverse_root"] = "constant"
    """What follows the warm-up: no change; a line or half a cosine down to `final` in the last round; times `decay` each round, or each
    `every` rounds; or the root of the first such round over the round."""
    warmup_rounds: int = Field(default=0, ge=0)
    """Rounds in which the rate rises in equal steps to its full value, reached in the round after them."""
    final: float = Field(default=0.0, ge=0, le=1)
    """Factor in the last round, of `linear` and `cosine`."""
    decay: float = Field(default=0.99, gt=0, le=1)
    """Factor from one round, or step, to the next, of `exponential` and `step`."""
    every: int = Field(default=10, ge=1)
    """Rounds of one step, of `step`."""

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        for key, kinds in _KINDS.items():
            # By its value: a spec that has been stored or sent names the defaults too.
            if self.kind not in kinds and (value := getattr(self, key)) != type(self).model_fields[key].default:
                raise ValueError(f"{key} must be left out where kind is {self.kind}, got {value:g}")
        return self

    def factor(self, round_number: int, round_count: int) -> float:
        """Return what the learning rate is multiplied by in a round, 1 to `round_count`; 0 to 1."""
        if round_number <= self.warmup_rounds:
            return round_number / (self.warmup_rounds + 1)
        past = round_number - self.warmup_rounds - 1
        ahead = max(1, round_count - self.warmup_rounds - 1)
        match self.kind:
            case "constant":
                return 1.0
            case "linear":
                return 1 + (self.final - 1) * min(1.0, past / ahead)
            case "cosine":
                return self.final + (1 - self.final) * (1 + math.cos(math.pi * min(1.0, past / ahead))) / 2
            case "exponential":
                return float(self.decay**past)
            case "step":
                return float(self.decay ** (past // self.every))
            case "inverse_root":
                return math.sqrt((self.warmup_rounds + 1) / round_number)
