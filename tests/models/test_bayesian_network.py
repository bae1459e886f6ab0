"""The Bayesian network against networks that are known: counts that add up exactly, tables and queries by another library."""

import csv
import functools
import gzip
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from client.data import LocalData, split
from models import DataError, Examples, LearnerError, ServerOptimizer, TrainingStopped, build_learner, check_spec
from models.bayesian_network import COUNTS, TABLES, BayesianNetwork, BayesianNetworkParameters, Variable
from models.learner import Sampler, SampleRequest
from server.aggregation import WeightedMean
from server.checkpoints import checkpoint_path
from server.model import read_checkpoint
from simulation.serial import run_serially
from simulation.simulate import simulate
from tests.server.cohorts import opened
from wire.grid import Grid
from wire.spec import LocalSpec, Named, RunSpec, read_spec
from wire.tensors import Layout, State, Vector

SPECS = Path(__file__).parents[2] / "models" / "specs"
ASIA = Path(__file__).parent / "asia.yaml"
ADMISSIONS = SPECS / "admissions.csv"

pytestmark = pytest.mark.filterwarnings("ignore:`pgmpy:FutureWarning")


def made(*variables: tuple[str, int, list[str]], smoothing: float = 1.0) -> BayesianNetwork:
    named = [Variable(name=name, states=states, parents=parents) for name, states, parents in variables]
    return BayesianNetwork(BayesianNetworkParameters(variables=named, smoothing=smoothing), torch.device("cpu"))


def unlabelled(states: Tensor) -> Examples:
    return Examples(states, torch.empty(len(states), 0, dtype=torch.int64))


def contribution(learner: BayesianNetwork, data: Examples, **local: Any) -> Vector:
    generator = torch.Generator().manual_seed(1)
    found = learner.fit(learner.init(1), data, LocalSpec(**local), generator, lambda fraction: None)
    assert found.example_count == len(data)
    return found.vector


def applied(learner: BayesianNetwork, mean: Vector, weight_total: int) -> State:
    server = ServerOptimizer(Named(name="sgd", learning_rate=1.0))
    return learner.apply(learner.init(1), learner.contribution_layout.views(mean), server, weight_total)


def learned(learner: BayesianNetwork, data: Examples) -> State:
    return applied(learner, contribution(learner, data), len(data))


class Truth:
    """A network that pgmpy has the true tables of, and its structure as ours."""

    def __init__(self, name: str) -> None:
        from pgmpy.readwrite import BIFReader

        packed = files("pgmpy").joinpath(f"utils/example_models/{name}.bif.gz").read_bytes()
        self.network = BIFReader(string=gzip.decompress(packed).decode()).get_model()
        self.names = list(self.network.nodes)
        self.parents = {name: list(self.network.get_cpds(name).variables[1:]) for name in self.names}
        self.states = {name: int(self.network.get_cardinality(name)) for name in self.names}

    def learner(self, smoothing: float = 1.0) -> BayesianNetwork:
        return made(*((name, self.states[name], self.parents[name]) for name in self.names), smoothing=smoothing)

    def samples(self, count: int, seed: int) -> Examples:
        from pgmpy.sampling import BayesianModelSampling

        frame = BayesianModelSampling(self.network).forward_sample(count, seed=seed, show_progress=False)
        columns = []
        for name in self.names:
            order = {state: place for place, state in enumerate(self.network.get_cpds(name).state_names[name])}
            columns.append(frame[name].map(order).to_numpy(dtype=np.int64))
        return unlabelled(torch.from_numpy(np.stack(columns, axis=1)))

    def divergence(self, learner: BayesianNetwork, state: State) -> float:
        """Return KL(true, learned), nats, by a sum over all states of all variables."""
        every = np.indices([self.states[name] for name in self.names]).reshape(len(self.names), -1).T
        true, found = np.ones(len(every)), np.ones(len(every))
        for column, name in enumerate(self.names):
            own, family = every[:, column], [every[:, self.names.index(parent)] for parent in self.parents[name]]
            true *= self.network.get_cpds(name).values[(own, *family)]
            found *= state[TABLES + name].double().numpy()[(*family, own)]
        is_possible = true > 0
        return float((true[is_possible] * np.log(true[is_possible] / found[is_possible])).sum())


@functools.cache
def known(name: str) -> Truth:
    return Truth(name)


