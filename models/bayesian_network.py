"""Bayesian network of discrete variables with a given structure: a table for each variable, given its parents.

    p(x) = prod_i p(x_i | parents_i),   p(x_i = s | parents_i = u) = (N_ius + a) / sum_s' (N_ius' + a)

N_ius counts the examples in which variable i is in state s and its parents are in the states u; a is Laplace's smoothing. The counts are
sufficient statistics: a client contributes its own, divided by its number of examples, so that the weighted mean times the total of the
weights is the pooled count, of which rounding gives the integer exactly (up to 2**22 examples, beyond which float32 has too few digits).
Federated tables are therefore those of the pooled data to the bit, and one round with every client is all that it takes: each round's
counts replace those of the round before.

Source: Koller and Friedman, "Probabilistic Graphical Models", MIT Press, 2009, sections 3.2 (factorisation), 12.1 (forward sampling),
17.2 (likelihood) and 17.4 (priors). https://mitpress.mit.edu/9780262013192/
"""

import math
import warnings
from collections.abc import Mapping
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Annotated, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from models import tasks
from models.errors import unsuited
from models.learner import Contribution, Examples, Report, SampleRequest
from models.optimizers import ServerOptimizer
from models.random_stream import RandomStream
from models.settings import DESCENT_SETTINGS, SERVER_SETTINGS
from wire.errors import LearnerError
from wire.evaluation import Evaluation
from wire.spec import LocalSpec
from wire.tensors import Layout, State
from wire.validation import Strict

if TYPE_CHECKING:
    from pgmpy.models import DiscreteBayesianNetwork

COUNTS, TABLES = "counts.", "tables."
"""What the names of a state's tensors begin with; the variable's name follows."""

MOST_ENTRIES = 1 << 24
"""Of all tables together."""

VariableName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class Variable(Strict):
    """One variable: a column of the data."""

    name: VariableName
    """Its name: letters, digits, dash and underscore."""
    states: int = Field(ge=2, le=1 << 16)
    """Number of its states, which the data gives as 0 to states - 1."""
    parents: list[VariableName] = []
    """Variables that it depends on directly."""


class BayesianNetworkParameters(Strict):
    """Parameters of the learner `bayesian_network`."""

    variables: list[Variable] = Field(
        default=[
            Variable(name="sex", states=2),
            Variable(name="department", states=6, parents=["sex"]),
            Variable(name="admitted", states=2, parents=["sex", "department"]),
        ],
        min_length=1,
        max_length=4096,
    )
    """The variables in the order of the data's columns, each with `name`, `states` and `parents`."""
    smoothing: float = Field(default=1.0, ge=1e-6, le=1e6)
    """Added to every count, so that nothing unseen is taken for impossible: 1 is Laplace's rule."""

    @model_validator(mode="after")
    def _is_a_network(self) -> Self:
        names = [variable.name for variable in self.variables]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"variables must have different names, got {repeated[0]} twice")
        for variable in self.variables:
            if unknown := [parent for parent in variable.parents if parent not in names]:
                raise ValueError(f"parents of {variable.name} must be variables, got {unknown[0]!r}")
            if len(set(variable.parents)) < len(variable.parents):
                raise ValueError(f"parents of {variable.name} must be named once each, got {variable.parents}")
        try:
            self.order()
        except CycleError as error:
            raise ValueError(f"parents must not form a circle, got {' -> '.join(error.args[1])}") from error
        if (entries := sum(math.prod(shape) for shape in self.shapes.values())) > MOST_ENTRIES:
            raise ValueError(f"tables must have at most {MOST_ENTRIES:,} entries, got {entries:,}")
        return self

    def order(self) -> list[str]:
        """Return the variables' names, parents before children. Raises `CycleError`."""
        return list(TopologicalSorter({variable.name: variable.parents for variable in self.variables}).static_order())

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each variable's table: the states of its parents, in their order, then its own."""
        states = {variable.name: variable.states for variable in self.variables}
        return {
            variable.name: (*(states[parent] for parent in variable.parents), variable.states)
            for variable in self.variables
        }


