"""The restricted Boltzmann machine against sums over all its states, where there are few, and on binarised digits."""

import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models import DataError, Examples, LearnerError, build_learner, check_spec
from models.learner import Sampler, SampleRequest
from models.partition_function import Couplings, annealed_log_partition, exact_log_partition
from models.rbm import RBM, Machine, RBMParameters
from server.checkpoints import checkpoint_path
from server.model import read_checkpoint
from simulation.serial import run_serially
from tests.models.digits import digits, independent_pixels, trained, unlabelled
from tests.server.cohorts import blocks, opened
from wire.spec import Named, RunSpec, read_spec
from wire.tensors import Layout, State

SPEC = Path(__file__).parents[2] / "models" / "specs" / "rbm.yaml"
SGD: dict[str, object] = {"batch_size": 16, "optimizer": {"name": "sgd", "learning_rate": 0.1}}


def made(**parameters: Any) -> RBM:
    return RBM(RBMParameters(**parameters), torch.device("cpu"))


def tiny(seed: int = 1, visible: int = 4, hidden: int = 3, scale: float = 1.0) -> tuple[RBM, State]:
    """Return a machine with few states, whose weights are not small."""
    learner, generator = made(inputs=[visible], hidden=hidden), torch.Generator().manual_seed(seed)
    state = {name: scale * torch.randn(tensor.shape, generator=generator) for name, tensor in learner.init(1).items()}
    learner._load(state)
    return learner, state


def states_of(count: int) -> Tensor:
    return torch.tensor(list(product([0.0, 1.0], repeat=count)), dtype=torch.float64)


def energies(state: State) -> Tensor:
    """Return E(v, h) of all states, float64 (visible states, hidden states), as the paper writes it."""
    weight, visible_bias, hidden_bias = (state[name].double() for name in ("weight", "visible_bias", "hidden_bias"))
    visible, hidden = states_of(len(visible_bias)), states_of(len(hidden_bias))
    return -(visible @ visible_bias)[:, None] - hidden @ hidden_bias - visible @ weight.T @ hidden.T


def couplings(state: State) -> Couplings:
    return Couplings(*(state[name].double() for name in ("weight", "visible_bias", "hidden_bias")))


def binary(data: Examples) -> Tensor:
    return (data.inputs > 0.5).float()


def test_free_energy_sums_out_the_hidden_units() -> None:
    learner, state = tiny()
    expected = -torch.logsumexp(-energies(state), dim=1)
    torch.testing.assert_close(learner._module(states_of(4).float()).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("visible", "hidden"), [(4, 3), (3, 5), (2, 14)])
def test_exact_log_partition_is_the_sum_over_all_states(visible: int, hidden: int) -> None:
    _, state = tiny(2, visible, hidden)
    expected = float(torch.logsumexp(-energies(state).flatten(), dim=0))
    assert exact_log_partition(couplings(state)) == pytest.approx(expected, rel=1e-12)


def test_exact_log_partition_of_many_blocks_of_states_is_that_of_independent_units() -> None:
    # 2**14 states, four blocks; without weights Z is a product.
    visible_bias, hidden_bias = torch.randn(20).double(), torch.randn(14).double()
    expected = torch.nn.functional.softplus(torch.cat([visible_bias, hidden_bias])).sum()
    machine = Couplings(torch.zeros(14, 20, dtype=torch.float64), visible_bias, hidden_bias)
    assert exact_log_partition(machine) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_annealing_is_unbiased_whatever_its_steps(steps: int) -> None:
    _, state = tiny(3)
    exact = exact_log_partition(couplings(state))
    assert annealed_log_partition(couplings(state), 100_000, steps) == pytest.approx(exact, abs=0.02)


def test_annealing_of_a_trained_machine_comes_close_and_closer_with_more_steps() -> None:
    state = trained(made(inputs=[1, 8, 8], hidden=12), digits(0, 1, 2, 3), **SGD, epochs=20)
    exact = exact_log_partition(couplings(state))
    short, long = (annealed_log_partition(couplings(state), 100, steps) for steps in (10, 1000))
    assert abs(long - exact) < 0.3
    assert abs(long - exact) < abs(short - exact)
    assert annealed_log_partition(couplings(state), 100, 10) == short
    assert annealed_log_partition(couplings(state), 100, 10, seed=1) != short


