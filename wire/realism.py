"""How simulated clients behave: how fast they compute and send, when they fall out, when they are there at all.

With it a simulation shows what production will do, so that quorum, over-selection and deadlines can be tuned before a deployment.
"""

import math
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, field_validator, model_validator

from wire.validation import Strict

LEAST, MOST = 1e-9, 1e12
"""Range of what is drawn, apart from 0: with it every time is finite."""

Amount = Annotated[float, Field(ge=0, le=MOST)]
Positive = Annotated[float, Field(ge=LEAST, le=MOST)]
Period = Annotated[float, Field(ge=1e-3, le=1e9)]


class Constant(Strict):
    """The same value for every client."""

    name: Literal["constant"] = "constant"
    """Chooses this distribution."""
    value: Amount
    """The value."""

    def draw(self, _: np.random.Generator) -> float:
        """Return the value."""
        return self.value


class Uniform(Strict):
    """Every value from `low` to `high` alike."""

    name: Literal["uniform"] = "uniform"
    """Chooses this distribution."""
    low: Amount
    """Lowest value."""
    high: Amount
    """Highest value."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low must be at most high ({self.high:g}), got {self.low:g}")
        return self

    def draw(self, generator: np.random.Generator) -> float:
        """Return one value."""
        return generator.uniform(self.low, self.high)


class Lognormal(Strict):
    """Values whose logarithm is normal: most near the median, and some far above it, as devices of a fleet are."""

    name: Literal["lognormal"] = "lognormal"
    """Chooses this distribution."""
    median: Positive
    """As many values are above as below."""
    sigma: float = Field(ge=0, le=10)
    """Standard deviation of the natural logarithm. With 1, one client in six is 2.7 times the median or more."""

    def draw(self, generator: np.random.Generator) -> float:
        """Return one value."""
        return generator.lognormal(math.log(self.median), self.sigma)


class Exponential(Strict):
    """Values that fall off evenly from 0: many small ones, few large ones."""

    name: Literal["exponential"] = "exponential"
    """Chooses this distribution."""
    mean: Positive
    """Mean value."""

    def draw(self, generator: np.random.Generator) -> float:
        """Return one value, never 0, as no link has that rate."""
        return self.mean * max(generator.standard_exponential(), 2.0**-53)


Distribution = Annotated[Constant | Uniform | Lognormal | Exponential, Field(discriminator="name")]
"""What each client draws a value of its own from."""


class PresenceSpec(Strict):
    """Clients that come and go: periods of both kinds take turns, and their lengths are exponential."""

    present_seconds: Period
    """Mean length of a period of presence, seconds."""
    absent_seconds: Period
    """Mean length of a period of absence, seconds."""


class SimulationSpec(Strict):
    """How simulated clients behave, on the simulation's own clock. Every draw follows from the run's seed."""

    seconds_per_example: Distribution = Constant(value=0.0)
    """Time of one training example in one pass, forward and backward, seconds. Each client draws its own once."""
    bytes_per_second: Distribution | None = None
    """Rate of a client's link, bytes per second. A model goes down it and a contribution up, of 4 bytes a parameter each. Each
    client draws its own once. None: infinitely fast."""
    jitter: float = Field(default=0.0, ge=0, le=10)
    """How much a client's time differs from round to round: sigma of a lognormal factor with the median 1."""
    dropout: float = Field(default=0.0, ge=0, le=1)
    """Probability that a client that was asked to train falls out during its work and never answers."""
    presence: PresenceSpec | None = None
    """When clients are there. None: always, or as the trace says."""
    trace: str | None = Field(default=None, min_length=1, max_length=4096)
    """Path of a CSV file of measured clients, seen from where the simulation runs. Its columns are `client`,
    `seconds_per_example`, `bytes_per_second`, `from_seconds` and `until_seconds`, one row for each period of presence. A value
    that it leaves out is drawn. Without `client`, each row is a device, and each client draws one."""
    trace_period_seconds: Period | None = None
    """After this time the trace's periods of presence begin anew, seconds. None: after its last one, a client stays away."""

    @field_validator("bytes_per_second")
    @classmethod
    def _never_stands_still(cls, rate: Distribution | None) -> Distribution | None:
        match rate:
            case Constant(value=least) | Uniform(low=least) if least < LEAST:
                raise ValueError(f"must be at least {LEAST:g} for every client, got {least:g}")
        return rate

    @model_validator(mode="after")
    def _period_of_trace(self) -> Self:
        if self.trace_period_seconds is not None and self.trace is None:
            raise ValueError(
                f"trace_period_seconds must come with a trace, got {self.trace_period_seconds:g} without one"
            )
        return self