class BayesianNetwork:
    """Bayesian network of discrete variables: tables and queries."""

    samples_text = False
    task = "generate, answer queries"
    data = "states of discrete variables"
    unused_settings = DESCENT_SETTINGS | SERVER_SETTINGS | {"local.epochs"}

    def __init__(self, parameters: BayesianNetworkParameters, device: torch.device) -> None:
        self.parameters = parameters
        self._device = device
        self._columns = {variable.name: column for column, variable in enumerate(parameters.variables)}
        self._families = {
            variable.name: [self._columns[name] for name in (*variable.parents, variable.name)]
            for variable in parameters.variables
        }
        self._shapes = parameters.shapes

    @cached_property
    def contribution_layout(self) -> Layout:
        """Counts of each family, of shape (states of each parent ..., states), for one example on average."""
        return Layout.of({COUNTS + name: torch.empty(shape, device="meta") for name, shape in self._shapes.items()})

    def init(self, seed: int) -> State:
        """Return counts of 0 and tables in which all states are equally likely. Nothing is drawn."""
        return self._state({name: torch.zeros(shape, dtype=torch.float64) for name, shape in self._shapes.items()})

    def check(self, data: Examples) -> None:
        """Check that examples have a state for each variable. Raises `DataError`."""
        variables = self.parameters.variables
        if data.example_shape != (len(variables),):
            raise unsuited(
                f"Learner bayesian_network: examples must have {len(variables)} variables",
                f"shape {data.example_shape}",
            )
        tasks.check_bystanders("bayesian_network", data)
        for column, variable in enumerate(variables):
            tasks.check_codes("bayesian_network", f"states of {variable.name}", data.inputs[:, column], variable.states)

    def fit(
        self, state: State, data: Examples, local: LocalSpec, generator: torch.Generator, report: Report
    ) -> Contribution:
        """Count the states of each family and contribute the counts divided by the number of examples.

        Raises:
            DataError: There are no examples. Nothing was changed.
        """
        tasks.check_examples(data)
        counts = {
            name: torch.zeros(math.prod(shape), dtype=torch.int64, device=self._device)
            for name, shape in self._shapes.items()
        }
        for start in range(0, len(data) if local.epochs else 0, local.batch_size):
            states = data.inputs[start : start + local.batch_size]
            for name, count in counts.items():
                count += torch.bincount(self._places(name, states), minlength=len(count))
            report(min(1.0, (start + local.batch_size) / len(data)))
        shares = {COUNTS + name: (count / len(data)).view(self._shapes[name]) for name, count in counts.items()}
        return Contribution(self.contribution_layout.flatten(shares), len(data), {})

    def step_bytes(self, data: Examples, local: LocalSpec) -> int:
        """Tell the bytes of the counts, those of a batch and their shares, and of the places of a batch's examples in a table."""
        return 16 * self.contribution_layout.size + 24 * min(local.batch_size, len(data))

    def apply(self, state: State, mean: State, server: ServerOptimizer, weight_total: int) -> State:
        """Return the pooled counts, which the mean gives exactly, and their tables. The server's optimizer has no part in it."""
        # Where noise was added for differential privacy, a count may have fallen below 0.
        return self._state(
            {name: (mean[COUNTS + name].double() * weight_total).round().clamp(min=0) for name in self._shapes}
        )

    @torch.no_grad()
    def evaluate(self, state: State, data: Examples, training: Examples | None = None) -> Evaluation:
        """Return the mean of log p(x), nats an example, as `log_likelihood`; the loss is minus that."""
        if not len(data):
            return Evaluation(0, {})
        total = torch.zeros(len(data), dtype=torch.float64, device=self._device)
        for name in self._shapes:
            table = state[TABLES + name].to(self._device, torch.float64)
            total += table.flatten()[self._places(name, data.inputs)].log()
        log_likelihood = float(total.mean())
        return Evaluation(len(data), {"loss": -log_likelihood, "log_likelihood": log_likelihood})

    def sample(self, state: State, request: SampleRequest) -> Tensor:
        """Draw each variable given its parents, parents first: int64 (count, variables)."""
        states = torch.zeros(request.count, len(self._columns), dtype=torch.int64, device=self._device)
        seed = int(torch.randint(1 << 62, (), generator=request.generator))
        with RandomStream(seed, self._device).drawing():
            for name in self.parameters.order():
                table = (
                    state[TABLES + name].to(self._device).view(-1, self._shapes[name][-1])
                )  # (parents' states, states)
                # Its own column is still 0: the place of the first entry of the row.
                rows = self._places(name, states) // table.shape[1]
                states[:, self._columns[name]] = torch.multinomial(table[rows], 1).squeeze(1)
        return states

    def to_pgmpy(self, state: State) -> "DiscreteBayesianNetwork":
        """Return the network as a model of pgmpy, of the extra `bayes`, for whatever else that library can do."""
        from pgmpy.factors.discrete import TabularCPD
        from pgmpy.models import DiscreteBayesianNetwork

        network = DiscreteBayesianNetwork()
        network.add_nodes_from(self._shapes)
        for variable in self.parameters.variables:
            network.add_edges_from((parent, variable.name) for parent in variable.parents)
            *parents, own = self._shapes[variable.name]
            table = state[TABLES + variable.name].cpu().double().view(-1, own)  # (parents' states, states)
            # float32 does not quite add up to 1.
            columns = (table / table.sum(1, keepdim=True)).T.numpy()
            network.add_cpds(TabularCPD(variable.name, own, columns, variable.parents or None, parents or None))
        return network

    def query(self, state: State, variable: str, evidence: Mapping[str, int] | None = None) -> Tensor:
        """Return P(variable | evidence) by pgmpy's variable elimination.

        Args:
            state: The network's state.
            variable: Whose distribution is asked for.
            evidence: States of other variables, by name.

        Returns:
            Probability of each state, float64 (states,).

        Raises:
            LearnerError: A name or a state is none of the network's.
        """
        evidence = dict(evidence or {})
        self._check_query(variable, evidence)
        with warnings.catch_warnings():
            # Of pgmpy 1.1, whose own modules import what it means to drop.
            warnings.simplefilter("ignore", FutureWarning)
            from pgmpy.inference import VariableElimination
        found = VariableElimination(self.to_pgmpy(state)).query([variable], evidence=evidence, show_progress=False)
        return torch.as_tensor(found.values, dtype=torch.float64)

    def _check_query(self, variable: str, evidence: Mapping[str, int]) -> None:
        for name in (variable, *evidence):
            if name not in self._columns:
                raise LearnerError(f"Query: variables must be among {', '.join(self._columns)}, got {name!r}.")
        for name, value in evidence.items():
            if not 0 <= value < (count := self._shapes[name][-1]):
                raise LearnerError(f"Query: state of {name} must be 0 to {count - 1}, got {value}.")
        if variable in evidence:
            raise LearnerError(f"Query: evidence must be of other variables than {variable}, got its state.")

    def _state(self, counts: Mapping[str, Tensor]) -> State:
        """Return counts, float64, with the tables that follow from them, all as float32."""
        tables = {name: count + self.parameters.smoothing for name, count in counts.items()}
        return {
            **{COUNTS + name: count.float() for name, count in counts.items()},
            **{TABLES + name: (table / table.sum(-1, keepdim=True)).float() for name, table in tables.items()},
        }

    def _places(self, name: str, states: Tensor) -> Tensor:
        """Return where each example, int64 (examples, variables), lies in a variable's flat table, int64 (examples,)."""
        places = torch.zeros(len(states), dtype=torch.int64, device=states.device)
        for column, size in zip(self._families[name], self._shapes[name], strict=True):
            places = places * size + states[:, column]
        return places