def pooled_counts(learner: BayesianNetwork, states: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.float64]]:
    """Return the counts of each family by NumPy's histogram."""
    variables = {variable.name: variable for variable in learner.parameters.variables}
    columns = {name: column for column, name in enumerate(variables)}
    counts = {}
    for name, variable in variables.items():
        family = [*variable.parents, name]
        edges = [np.arange(variables[member].states + 1) - 0.5 for member in family]
        counts[name] = np.histogramdd(states[:, [columns[member] for member in family]], bins=edges)[0]
    return counts


async def federated(spec: RunSpec, sites: dict[str, LocalData], folder: Path) -> tuple[BayesianNetwork, State]:
    """Return the learner and the state that a run ends with."""
    async with opened(folder) as store:
        await run_serially(spec, sites, store, folder / "run")
    learner = build_learner(spec.learner)
    assert isinstance(learner, BayesianNetwork)
    layout = Layout.of(learner.init(0))
    return learner, layout.views(read_checkpoint(checkpoint_path(folder / "run", spec.rounds), layout).vector)


@pytest.mark.parametrize(
    ("name", "bound"),
    # Twice what estimates from so many samples lose on average, (free parameters) / (2 * samples).
    [("asia", 2 * 0.00045), ("cancer", 2 * 0.00025), ("sachs", 2 * 0.00445)],
)
async def test_federated_counts_are_the_pooled_ones_exactly(name: str, bound: float, tmp_path: Path) -> None:
    truth = known(name)
    own = truth.learner()
    data = truth.samples(20_000, seed=2)
    # Of very different sizes, none a power of two.
    sizes = [101, 257, 499, 1009, 1511, 2003, 2503, 3001, 4001, 5115]
    parts = torch.arange(20_000).split(sizes)  # type: ignore[no-untyped-call]
    sites = {f"site-{place}": split(data.select(rows), 0.0, 0) for place, rows in enumerate(parts)}
    variables = [variable.model_dump() for variable in own.parameters.variables]
    spec = RunSpec.model_validate(
        {
            "name": name,
            "learner": {"name": "bayesian_network", "variables": variables},
            "rounds": 1,
            "cohort": {"size": 10},
            "local": {"batch_size": 1024},
            "evaluate": {"every": 0},
        }
    )
    learner, state = await federated(spec, sites, tmp_path)
    for variable, counts in pooled_counts(learner, data.inputs.numpy()).items():
        assert np.array_equal(state[COUNTS + variable].numpy(), counts)
    pooled = learned(own, data)
    assert all(torch.equal(state[key], pooled[key]) for key in pooled)
    assert truth.divergence(learner, state) < bound
    alone = truth.divergence(own, learned(own, sites["site-0"].training))
    assert alone > 10 * bound


@pytest.mark.parametrize("ring_bits", [32, 64])
def test_counts_are_exact_up_to_four_million_examples(ring_bits: int) -> None:
    # Straight to the aggregation: shares of 40 clients, most of them with the largest weight that there may be.
    learner = made(("a", 3, []), ("b", 2, ["a"]))
    layout, generator = learner.contribution_layout, np.random.default_rng(3)
    sizes = [100_003] * 41
    mean = WeightedMean(Grid(1.0, 1 << 17, len(sizes), ring_bits), layout.size)
    totals = np.zeros(6, dtype=np.int64)
    for size in sizes:
        family = generator.multinomial(size, generator.dirichlet(np.full(6, 0.3)))  # (a and b)
        totals += family
        shares = {COUNTS + "a": family.reshape(3, 2).sum(1), COUNTS + "b": family.reshape(3, 2)}
        mean.add(layout.flatten({key: torch.from_numpy(count) / size for key, count in shares.items()}), size)
    state = applied(learner, mean.mean(), mean.weight_total)
    assert mean.weight_total == sum(sizes) > 4_000_000
    assert torch.equal(state[COUNTS + "b"], torch.from_numpy(totals.reshape(3, 2)).float())
    assert torch.equal(state[COUNTS + "a"], torch.from_numpy(totals.reshape(3, 2).sum(1)).float())


