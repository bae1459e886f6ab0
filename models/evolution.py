"""Evolution: learning from how well variants of a model do, without a gradient. Clients send back fitness values alone.

Every client draws the same variants from the key and the generation that are part of the state, measures each on its own data and
contributes the mean fitness of each: a few hundred bytes. Their mean by examples is the fitness on all data. The objective may be anything
that can be measured, such as the accuracy, which has no gradient. One round is one generation, over all of a client's examples; `local` has
no say.

Evolution strategy (the learner `evolution`): n antithetic pairs of variants of one model, theta +- sigma * eps_i with eps_i ~ N(0, 1).

    g = 1 / (2 n sigma) * sum_i (u(theta + sigma eps_i) - u(theta - sigma eps_i)) * eps_i      u: centred ranks of the fitness

which the server's optimizer takes for an update. Ranks make it blind to the scale of the fitness and to outliers.

Genetic algorithm (the learner `genetic`): a population; the best live on, and parents chosen by tournaments have children by uniform
crossover and Gaussian mutation.

Source: Salimans, Ho, Chen, Sidor and Sutskever, "Evolution Strategies as a Scalable Alternative to Reinforcement Learning", 2017,
section 2.1 and Algorithm 2 (workers that share seeds send only returns). https://arxiv.org/abs/1703.03864
Such et al., "Deep Neuroevolution: Genetic Algorithms Are a Competitive Alternative for Training Deep Neural Networks", 2017, Algorithm 1.
https://arxiv.org/abs/1712.06567  (crossover: Syswerda, "Uniform Crossover in Genetic Algorithms", ICGA 1989)
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.func import functional_call, vmap
from torch.nn import functional

from models import tasks
from models.classifier import ClassMeasuresParameters
from models.learner import Contribution, Examples, Report
from models.mlp import MLP, MLPParameters
from models.optimizers import ServerOptimizer
from models.random_stream import RandomStream
from models.settings import DESCENT_SETTINGS, SERVER_SETTINGS
from wire.evaluation import Evaluation
from wire.seeds import derive_generator
from wire.spec import LocalSpec
from wire.tensors import Layout, State

GENERATION, KEY = "generation", "key"
"""Tensors of the state beside the model: rounds so far, (1,), and the seed of all draws, four numbers below 2**16, (4,)."""

VARIANTS_AT_ONCE = 16
"""Variants that are measured in one go."""

WORST = -100.0
"""Fitness of a variant whose loss is beyond all bounds: one such must not spoil the mean of the others."""


class VariantParameters(ClassMeasuresParameters):
    """The model that evolves, and what is good for it."""

    inputs: list[Annotated[int, Field(ge=1)]] = Field(default=[1, 8, 8], min_length=1, max_length=4)
    """Shape of one example; more than one axis is flattened."""
    hidden: list[Annotated[int, Field(ge=1)]] = Field(default=[], max_length=64)
    """Width of each hidden layer; none gives softmax regression."""
    classes: int = Field(default=10, ge=2)
    """Number of classes."""
    objective: Literal["cross_entropy", "accuracy"] = "cross_entropy"
    """What is fit: a low cross-entropy, or a high accuracy, which has no gradient."""


class EvolutionParameters(VariantParameters):
    """Parameters of the learner `evolution`."""

    pairs: int = Field(default=50, ge=1, le=100_000)
    """Antithetic pairs of variants in a generation."""
    sigma: float = Field(default=0.1, gt=0)
    """Standard deviation of a variant's distance in each parameter."""


class GeneticParameters(VariantParameters):
    """Parameters of the learner `genetic`."""

    population: int = Field(default=64, ge=2, le=100_000)
    """Individuals in a generation; all of them travel to the clients."""
    elite: int = Field(default=4, ge=1)
    """The best, who live on unchanged."""
    tournament: int = Field(default=3, ge=1)
    """Individuals drawn for a tournament, whose fittest becomes a parent."""
    crossover: float = Field(default=0.5, ge=0, le=1)
    """Probability that a child has two parents, and each parameter from one of them."""
    sigma: float = Field(default=0.1, gt=0)
    """Standard deviation of a child's mutation in each parameter."""

    @model_validator(mode="after")
    def _elite_fits(self) -> Self:
        if self.elite > self.population:
            raise ValueError(f"elite must be at most the population ({self.population}), got {self.elite}")
        return self


