"""Evolution strategy and genetic algorithm, against their formulas, and on digits whose gradient nobody takes."""

from typing import Any

import numpy as np
import pytest
import torch

from client.data import load, parse_source
from models import Contribution, Examples, Learner, LearnerError, ServerOptimizer, build_learner
from models.evolution import VARIANTS_AT_ONCE, WORST, centred_ranks
from wire.spec import LocalSpec, Named
from wire.tensors import Layout, State

ASCENT = Named(name="sgd", learning_rate=1.0)


@pytest.fixture(scope="module")
def blocks() -> list[Examples]:
    """The digits of the first three form blocks, and those of two others."""
    return [load(parse_source(f"digits,blocks={chosen}")) for chosen in ("0", "1", "2", "11|12")]


def contribution(learner: Learner, state: State, data: Examples) -> Contribution:
    return learner.fit(state, data, LocalSpec(), torch.Generator(), lambda fraction: None)


def evolved(learner: Learner, state: State, clients: list[Examples], rounds: int, server: Named = ASCENT) -> State:
    optimizer = ServerOptimizer(server)
    for _ in range(rounds):
        found = [contribution(learner, state, data) for data in clients]
        weights = [part.example_count for part in found]
        mean = np.average([part.vector for part in found], axis=0, weights=weights).astype(np.float32)
        state = learner.apply(state, learner.contribution_layout.views(mean), optimizer, sum(weights))
    return state


def evolution(**parameters: Any) -> Learner:
    return build_learner(Named(name="evolution", **parameters))


def genetic(**parameters: Any) -> Learner:
    return build_learner(Named(name="genetic", **parameters))


def flat(learner: Learner, state: State) -> torch.Tensor:
    return torch.cat([state[name].flatten() for name in ("1.weight", "1.bias")])


def test_centred_ranks_run_from_minus_to_plus_a_half_and_equals_share() -> None:
    assert centred_ranks(torch.tensor([3.0, -1.0, 9.0])).tolist() == [0.0, -0.5, 0.5]
    # Ranks 0, 1.5, 1.5, 3 and 4 of five.
    assert centred_ranks(torch.tensor([5.0, 7.0, 7.0, 8.0, 9.0])).tolist() == [-0.5, -0.125, -0.125, 0.25, 0.5]
    assert centred_ranks(torch.tensor([4.0, 4.0])).tolist() == [0.0, 0.0]
    assert centred_ranks(torch.tensor([4.0])).tolist() == [0.0]


def test_variants_are_antithetic_pairs_around_the_centre_and_new_in_each_generation() -> None:
    learner: Any = evolution(pairs=3, sigma=0.5)
    state = learner.init(5)
    drawn = torch.stack(list(learner.variants(state)))  # (6, parameters)
    torch.testing.assert_close(drawn[:3] + drawn[3:], 2 * flat(learner, state).expand(3, -1))
    assert (drawn[:3] - drawn[3:]).std() == pytest.approx(2 * 0.5, rel=0.05)
    torch.testing.assert_close(drawn, torch.stack(list(learner.variants(state))), rtol=0, atol=0)
    later = {**state, "generation": state["generation"] + 1}
    others = [
        torch.stack(list(learner.variants(found))) for found in (later, learner.init(6) | {"1.bias": state["1.bias"]})
    ]
    assert all((other - drawn).abs().mean() > 0.1 for other in others)


def test_apply_is_the_formula_of_the_paper() -> None:
    learner: Any = evolution(pairs=3, sigma=0.5)
    state = learner.init(5)
    centre, drawn = flat(learner, state), torch.stack(list(learner.variants(state)))
    fitness = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0, 0.5])
    utilities = centred_ranks(fitness)
    # 1 / (2 n sigma) * sum over all variants of utility * noise, with the noise taken from the variants themselves.
    expected = centre + sum(u * (variant - centre) / 0.5 for u, variant in zip(utilities, drawn, strict=True)) / 3.0
    found = learner.apply(state, {"fitness": fitness}, ServerOptimizer(ASCENT), 10)
    torch.testing.assert_close(flat(learner, found), expected, rtol=1e-4, atol=1e-5)
    assert found["generation"].item() == 1
    assert torch.equal(found["key"], learner.init(5)["key"])


def test_contribution_is_a_few_hundred_bytes_whatever_the_model() -> None:
    small, large = evolution(pairs=50), evolution(pairs=50, hidden=[1000])
    assert Layout.of(large.init(1)).byte_count > 100 * Layout.of(small.init(1)).byte_count / 10
    assert small.contribution_layout.byte_count == large.contribution_layout.byte_count == 400


@pytest.mark.parametrize("learner", [evolution(pairs=11), genetic(population=VARIANTS_AT_ONCE + 3)])
def test_mean_fitness_of_clients_is_the_fitness_on_all_their_examples(learner: Learner, blocks: list[Examples]) -> None:
    state, clients = learner.init(5), blocks[:3]
    pooled = Examples(torch.cat([data.inputs for data in clients]), torch.cat([data.targets for data in clients]))
    found = [contribution(learner, state, data) for data in clients]
    mean = np.average([part.vector for part in found], axis=0, weights=[part.example_count for part in found])
    np.testing.assert_allclose(mean, contribution(learner, state, pooled).vector, rtol=1e-5)