def test_tables_are_those_of_pgmpys_estimator() -> None:
    import pandas
    from pgmpy.estimators import BayesianEstimator

    truth = known("asia")
    data = truth.samples(2000, seed=1)
    state = learned(truth.learner(), data)
    frame = pandas.DataFrame(data.inputs.numpy(), columns=truth.names)
    states = {name: [0, 1] for name in truth.names}
    estimator = BayesianEstimator(truth.network, frame, state_names=states)
    for name in truth.names:
        expected = estimator.estimate_cpd(name, prior_type="K2")  # Laplace's rule
        order = [*(expected.variables.index(parent) for parent in truth.parents[name]), 0]
        np.testing.assert_allclose(state[TABLES + name].numpy(), expected.values.transpose(order), rtol=1e-6)


def test_tables_by_hand() -> None:
    learner = made(("rain", 2, []), ("wet", 3, ["rain"]), smoothing=0.5)
    state = learned(learner, unlabelled(torch.tensor([[0, 0], [0, 2], [0, 2], [1, 1]])))
    assert state[COUNTS + "rain"].tolist() == [3, 1]
    assert state[COUNTS + "wet"].tolist() == [[1, 0, 2], [0, 1, 0]]
    assert state[TABLES + "rain"].tolist() == pytest.approx([3.5 / 5, 1.5 / 5])
    assert state[TABLES + "wet"].flatten().tolist() == pytest.approx(
        [1.5 / 4.5, 0.5 / 4.5, 2.5 / 4.5, 0.5 / 2.5, 1.5 / 2.5, 0.5 / 2.5]
    )


def test_init_holds_every_state_for_equally_likely() -> None:
    state = made(("a", 4, []), ("b", 2, ["a"])).init(3)
    assert state[TABLES + "a"].tolist() == [0.25] * 4
    assert not state[COUNTS + "b"].any()
    assert torch.equal(state[TABLES + "b"], torch.full((4, 2), 0.5))


def test_apply_to_noise_below_zero_counts_nothing() -> None:
    state = applied(made(("a", 2, [])), np.array([-0.2, 0.9], dtype=np.float32), 10)
    assert state[COUNTS + "a"].tolist() == [0, 9]
    assert state[TABLES + "a"].tolist() == pytest.approx([1 / 11, 10 / 11])


def test_fit_is_one_pass_whatever_the_epochs_and_batches() -> None:
    learner = made(("a", 3, []), ("b", 2, ["a"]))
    data = unlabelled(torch.stack([torch.arange(50) % 3, torch.arange(50) % 2], dim=1))
    expected = contribution(learner, data)
    assert expected.max() <= 1
    assert contribution(learner, data, epochs=3, batch_size=7).tobytes() == expected.tobytes()
    assert not contribution(learner, data, epochs=0).any()


def test_fit_reports_each_batch_and_stops_when_told() -> None:
    learner = made(("a", 3, []))
    data = unlabelled(torch.zeros(50, 1, dtype=torch.int64))
    fractions: list[float] = []
    generator = torch.Generator().manual_seed(1)
    learner.fit(learner.init(1), data, LocalSpec(batch_size=16), generator, fractions.append)
    assert fractions == pytest.approx([16 / 50, 32 / 50, 48 / 50, 1])

    def stop(fraction: float) -> None:
        raise TrainingStopped("The round closed.")

    with pytest.raises(TrainingStopped, match="The round closed"):
        learner.fit(learner.init(1), data, LocalSpec(), generator, stop)
    with pytest.raises(DataError, match=r"^Training data: batches must have at least 1 examples, got 0\.$"):
        contribution(learner, data.select(torch.arange(0)))


def test_evaluate_is_the_log_likelihood_of_pgmpy() -> None:
    truth = known("cancer")
    learner, unseen = truth.learner(), truth.samples(10, seed=4)
    state = learned(learner, truth.samples(1000, seed=5))
    network = learner.to_pgmpy(state)
    rows = [dict(zip(truth.names, row, strict=True)) for row in unseen.inputs.tolist()]
    expected = np.mean([np.log(network.get_state_probability(row)) for row in rows])
    found = learner.evaluate(state, unseen)
    assert found.example_count == 10
    assert found.metrics == {"loss": -found.metrics["log_likelihood"], "log_likelihood": pytest.approx(expected)}
    assert found == learner.evaluate(state, unseen)
    assert found.metrics["loss"] < learner.evaluate(learner.init(1), unseen).metrics["loss"]
    assert learner.evaluate(state, unseen.select(torch.arange(0))).metrics == {}