class Evolution(ABC):
    """What both ways of evolution share: a model whose variants are measured."""

    task = "classify without a gradient"
    data = "vectors, small images"
    unused_settings = DESCENT_SETTINGS | {"local.batch_size", "local.epochs"}
    parameters: VariantParameters

    def __init__(self, parameters: VariantParameters, device: torch.device) -> None:
        self.parameters = parameters
        shape = {name: getattr(parameters, name) for name in ("inputs", "hidden", "classes", "metrics")}
        self._model = MLP(MLPParameters(**shape), device)
        with RandomStream(0, device).drawing(), device:
            self._module = self._model.build().to(device).eval()
        self._layout = Layout.of(self._module.state_dict())
        self._device = device

    @property
    @abstractmethod
    def variant_count(self) -> int:
        """Variants in a generation."""

    @abstractmethod
    def variants(self, state: State) -> Iterator[Tensor]:
        """Yield the variants of this generation as flat vectors, (parameters,), the same on every client."""

    @abstractmethod
    def model_of(self, state: State) -> State:
        """Return the one model of a state: what is evaluated."""

    @property
    def contribution_layout(self) -> Layout:
        """One fitness value for each variant."""
        return Layout.of({"fitness": torch.empty(self.variant_count, device="meta")})

    def check(self, data: Examples) -> None:
        """Check that examples have the shape `inputs` and targets are classes."""
        self._model.check(data)

    @torch.no_grad()
    def fit(
        self, state: State, data: Examples, local: LocalSpec, generator: torch.Generator, report: Report
    ) -> Contribution:
        """Measure every variant on all of `data`. Nothing is trained; the best fitness is reported.

        Raises:
            DataError: There are no examples.
        """
        tasks.check_examples(data)
        found: list[Tensor] = []
        variants, done = self.variants(state), 0
        while several := list(islice(variants, VARIANTS_AT_ONCE)):
            found.append(self._fitness(torch.stack(several).to(self._device), data).cpu())
            done += len(several)
            report(done / self.variant_count)
        fitness = torch.cat(found)
        return Contribution(fitness.numpy(), len(data), {"train_best_fitness": float(fitness.max())})

    def step_bytes(self, data: Examples, local: LocalSpec) -> int:
        """Tell the bytes of the variants that are measured at once, drawn and side by side, and of two of their layers."""
        widest = max([*self.parameters.hidden, self.parameters.classes])
        return 8 * min(VARIANTS_AT_ONCE, self.variant_count) * (self._layout.size + len(data) * widest)

    def evaluate(self, state: State, data: Examples, training: Examples | None = None) -> Evaluation:
        """Return cross-entropy and accuracy of the state's one model, and what `metrics` asks for."""
        return self._model.evaluate(self.model_of(state), data)

    def _fitness(self, vectors: Tensor, data: Examples) -> Tensor:
        """Return the mean fitness of variants (variants, parameters) over the examples, float32 (variants,)."""

        def fitness(vector: Tensor) -> Tensor:
            outputs: Tensor = functional_call(
                self._module, self._tensors(vector), (data.inputs,)
            )  # (examples, classes)
            if self.parameters.objective == "accuracy":
                return (outputs.argmax(dim=1) == data.targets).float().mean()
            return -functional.cross_entropy(outputs, data.targets)

        found: Tensor = vmap(fitness)(vectors).nan_to_num(nan=WORST).clamp(min=WORST)
        return found

    def _tensors(self, vector: Tensor) -> dict[str, Tensor]:
        entries = self._layout.entries
        return {entry.name: vector[entry.offset : entry.offset + entry.size].view(entry.shape) for entry in entries}

    def _flat(self, state: State) -> Tensor:
        return torch.cat([state[entry.name].flatten().cpu() for entry in self._layout.entries])


