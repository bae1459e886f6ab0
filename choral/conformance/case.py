"""A learner that is checked, with a spec that trains it and examples that suit it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from client.data import load, parse_source
from models import Contribution, Examples, Learner, ServerOptimizer, build_learner, check_spec
from wire.errors import ChoralError
from wire.spec import RunSpec
from wire.tensors import Layout, State

EXAMPLE_COUNT = 120
"""Examples that a check works with; fewer where the data has fewer."""

SEED = 5

CPU = torch.device("cpu")


class Nonconforming(ChoralError):
    """A learner does not do what every learner must. The message says what it should have done."""


@dataclass(frozen=True)
class Case:
    """A learner under check.

    Attributes:
        spec: A run that trains it.
        data: Examples that suit it, where the learner trains.
        device: Where it trains.
    """

    spec: RunSpec
    data: Examples = field(repr=False)
    device: torch.device = CPU

    def learner(self, device: str | None = None) -> Learner:
        """Return the learner, newly built, on the case's device or another."""
        return build_learner(self.spec.learner, device or self.device)

    @cached_property
    def rounds(self) -> int:
        """Rounds of a small run of it: 2, or as many as it needs."""
        return max(2, getattr(self.learner("meta"), "fewest_rounds", 1))

    @cached_property
    def state(self) -> State:
        """The initial state, on the CPU."""
        return self.learner().init(SEED)

    def fit(
        self,
        learner: Learner,
        state: State,
        data: Examples | None = None,
        report: Callable[[float], None] = lambda fraction: None,
    ) -> Contribution:
        """Train once as the spec says, with the same draws each time."""
        generator = torch.Generator().manual_seed(SEED)
        return learner.fit(state, self.data if data is None else data, self.spec.local, generator, report)

    def next(self, learner: Learner, state: State, server: ServerOptimizer) -> State:
        """Return the state after a round of one client."""
        found = self.fit(learner, state)
        mean = learner.contribution_layout.views(found.vector.copy())
        travelling = copied({entry.name: state[entry.name] for entry in Layout.of(state).entries})
        rest = {name: tensor for name, tensor in state.items() if name not in travelling}
        return dict(learner.apply(travelling, mean, server, found.example_count)) | rest

    def parts(self, count: int) -> list[Examples]:
        """Return the examples dealt to so many clients, of different sizes."""
        bounds = [len(self.data) * place * (place + 1) // (count * (count + 1)) for place in range(count + 1)]
        return [self.data.select(torch.arange(start, end, device=self.device)) for start, end in pairwise(bounds)]


def case_of(spec: RunSpec, source: str, device: torch.device = CPU) -> Case:
    """Return the case of a spec's learner with examples of a data source, at equal distances.

    Raises:
        ChoralError: The spec breaks a rule, the data cannot be read, or it does not suit the learner.
    """
    check_spec(spec)
    data = load(parse_source(source))
    data = data.select(spread(len(data), EXAMPLE_COUNT))
    build_learner(spec.learner).check(data)
    return Case(spec, data.to(device), device)


def spread(total: int, count: int) -> Tensor:
    """Return `count` rows, or all, at equal distances, int64."""
    return torch.arange(min(total, count)) * total // min(total, count)


def copied(state: State) -> dict[str, Tensor]:
    """Return a copy of all tensors."""
    return {name: tensor.clone() for name, tensor in state.items()}


def require(holds: bool, rule: str) -> None:
    """Raise `Nonconforming` unless a rule holds."""
    if not holds:
        raise Nonconforming(f"{rule}.")


def generators(device: torch.device) -> list[Tensor]:
    """Return where torch's generators stand, the CPU's and the device's."""
    return [torch.get_rng_state(), *([] if device == CPU else [torch.get_device_module(device).get_rng_state()])]


def are_alike(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    """Tell whether two sequences have the same tensors, to the bit."""
    return len(left) == len(right) and all(map(torch.equal, left, right))


def are_equal(left: State, right: State) -> bool:
    """Tell whether two states have the same tensors, to the bit, in the same order."""
    return list(left) == list(right) and all(torch.equal(left[name], right[name]) for name in left)