@pytest.mark.parametrize("name", ["asia", "sachs"])
def test_query_is_the_sum_over_all_states(name: str) -> None:
    truth = known(name)
    learner = truth.learner()
    state = learned(learner, truth.samples(2000, seed=6))
    shape = [truth.states[node] for node in truth.names]
    every = torch.from_numpy(np.indices(shape).reshape(len(shape), -1).T)
    joint = torch.ones(len(every), dtype=torch.float64)
    for column, node in enumerate(truth.names):
        family = [every[:, truth.names.index(parent)] for parent in truth.parents[node]]
        joint *= state[TABLES + node].double()[(*family, every[:, column])]
    evidences: list[dict[str, int]] = [{}, {truth.names[-1]: 0}, {truth.names[1]: 1, truth.names[-2]: 1}]
    for evidence in evidences:
        fits = torch.ones(len(every), dtype=torch.bool)
        for node, value in evidence.items():
            fits &= every[:, truth.names.index(node)] == value
        for asked in (truth.names[0], truth.names[3]):
            own = every[:, truth.names.index(asked)]
            sums = torch.stack([joint[fits & (own == value)].sum() for value in range(truth.states[asked])])
            found = learner.query(state, asked, evidence)
            assert found.dtype == torch.float64
            torch.testing.assert_close(found, sums / sums.sum(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("variable", "evidence", "message"),
    [
        pytest.param("snow", {}, r"^Query: variables must be among rain, wet, got 'snow'\.$", id="variable"),
        pytest.param("wet", {"snow": 0}, r"^Query: variables must be among rain, wet, got 'snow'\.$", id="evidence"),
        pytest.param("wet", {"rain": 2}, r"^Query: state of rain must be 0 to 1, got 2\.$", id="state"),
        pytest.param("wet", {"wet": 0}, r"^Query: evidence must be of other variables than wet, got its", id="itself"),
    ],
)
def test_query_of_what_the_network_has_not_is_refused(variable: str, evidence: dict[str, int], message: str) -> None:
    learner = made(("rain", 2, []), ("wet", 3, ["rain"]))
    with pytest.raises(LearnerError, match=message):
        learner.query(learner.init(1), variable, evidence)


def test_sample_is_of_the_networks_own_distribution_whatever_the_order_of_its_variables() -> None:
    # Children stand before their parents here.
    learner = made(("wet", 3, ["rain", "hose"]), ("rain", 2, []), ("hose", 2, ["rain"]))
    generator = np.random.default_rng(7)
    tables = {"wet": generator.dirichlet(np.ones(3), (2, 2)), "rain": [0.3, 0.7], "hose": [[0.9, 0.1], [0.4, 0.6]]}
    state = {**learner.init(1), **{TABLES + name: torch.tensor(table).float() for name, table in tables.items()}}
    assert isinstance(learner, Sampler)
    before = torch.get_rng_state()
    first, again, other = (
        learner.sample(state, SampleRequest(100_000, torch.Generator().manual_seed(seed))) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert (first.shape, first.dtype) == ((100_000, 3), torch.int64)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    learner.check(unlabelled(first))
    found = torch.bincount(first @ torch.tensor([4, 2, 1]), minlength=12) / 1e5
    expected = [
        tables["rain"][rain] * tables["hose"][rain][hose] * float(tables["wet"][rain, hose, wet])  # type: ignore[index]
        for wet, rain, hose in product(range(3), range(2), range(2))
    ]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=0.006)


def admissions() -> tuple[list[str], Examples]:
    with ADMISSIONS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    states = torch.tensor([[int(row[name]) for name in ("sex", "department", "admitted")] for row in rows])
    return [row["office"] for row in rows], unlabelled(states)


async def test_example_of_admissions_shows_in_the_federation_what_no_office_sees(tmp_path: Path) -> None:
    offices, data = admissions()
    sites = {
        office: split(data.select(torch.tensor([place for place, own in enumerate(offices) if own == office])), 0.2, 7)
        for office in "012345"
    }
    learner, state = await federated(read_spec(SPECS / "bayesian_network.yaml"), sites, tmp_path)
    training = torch.cat([site.training.inputs for site in sites.values()])
    held_out = unlabelled(torch.cat([site.held_out.inputs for site in sites.values()]))
    for name, counts in pooled_counts(learner, training.numpy()).items():
        assert np.array_equal(state[COUNTS + name].numpy(), counts)
    loss = learner.evaluate(state, held_out).metrics["loss"]
    alone = [learner.evaluate(learned(learner, site.training), held_out).metrics["loss"] for site in sites.values()]
    assert loss < 2.9 < min(alone) - 1
    women, men = (float(learner.query(state, "admitted", {"sex": sex})[1]) for sex in (1, 0))
    assert women < men - 0.1
    more_often = [
        float(state[TABLES + "admitted"][1, place, 1] > state[TABLES + "admitted"][0, place, 1]) for place in range(6)
    ]
    assert sum(more_often) >= 3


def test_admissions_are_those_of_the_paper() -> None:
    _, data = admissions()
    assert len(data) == 4526
    assert torch.bincount(data.inputs[:, 0] * 2 + data.inputs[:, 2]).tolist() == [1493, 1198, 1278, 557]


def test_simulation_of_the_asia_spec_learns_it(tmp_path: Path) -> None:
    truth = known("asia")
    data = truth.samples(5000, seed=8)
    np.savez(tmp_path / "asia.npz", x=data.inputs.numpy(), y=np.zeros(5000, dtype=np.int64))
    result = simulate(
        ASIA,
        tmp_path / "out",
        lambda record: None,
        data=f"npz:{tmp_path / 'asia.npz'},codes=true",
        clients=10,
        engine="serial",
    )
    spec = read_spec(ASIA)
    assert [variable.name for variable in truth.learner().parameters.variables] == truth.names
    assert result.rounds[-1].metrics["loss"] < 2.4
    # Nothing that knows less than the structure gets there: each variable by itself.
    alone = made(*((name, 2, []) for name in truth.names))
    assert alone.evaluate(learned(alone, data), data).metrics["loss"] > result.rounds[-1].metrics["loss"] + 0.3
    check_spec(spec)


@pytest.mark.parametrize("path", [ASIA, SPECS / "bayesian_network.yaml"], ids=["asia", "admissions"])
def test_specs_name_what_the_zoo_has(path: Path) -> None:
    check_spec(read_spec(path))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        pytest.param([{"name": "a", "states": 1}], r"variables\.0\.states must be greater .* 2, got 1\.", id="states"),
        pytest.param([{"name": "a b", "states": 2}], r"variables\.0\.name must match pattern", id="name"),
        pytest.param([], r"variables must have at least 1 item", id="none"),
        pytest.param(
            [{"name": "a", "states": 2}, {"name": "a", "states": 2}],
            r"^Learner bayesian_network: variables must have different names, got a twice\.$",
            id="repeated",
        ),
        pytest.param(
            [{"name": "a", "states": 2, "parents": ["b"]}], r"parents of a must be variables, got 'b'\.", id="unknown"
        ),
        pytest.param(
            [{"name": "a", "states": 2}, {"name": "b", "states": 2, "parents": ["a", "a"]}],
            r"parents of b must be named once each, got \['a', 'a'\]\.",
            id="parent-twice",
        ),
        pytest.param(
            [{"name": "a", "states": 2, "parents": ["b"]}, {"name": "b", "states": 2, "parents": ["a"]}],
            r"parents must not form a circle, got (a -> b -> a|b -> a -> b)\.",
            id="circle",
        ),
        pytest.param(
            [{"name": "a", "states": 65536}, {"name": "b", "states": 65536, "parents": ["a"]}],
            r"tables must have at most 16,777,216 entries, got 4,295,032,832\.",
            id="entries",
        ),
    ],
)
def test_build_of_what_is_no_network_is_refused(parameters: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(LearnerError, match=message):
        build_learner(Named(name="bayesian_network", variables=parameters))


@pytest.mark.parametrize(
    ("states", "message"),
    [
        pytest.param(
            torch.zeros(2, 3, dtype=torch.int64),
            r"^Learner bayesian_network: examples must have 2 variables, got shape \(3,\)\.$",
            id="shape",
        ),
        pytest.param(
            torch.tensor([[0, 0], [0, 3]]),
            r"^Learner bayesian_network: states of wet must be 0 to 2, got 3 in example 1\.$",
            id="state",
        ),
        pytest.param(torch.zeros(2, 2), r"states of rain must be int64, got float32\.", id="floats"),
    ],
)
def test_check_refuses_data_of_another_kind(states: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        made(("rain", 2, []), ("wet", 3, ["rain"])).check(unlabelled(states))