class EvolutionStrategy(Evolution):
    """Evolution strategy: clients return nothing but fitness values."""

    parameters: EvolutionParameters

    @property
    def variant_count(self) -> int:
        """Two for each pair: first all that add eps, then all that subtract it."""
        return 2 * self.parameters.pairs

    def init(self, seed: int) -> State:
        """Return a new model, generation 0 and the key of the draws."""
        return {**self._model.init(seed), **_beginning(seed)}

    def variants(self, state: State) -> Iterator[Tensor]:
        """Yield theta + sigma * eps_i for each i, then theta - sigma * eps_i."""
        centre = self._flat(state)
        for sign in (1, -1):
            for noise in self._noises(state):
                yield centre + sign * self.parameters.sigma * noise

    def model_of(self, state: State) -> State:
        """Return the centre, theta."""
        return {entry.name: state[entry.name] for entry in self._layout.entries}

    def apply(self, state: State, mean: State, server: ServerOptimizer, weight_total: int) -> State:
        """Take the server step on the estimated gradient of the fitness, and begin the next generation."""
        shaped = centred_ranks(mean["fitness"])
        weights = shaped[: self.parameters.pairs] - shaped[self.parameters.pairs :]  # (pairs,)
        gradient = torch.zeros(self._layout.size)
        for weight, noise in zip(weights.tolist(), self._noises(state), strict=True):
            gradient.add_(noise, alpha=weight / (2 * self.parameters.pairs * self.parameters.sigma))
        moved = server.step(self.model_of(state), self._tensors(gradient))
        return {**moved, GENERATION: state[GENERATION] + 1, KEY: state[KEY]}

    def _noises(self, state: State) -> Iterator[Tensor]:
        """Yield eps_i of this generation, (parameters,)."""
        for pair in range(self.parameters.pairs):
            yield torch.randn(self._layout.size, generator=_generator(state, f"pair {pair}"))


class GeneticAlgorithm(Evolution):
    """Genetic algorithm: selection, crossover and mutation of models."""

    unused_settings = Evolution.unused_settings | SERVER_SETTINGS
    parameters: GeneticParameters

    @property
    def variant_count(self) -> int:
        """The whole population."""
        return self.parameters.population

    def init(self, seed: int) -> State:
        """Return a population of new models; the champion is the first of them until one has been measured."""
        rows = [self._flat(self._model.init(seed + place)) for place in range(self.parameters.population)]
        return {"population": torch.stack(rows), "champion": rows[0], **_beginning(seed)}

    def variants(self, state: State) -> Iterator[Tensor]:
        """Yield the individuals."""
        yield from state["population"].cpu()

    def model_of(self, state: State) -> State:
        """Return the fittest of the last generation."""
        return self._tensors(state["champion"])

    def apply(self, state: State, mean: State, server: ServerOptimizer, weight_total: int) -> State:
        """Select, cross and mutate: the population becomes the next generation. The server's optimizer has no part in it."""
        population, fitness, own = state["population"], mean["fitness"], self.parameters
        generator = _generator(state, "breed")
        order = fitness.argsort(descending=True, stable=True)
        child_count = own.population - own.elite
        first, second = (population[_winners(fitness, child_count, own.tournament, generator)] for _ in range(2))
        is_crossed = torch.rand(child_count, 1, generator=generator) < own.crossover
        is_from_second = torch.rand(child_count, self._layout.size, generator=generator) < 0.5
        children = torch.where(is_crossed & is_from_second, second, first)
        children = children + own.sigma * torch.randn(children.shape, generator=generator)
        return {
            "population": torch.cat([population[order[: own.elite]], children]),
            "champion": population[order[0]].clone(),
            GENERATION: state[GENERATION] + 1,
            KEY: state[KEY],
        }


def centred_ranks(fitness: Tensor) -> Tensor:
    """Return the rank of each value, (count,), from -1/2 for the lowest to 1/2 for the highest; equals share the mean of their ranks."""
    lower = (fitness < fitness[:, None]).sum(dim=1)
    equal = (fitness == fitness[:, None]).sum(dim=1)
    return (lower + (equal - 1) / 2) / max(1, len(fitness) - 1) - 0.5 * (len(fitness) > 1)


def _winners(fitness: Tensor, count: int, entrants: int, generator: torch.Generator) -> Tensor:
    """Return the fittest of as many tournaments, int64 (count,)."""
    drawn = torch.randint(len(fitness), (count, entrants), generator=generator)
    return drawn.gather(1, fitness[drawn].argmax(dim=1, keepdim=True)).squeeze(1)


def _beginning(seed: int) -> dict[str, Tensor]:
    # In parts that a float32 holds exactly, because the state travels as float32.
    parts = [(seed >> shift) & 0xFFFF for shift in (0, 16, 32, 48)]
    return {GENERATION: torch.zeros(1), KEY: torch.tensor(parts, dtype=torch.float32)}


def _generator(state: State, purpose: str) -> torch.Generator:
    seed = sum(int(part) << shift for part, shift in zip(state[KEY].tolist(), (0, 16, 32, 48), strict=True))
    return derive_generator(seed, purpose, int(state[GENERATION]))