def test_loss_has_the_gradient_that_contrastive_divergence_writes_out() -> None:
    learner, state = tiny()
    data = torch.rand(50, 4, generator=torch.Generator().manual_seed(4)).round()
    torch.manual_seed(6)
    learner.batch_loss(unlabelled(data)).backward()  # type: ignore[no-untyped-call]
    torch.manual_seed(6)
    chain = learner._module.step(data)
    hidden = [torch.sigmoid(rows @ state["weight"].T + state["hidden_bias"]) for rows in (data, chain)]
    expected = {
        "weight": (hidden[0].T @ data - hidden[1].T @ chain) / 50,
        "visible_bias": (data - chain).mean(0),
        "hidden_bias": (hidden[0] - hidden[1]).mean(0),
    }
    for name, parameter in learner._module.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(-parameter.grad, expected[name])


def test_gradient_of_a_long_chain_is_that_of_the_likelihood_by_enumeration() -> None:
    _, state = tiny(5, scale=0.7)
    learner = made(inputs=[4], hidden=3, steps=40)
    learner._load(state)
    data = torch.tensor([[1.0, 0, 1, 1], [0, 0, 1, 0], [1, 0, 1, 0], [1, 1, 1, 1]])
    torch.manual_seed(7)
    learner.batch_loss(unlabelled(data.repeat(20_000, 1))).backward()  # type: ignore[no-untyped-call]
    leaves = {name: tensor.double().requires_grad_() for name, tensor in state.items()}
    every = energies(leaves)
    rows = (data.double() @ torch.tensor([8.0, 4, 2, 1], dtype=torch.float64)).long()
    loss = -torch.logsumexp(-every[rows], dim=1).mean() + torch.logsumexp(-every.flatten(), dim=0)
    loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in learner._module.named_parameters():
        assert parameter.grad is not None
        assert leaves[name].grad is not None
        # 80,000 chains: standard error below 0.002.
        torch.testing.assert_close(parameter.grad.double(), leaves[name].grad, rtol=0, atol=0.01)


def test_one_step_of_the_chain_is_the_transition_by_enumeration() -> None:
    learner, state = tiny(8)
    visible, hidden = states_of(4), states_of(3)
    joint = (-energies(state)).softmax(1)  # p(h | v): (visible states, hidden states)
    back = (-energies(state)).softmax(0)  # p(v | h)
    start = torch.tensor([1.0, 0, 0, 1])
    expected = back @ joint[9]
    torch.manual_seed(9)
    found = learner._module.step(start.repeat(100_000, 1)).double()
    numbers = (found @ torch.tensor([8.0, 4, 2, 1], dtype=torch.float64)).long()
    torch.testing.assert_close(torch.bincount(numbers, minlength=16) / 1e5, expected.float(), rtol=0, atol=0.01)
    assert (len(visible), len(hidden)) == (16, 8)


def test_evaluate_is_the_likelihood_by_enumeration() -> None:
    learner, state = tiny(10)
    log_probabilities = torch.logsumexp(-energies(state), dim=1) - torch.logsumexp(-energies(state).flatten(), dim=0)
    rows = torch.tensor([3, 3, 9, 14])
    visible = states_of(4)[rows]
    metrics = learner.evaluate(state, unlabelled(visible.float())).metrics
    assert set(metrics) == {"loss", "log_likelihood", "log_partition", "pseudo_log_likelihood"}
    assert metrics["log_likelihood"] == pytest.approx(float(log_probabilities[rows].mean()), rel=1e-5)
    assert metrics["loss"] == -metrics["log_likelihood"]
    # p(v_i | others) = p(v) / (p(v) + p(v with unit i flipped)); unit 0 is the highest bit.
    own = log_probabilities[rows]
    pseudo = sum(own - torch.logaddexp(own, log_probabilities[rows ^ bit]) for bit in (8, 4, 2, 1))
    assert isinstance(pseudo, Tensor)
    assert metrics["pseudo_log_likelihood"] == pytest.approx(float(pseudo.mean()), rel=1e-5)


def test_evaluate_binarises_at_the_threshold() -> None:
    learner, state = tiny(10)
    grey = torch.tensor([[0.51, 0.5, 0.2, 0.9]])
    sharp = torch.tensor([[1.0, 0, 0, 1]])
    assert learner.evaluate(state, unlabelled(grey)) == learner.evaluate(state, unlabelled(sharp))


def test_evaluate_with_annealing_agrees_with_the_sum_and_repeats_itself() -> None:
    state = trained(made(inputs=[1, 8, 8], hidden=12), digits(0, 1, 2, 3), **SGD, epochs=5)
    unseen = digits(11)
    exact = made(inputs=[1, 8, 8], hidden=12, partition="exact").evaluate(state, unseen).metrics
    learner = made(inputs=[1, 8, 8], hidden=12, partition="annealed", annealing_steps=300)
    annealed = learner.evaluate(state, unseen)
    assert annealed == learner.evaluate(state, unseen)
    assert annealed.metrics["log_likelihood"] != exact["log_likelihood"]
    assert annealed.metrics["log_likelihood"] == pytest.approx(exact["log_likelihood"], abs=0.3)
    assert annealed.metrics["pseudo_log_likelihood"] == exact["pseudo_log_likelihood"]