def test_fitness_is_minus_the_loss_or_the_accuracy_of_each_variant(blocks: list[Examples]) -> None:
    for objective, metric, sign in (("cross_entropy", "loss", -1), ("accuracy", "accuracy", 1)):
        learner: Any = evolution(pairs=2, objective=objective)
        state = learner.init(5)
        found = contribution(learner, state, blocks[0])
        softmax = build_learner(Named(name="mlp", inputs=[1, 8, 8], hidden=[]))
        layout = Layout.of(softmax.init(0))
        measured = [
            softmax.evaluate(layout.views(v.numpy()), blocks[0]).metrics[metric] for v in learner.variants(state)
        ]
        np.testing.assert_allclose(found.vector, sign * np.array(measured), rtol=1e-5)
        assert found.metrics == {"train_best_fitness": pytest.approx(max(found.vector))}


def test_fitness_of_a_variant_beyond_all_bounds_is_the_worst(blocks: list[Examples]) -> None:
    learner = evolution(pairs=1, sigma=1e30)
    assert contribution(learner, learner.init(5), blocks[0]).vector.tolist() == [WORST, WORST]


def test_strategy_learns_digits_of_unseen_blocks_from_fitness_alone(blocks: list[Examples]) -> None:
    learner = evolution(pairs=30)
    state = learner.init(5)
    assert learner.evaluate(state, blocks[3]).metrics["accuracy"] < 0.3
    found = evolved(learner, state, blocks[:3], 40, Named(name="adam", learning_rate=0.1))
    assert learner.evaluate(found, blocks[3]).metrics["accuracy"] > 0.75


def test_strategy_climbs_an_accuracy_which_has_no_gradient(blocks: list[Examples]) -> None:
    learner = evolution(pairs=30, sigma=0.3, objective="accuracy")
    found = evolved(learner, learner.init(5), blocks[:3], 40, Named(name="adam", learning_rate=0.2))
    accuracy = learner.evaluate(found, blocks[3]).metrics["accuracy"]
    assert accuracy > 0.5


@pytest.mark.slow
def test_strategy_reaches_the_reference_on_digits() -> None:
    data = load(parse_source("digits"))
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(1))
    clients, held_out = [data.select(part) for part in order[:1437].tensor_split(3)], data.select(order[1437:])
    learner = evolution(pairs=50)
    found = evolved(learner, learner.init(5), clients, 300, Named(name="adam", learning_rate=0.1))
    assert learner.evaluate(found, held_out).metrics["accuracy"] > 0.945


def test_genetic_keeps_the_best_and_takes_children_from_the_fittest() -> None:
    learner: Any = genetic(population=20, elite=3, tournament=20, crossover=0.0, sigma=1e-9)
    state = learner.init(5)
    fitness = torch.arange(20.0)[torch.randperm(20, generator=torch.Generator().manual_seed(1))]
    found = learner.apply(state, {"fitness": fitness}, ServerOptimizer(ASCENT), 1)
    order = fitness.argsort(descending=True)
    assert torch.equal(found["population"][:3], state["population"][order[:3]])
    assert torch.equal(found["champion"], state["population"][order[0]])
    # A tournament of twenty out of twenty nearly always has one of the best five in it.
    distances = torch.cdist(found["population"][3:], state["population"][order[:5]]).min(dim=1).values
    assert (distances < 1e-3).float().mean() > 0.8
    assert found["generation"].item() == 1


def test_genetic_children_of_two_have_each_parameter_from_one_of_them() -> None:
    learner: Any = genetic(population=40, elite=1, tournament=1, crossover=1.0, sigma=1e-9)
    state = learner.init(5)
    # Two kinds of individuals: all zeros, all ones.
    population = torch.cat([torch.zeros(20, 650), torch.ones(20, 650)])
    found = learner.apply({**state, "population": population}, {"fitness": torch.ones(40)}, ServerOptimizer(ASCENT), 1)
    children = found["population"][1:]
    assert ((children.round() - children).abs() < 1e-6).all()
    shares = children.mean(dim=1)
    is_mixed = (shares > 0.01) & (shares < 0.99)
    # Half of the pairs of parents are of two kinds, and their children take half of each.
    assert 0.2 < is_mixed.float().mean() < 0.8
    assert shares[is_mixed].mean() == pytest.approx(0.5, abs=0.05)


def test_genetic_children_mutate_by_sigma() -> None:
    learner: Any = genetic(population=50, elite=1, crossover=0.0, sigma=0.3)
    state = {**learner.init(5), "population": torch.zeros(50, 650)}
    found = learner.apply(state, {"fitness": torch.ones(50)}, ServerOptimizer(ASCENT), 1)
    assert found["population"][1:].std() == pytest.approx(0.3, rel=0.02)
    assert not found["population"][0].any()


def test_genetic_learns_digits_of_unseen_blocks(blocks: list[Examples]) -> None:
    learner = genetic(population=48)
    found = evolved(learner, learner.init(5), blocks[:3], 50)
    assert learner.evaluate(found, blocks[3]).metrics["accuracy"] > 0.5


def test_genetic_with_an_elite_of_all_only_keeps(blocks: list[Examples]) -> None:
    learner = genetic(population=4, elite=4)
    state = learner.init(5)
    found = evolved(learner, state, blocks[:1], 2)
    assert sorted(found["population"].sum(dim=1).tolist()) == sorted(state["population"].sum(dim=1).tolist())


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"name": "evolution", "pairs": 0}, r"Learner evolution: pairs must be greater than or equal to 1, got 0\."),
        ({"name": "evolution", "sigma": 0.0}, r"Learner evolution: sigma must be greater than 0, got 0\.0\."),
        ({"name": "genetic", "objective": "f1"}, r"objective must be 'cross_entropy' or 'accuracy', got 'f1'\."),
    ],
)
def test_build_parameter_that_breaks_a_rule_is_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(LearnerError, match=message):
        build_learner(Named(**parameters))
