"""Generative adversarial networks: the value of the game where it can be worked out, whose turn changes what, and a ring of Gaussians."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import energy_distance as rooted_distance  # type: ignore[import-untyped]
from torch import Tensor, nn

from models import Contribution, DataError, Examples, LearnerError, build_learner
from models.gan import GAN, GANParameters, discriminator_loss, energy_distance, generator_loss
from models.learner import Sampler, SampleRequest
from wire.spec import LocalSpec, Named
from wire.tensors import Layout, State

ADAM = Named(name="adam", learning_rate=0.001, betas=[0.5, 0.999])
SGD = Named(name="sgd", learning_rate=0.1)


def made(**parameters: Any) -> GAN:
    return GAN(GANParameters(**parameters), torch.device("cpu"))


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unlabelled(inputs: Tensor) -> Examples:
    return Examples(inputs, torch.empty(len(inputs), 0, dtype=torch.int64))


def fit(learner: GAN, state: State, data: Examples, **local: Any) -> Contribution:
    return learner.fit(state, data, LocalSpec(**local), generator(), lambda fraction: None)


def trained(learner: GAN, state: State, data: Examples, **local: Any) -> State:
    layout = Layout.of(state)
    return {**state, **layout.views(layout.flatten(state) + fit(learner, state, data, **local).vector)}


def best_answer(data: Tensor, made: Tensor) -> tuple[Tensor, float]:
    """Return D at each of a few points for the best discriminator, found by descent on its loss, and the value of the game.

    Args:
        data: How often each point occurs in the data, float64 (points,).
        made: How often the generator makes it.
    """
    rows = [torch.repeat_interleave(torch.arange(len(data)), (part * 100).round().long()) for part in (data, made)]
    logits = nn.Parameter(torch.zeros(len(data), dtype=torch.float64))
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-16)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = discriminator_loss(logits[rows[0]], logits[rows[1]])
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        return logits.sigmoid(), -float(discriminator_loss(logits[rows[0]], logits[rows[1]]))


def test_at_the_equilibrium_the_best_discriminator_says_half_and_the_value_is_minus_log_4() -> None:
    points = torch.tensor([0.5, 0.25, 0.05, 0.2], dtype=torch.float64)
    answer, value = best_answer(points, points)
    torch.testing.assert_close(answer, torch.full((4,), 0.5, dtype=torch.float64))
    assert value == pytest.approx(-math.log(4))
    assert float(generator_loss(answer.logit())) == pytest.approx(math.log(2))


def test_away_from_it_the_best_discriminator_and_the_value_are_those_of_the_theorem() -> None:
    data = torch.tensor([0.5, 0.25, 0.05, 0.2], dtype=torch.float64)
    made = torch.tensor([0.1, 0.25, 0.6, 0.05], dtype=torch.float64)
    answer, value = best_answer(data, made)
    torch.testing.assert_close(answer, data / (data + made), rtol=1e-5, atol=1e-6)  # proposition 1
    middle = (data + made) / 2
    divergence = 0.5 * sum(float((part * (part / middle).log()).sum()) for part in (data, made))
    assert divergence > 0.05
    assert value == pytest.approx(2 * divergence - math.log(4))  # theorem 1


def test_energy_distance_is_scipys_without_bias() -> None:
    left = torch.randn(7, 1, generator=generator()) + 1
    right = 2 * torch.randn(5, 1, generator=generator(2))
    # scipy's is the root of a sum in which points are also 0 away from themselves.
    spreads = [torch.cdist(points, points).mean() for points in (left, right)]
    bias = sum(spread / (len(points) - 1) for spread, points in zip(spreads, (left, right), strict=True))
    expected = rooted_distance(left.flatten().numpy(), right.flatten().numpy()) ** 2 - float(bias)
    assert energy_distance(left, right).item() == pytest.approx(expected, rel=1e-4)


def test_energy_distance_is_0_in_the_mean_for_one_distribution_and_above_for_two() -> None:
    draws = generator()
    same, other = [], []
    for _ in range(400):
        left, right = torch.randn(2, 16, 3, generator=draws)
        same.append(energy_distance(left, right).item())
        other.append(energy_distance(left, right + 1).item())
    assert abs(np.mean(same)) < 4 * np.std(same) / 20
    assert min(same) < 0
    assert np.mean(other) > 0.5


def test_energy_distance_of_a_single_example_is_finite() -> None:
    assert energy_distance(torch.ones(1, 2), torch.ones(1, 2)).item() == 0
    assert energy_distance(torch.zeros(3, 4), torch.tensor([[1.0, 1, 1, 1]])).item() == pytest.approx(4)


def test_first_steps_of_both_are_those_of_gradients_worked_out_here() -> None:
    learner = made(inputs=[2], latent=3, hidden=[])
    state, data = learner.init(5), unlabelled(torch.randn(6, 2, generator=generator()))
    found = Layout.of(state).views(fit(learner, state, data, batch_size=6, optimizer=SGD).vector)
    draws = generator()
    seed = int(torch.randint(1 << 62, (), generator=draws))
    noise = torch.randn(6, 3, generator=torch.Generator().manual_seed(seed)).double()
    weight, bias = state["generator.0.weight"].double(), state["generator.0.bias"].double()
    judge, offset = state["discriminator.1.weight"].double()[0], state["discriminator.1.bias"].double()
    real, fake = data.inputs.double(), noise @ weight.T + bias
    # d/du softplus(-u) = -sigmoid(-u), d/du softplus(u) = sigmoid(u)
    of_real, of_fake = -torch.sigmoid(-(real @ judge + offset)), torch.sigmoid(fake @ judge + offset)
    judge_change = -0.1 * (of_real @ real + of_fake @ fake) / 6
    torch.testing.assert_close(found["discriminator.1.weight"][0].double(), judge_change, rtol=1e-4, atol=1e-7)
    # The generator answers the discriminator that has just learned.
    judge, offset = judge + judge_change, offset - 0.1 * (of_real + of_fake).mean()
    of_fake = -torch.sigmoid(-(fake @ judge + offset))
    weight_change = -0.1 * torch.outer(judge, of_fake @ noise) / 6
    torch.testing.assert_close(found["generator.0.weight"].double(), weight_change, rtol=1e-4, atol=1e-7)


def test_adam_of_one_player_knows_nothing_of_the_other() -> None:
    # Adam's first step is the learning rate in each direction: both players take one, and only one, from a single batch.
    learner = made(hidden=[8])
    state, data = learner.init(5), unlabelled(torch.randn(16, 2, generator=generator()))
    optimizer = Named(name="adam", learning_rate=0.01, eps=1e-12)
    change = Layout.of(state).views(fit(learner, state, data, batch_size=16, optimizer=optimizer).vector)
    for name in ("generator.2.bias", "discriminator.3.weight"):
        torch.testing.assert_close(change[name].abs(), torch.full_like(change[name], 0.01), rtol=1e-3, atol=1e-6)


def test_clipped_and_held_back_players_move_less() -> None:
    learner = made(hidden=[8])
    state, data = learner.init(5), unlabelled(torch.randn(64, 2, generator=generator()) + 3)
    layout = Layout.of(state)

    def moved(**local: Any) -> dict[str, float]:
        views = layout.views(fit(learner, state, data, optimizer=SGD, **local).vector)
        own = {player: [view for name, view in views.items() if name.startswith(player)] for player in ("gen", "dis")}
        return {player: float(torch.cat([view.flatten() for view in mine]).norm()) for player, mine in own.items()}

    free, clipped = moved(batch_size=64), moved(batch_size=64, clip_norm=0.01)
    assert min(free.values()) > 0.002
    assert clipped == {"gen": pytest.approx(0.001, rel=1e-3), "dis": pytest.approx(0.001, rel=1e-3)}
    long, held = moved(batch_size=16, epochs=5), moved(batch_size=16, epochs=5, proximal_mu=5.0)
    assert held["gen"] < 0.7 * long["gen"]
    assert held["dis"] < 0.7 * long["dis"]


def test_losses_of_both_are_reported_of_the_last_epoch() -> None:
    # A learning rate of zero keeps both, and D that is 1/2 everywhere has the losses of the equilibrium.
    learner = made(hidden=[8])
    state = dict(learner.init(5))
    for name in ("discriminator.3.weight", "discriminator.3.bias"):
        state[name] = torch.zeros_like(state[name])
    data = unlabelled(torch.randn(50, 2, generator=generator()))
    still = Named(name="sgd", learning_rate=0.0)
    metrics = fit(learner, state, data, epochs=3, batch_size=16, optimizer=still).metrics
    assert metrics["train_generator_loss"] == pytest.approx(math.log(2))
    assert metrics["train_discriminator_loss"] == pytest.approx(math.log(4))
    assert metrics["train_loss"] == pytest.approx(math.log(8))
    found = learner.evaluate(state, data).metrics
    assert set(found) == {"loss", "generator_loss", "discriminator_loss"}
    assert found["generator_loss"] == pytest.approx(math.log(2))
    assert found["discriminator_loss"] == pytest.approx(math.log(4))
    assert fit(learner, state, data, epochs=0).metrics == {}


CENTRES = 2 * torch.tensor([[math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)] for k in range(8)])


def ring(count: int, seed: int) -> Examples:
    """Return points near eight places on a circle."""
    draws = generator(seed)
    places = CENTRES[torch.randint(8, (count,), generator=draws)]
    return unlabelled(places + 0.05 * torch.randn(count, 2, generator=draws))


def modes_hit(samples: Tensor) -> int:
    """Return at how many of the eight places there are at least 2 of 100 samples."""
    distances, places = torch.cdist(samples, CENTRES).min(dim=1)
    return int((torch.bincount(places[distances < 0.3], minlength=8) >= 0.02 * len(samples)).sum())


def test_ring_of_gaussians_is_made_with_most_of_its_modes() -> None:
    learner, unseen = made(latent=8), ring(512, 2)
    assert isinstance(learner, Sampler)
    first = learner.init(5)
    adam = Named(name="adam", learning_rate=0.002, betas=[0.5, 0.999])
    state = trained(learner, first, ring(2000, 1), epochs=25, batch_size=100, optimizer=adam)
    request = SampleRequest(2000, generator())
    assert modes_hit(learner.sample(first, request)) == 0
    assert modes_hit(learner.sample(state, request)) >= 6
    before, after = (learner.evaluate(model, unseen).metrics for model in (first, state))
    assert all(map(math.isfinite, after.values()))
    assert after["loss"] < 0.15 < 1 < before["loss"]


def test_game_against_one_gaussian_comes_near_the_equilibrium() -> None:
    data = unlabelled(3 + 0.5 * torch.randn(1000, 1, generator=generator()))
    learner = made(inputs=[1], hidden=[32])
    state = trained(learner, learner.init(5), data, epochs=20, batch_size=50, optimizer=ADAM)
    samples = learner.sample(state, SampleRequest(4000, generator()))
    assert samples.mean().item() == pytest.approx(3, abs=0.3)
    assert samples.std().item() == pytest.approx(0.5, abs=0.25)
    metrics = learner.evaluate(state, data).metrics
    assert metrics["discriminator_loss"] == pytest.approx(math.log(4), abs=0.1)
    assert metrics["generator_loss"] == pytest.approx(math.log(2), abs=0.1)


def test_images_are_made_by_convolutions_that_learn(images: Examples) -> None:
    learner = made(kind="images", inputs=[1, 8, 8], channels=[16, 32])
    state = learner.init(5)
    assert state["generator.5.weight"].std().item() == pytest.approx(0.02, rel=0.1)
    data, unseen = images.select(torch.arange(600)), images.select(torch.arange(1400, 1797))
    before = learner.evaluate(state, unseen).metrics["loss"]
    optimizer = Named(name="adam", learning_rate=0.002, betas=[0.5, 0.999])
    state = trained(learner, state, data, epochs=6, batch_size=32, optimizer=optimizer)
    assert learner.evaluate(state, unseen).metrics["loss"] < 0.6 * before
    samples = learner.sample(state, SampleRequest(5, generator()))
    assert samples.shape == (5, 1, 8, 8)
    assert samples.min() >= 0
    assert samples.max() <= 1
    assert torch.equal(samples, learner.sample(state, SampleRequest(5, generator())))
    assert not torch.equal(samples, learner.sample(state, SampleRequest(5, generator(2))))


@pytest.mark.parametrize("shape", [[3, 16, 32], [1, 4, 4]])
def test_images_of_other_sizes_have_both_networks(shape: list[int]) -> None:
    learner = made(kind="images", inputs=shape, channels=[8] if shape[1] == 4 else [8, 16, 24])
    data = unlabelled(torch.rand(3, *shape, generator=generator()))
    learner.check(data)
    state = trained(learner, learner.init(1), data, batch_size=2, optimizer=ADAM)
    assert learner.sample(state, SampleRequest(2, generator())).shape == (2, *shape)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([64], "inputs must be channels, height and width"),
        ([1, 8, 6], r"both a multiple of 4 and at least 8 for 2 convolutions, got \[1, 8, 6\]"),
        ([1, 4, 8], "at least 8 for 2 convolutions"),
    ],
)
def test_images_that_cannot_be_halved_are_refused(inputs: list[int], message: str) -> None:
    with pytest.raises(LearnerError, match=message):
        build_learner(Named(name="gan", kind="images", inputs=inputs))


def test_statistics_that_stay_with_each_client_are_refused() -> None:
    with pytest.raises(LearnerError, match=r"^Learner gan: statistics must be 'averaged', got 'local'\.$"):
        build_learner(Named(name="gan", kind="images", inputs=[1, 8, 8], statistics="local"))


def test_images_out_of_range_are_refused_and_points_are_not(images: Examples) -> None:
    beyond = Examples(3 * images.inputs, images.targets)
    learner = made(kind="images", inputs=[1, 8, 8])
    learner.check(images)
    with pytest.raises(DataError, match="values of images must be 0 to 1, got 0 to 3"):
        learner.check(beyond)
    made(inputs=[1, 8, 8]).check(beyond)


def test_targets_of_another_kind_are_refused(images: Examples) -> None:
    learner = made(inputs=[1, 8, 8])
    with pytest.raises(DataError, match=r"targets must be numbers, a row of them or none.* got shape \(1797, 1, 1\)"):
        learner.check(Examples(images.inputs, images.targets[:, None, None]))