def test_machine_of_larger_layers_takes_annealing_by_itself() -> None:
    assert RBMParameters(inputs=[64], hidden=20).is_exact
    assert RBMParameters(inputs=[20], hidden=500).is_exact
    assert not RBMParameters(inputs=[64], hidden=21).is_exact
    assert not RBMParameters(inputs=[64], hidden=12, partition="annealed").is_exact


@pytest.mark.parametrize("steps", [1, 3])
def test_fit_of_digits_beats_independent_pixels_on_unseen_blocks(steps: int) -> None:
    data, unseen = digits(*range(11)), digits(11, 12, 13)
    learner = made(inputs=[1, 8, 8], hidden=12, steps=steps)
    found = learner.evaluate(trained(learner, data, **SGD, epochs=12), unseen).metrics["log_likelihood"]
    assert found > -21 > independent_pixels(binary(data), binary(unseen)) + 3


@pytest.mark.slow
def test_fit_of_digits_to_the_end_reaches_the_reference() -> None:
    learner = made(inputs=[1, 8, 8], hidden=12)
    found = learner.evaluate(trained(learner, digits(*range(11)), **SGD, epochs=100), digits(11, 12, 13)).metrics
    assert found["log_likelihood"] > -19.3


async def test_federation_learns_more_than_a_client_alone(tmp_path: Path) -> None:
    document = read_spec(SPEC).model_dump(mode="json")
    document |= {"rounds": 10, "cohort": {"size": 4}}
    configured = RunSpec.model_validate(document)
    sites, unseen = blocks(0, 1, 2, 3), digits(11, 12, 13)
    async with opened(tmp_path) as store:
        await run_serially(configured, sites, store, tmp_path / "run")
    learner = build_learner(configured.learner)
    layout = Layout.of(learner.init(0))
    state = layout.views(read_checkpoint(checkpoint_path(tmp_path / "run", 10), layout).vector)
    federated = learner.evaluate(state, unseen).metrics["log_likelihood"]
    assert isinstance(learner, RBM)
    # At a rate that suits it alone, for as many epochs.
    alone = learner.evaluate(trained(learner, sites["site-0"].training, **SGD, epochs=50), unseen).metrics[
        "log_likelihood"
    ]
    assert federated > alone + 1
    assert federated > independent_pixels(binary(digits(0, 1, 2, 3)), binary(unseen)) + 1


def test_spec_names_what_the_zoo_has() -> None:
    check_spec(read_spec(SPEC))


def test_sample_is_of_the_models_own_distribution() -> None:
    _, state = tiny(11, scale=1.5)
    learner = made(inputs=[2, 2], hidden=3, sampling_steps=200)
    assert isinstance(learner, Sampler)
    before = torch.get_rng_state()
    first, again, other = (
        learner.sample(state, SampleRequest(50_000, torch.Generator().manual_seed(seed))) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert (first.shape, first.dtype) == ((50_000, 2, 2), torch.float32)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    numbers = (first.flatten(1) @ torch.tensor([8.0, 4, 2, 1])).long()
    expected = torch.logsumexp(-energies(state), dim=1).softmax(0)
    torch.testing.assert_close(torch.bincount(numbers, minlength=16) / 5e4, expected.float(), rtol=0, atol=0.01)


def test_machine_knows_its_layers() -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in Machine(5, 3).named_parameters()}
    assert shapes == {"weight": (3, 5), "visible_bias": (5,), "hidden_bias": (3,)}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        pytest.param(torch.zeros(2, 63), r"^Learner rbm: examples must have shape \(64,\) float32, got", id="shape"),
        pytest.param(torch.full((2, 64), -1.0), r"^Learner rbm: values must be 0 to 1, got -1\. Scale", id="range"),
        pytest.param(torch.full((2, 64), math.nan), r"^Learner rbm: values must be 0 to 1, got nan\.", id="nan"),
    ],
)
def test_check_refuses_what_is_not_binary(inputs: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        build_learner(Named(name="rbm")).check(unlabelled(inputs))


def test_build_of_an_exact_sum_over_too_many_states_is_refused() -> None:
    message = (
        r"^Learner rbm: partition must be auto or annealed where both layers have more than 20 units, got exact\.$"
    )
    with pytest.raises(LearnerError, match=message):
        build_learner(Named(name="rbm", hidden=21, partition="exact"))
