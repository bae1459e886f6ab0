"""Denoising score matching against scores in closed form, Langevin dynamics against its own moments, and digits that it learns to make."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from models import DataError, Examples, LearnerError, build_learner
from models.gan import energy_distance
from models.learner import Sampler, SampleRequest
from models.score import LevelScale, ScoreMatching, ScoreMatchingParameters, langevin
from tests.models.digits import digits, generator, trained_slower, unlabelled
from wire.spec import Named


def made(**parameters: Any) -> ScoreMatching:
    # Without an average, which after the one round that these tests train would still have 2/11 of the beginning in it.
    return ScoreMatching(ScoreMatchingParameters(**{"average_decay": 0.0, **parameters}), torch.device("cpu"))


def test_sigmas_fall_by_the_same_part_each() -> None:
    sigmas = made(noise_levels=5, sigma_high=2.0, sigma_low=0.02).sigmas
    torch.testing.assert_close(sigmas, torch.tensor([2.0, 0.632456, 0.2, 0.0632456, 0.02]))


def test_loss_is_sigma_squared_times_the_distance_from_the_score_of_the_noise() -> None:
    learner = made(inputs=[3], noise_levels=4)
    inputs, levels = torch.rand(4, 3, generator=generator()), torch.arange(4)
    torch.manual_seed(2)
    with torch.no_grad():
        found = float(learner._loss_at(inputs, levels))
    torch.manual_seed(2)
    noise = torch.randn_like(inputs)
    terms = []
    for level, sigma in enumerate(learner.sigmas.tolist()):
        noisy = (inputs[level] + sigma * noise[level])[None]
        score = learner.score(learner._module.state_dict(), noisy, level)
        # The gradient of log N(noisy; inputs, sigma^2) is -noise / sigma.
        terms.append(sigma**2 * (score + noise[level] / sigma).square().mean().item())
    assert found == pytest.approx(sum(terms) / 4, rel=1e-5)


def test_score_of_one_gaussian_is_learned_within_5_percent() -> None:
    torch.manual_seed(3)
    mean, deviation = torch.tensor([0.5, -1.0]), 0.8
    drawn = torch.randn(15_000, 2)
    data = unlabelled(mean + deviation * (drawn - drawn.mean(0)) / drawn.std(0))
    learner = made(inputs=[2], hidden=[64], noise_levels=6, mean=0.0, deviation=deviation)
    state = trained_slower(learner, data, [(15, 0.01), (15, 0.003), (10, 0.0005), (10, 0.0001)], 1000)
    assert learner.sigmas[-1] == pytest.approx(0.05)
    for level, sigma in enumerate(learner.sigmas.tolist()):
        inputs = mean + math.hypot(deviation, sigma) * torch.randn(1000, 2, generator=generator(level))
        expected = -(inputs - mean) / (deviation**2 + sigma**2)  # of s^2 with the noise in it
        error = (learner.score(state, inputs, level) - expected).norm() / expected.norm()
        assert error < 0.05, (sigma, error)


def test_langevin_comes_to_the_moments_that_its_steps_have() -> None:
    # Of N(m, v), a step is x - m <- (1 - a / 2v)(x - m) + sqrt(a) z, which rests at variance a / (1 - (1 - a / 2v)^2).
    torch.manual_seed(4)
    mean, variance, step = 2.0, 0.5, 0.3
    found = langevin(torch.zeros(40_000, 1), lambda x: -(x - mean) / variance, step, 60)
    shrinking = 1 - step / (2 * variance)
    assert found.mean().item() == pytest.approx(mean, abs=0.02)
    assert found.var().item() == pytest.approx(step / (1 - shrinking**2), rel=0.03)


class Gauss(torch.nn.Module):
    """What a network has to add where each number of the data is from N(mean, deviation^2), and the learner takes another for it."""

    def __init__(self, learner: ScoreMatching, mean: float, deviation: float) -> None:
        super().__init__()
        self.sigmas, self.own = learner.sigmas, learner.parameters
        self.mean, self.deviation = mean, deviation

    def forward(self, scaled: Tensor, levels: Tensor) -> Tensor:
        sigmas = self.sigmas[levels][:, None]
        spread = (sigmas**2 + self.own.deviation**2).sqrt()
        noisy = scaled * spread + self.own.mean
        noise = sigmas * (noisy - self.mean) / (self.deviation**2 + sigmas**2)
        return noise * spread / sigmas - scaled


class Nothing(torch.nn.Module):
    """Adds nothing."""

    def forward(self, scaled: Tensor, levels: Tensor) -> Tensor:
        return torch.zeros_like(scaled)


def test_score_of_the_gaussian_that_the_parameters_describe_needs_no_network() -> None:
    learner = made(inputs=[2], sigma_low=1e-4, mean=-2.0, deviation=0.7)
    learner._module = Nothing()
    inputs = torch.randn(5, 2, generator=generator())
    for level, sigma in enumerate(learner.sigmas.tolist()):
        torch.testing.assert_close(learner._score_at(level, inputs), -(inputs + 2.0) / (0.49 + sigma**2))


def test_scale_of_a_level_begins_at_1_and_is_learned() -> None:
    learner = made(inputs=[2], hidden=[8])
    module = learner._module
    assert isinstance(module, LevelScale)
    inputs, levels = torch.randn(3, 2, generator=generator()), torch.arange(3)
    assert torch.equal(module(inputs, levels), module.network(inputs, levels))
    with torch.no_grad():
        module.log_scale.bias.fill_(math.log(3))
    torch.testing.assert_close(module(inputs, levels), 3 * module.network(inputs, levels))
    learner.batch_loss(unlabelled(inputs)).backward()  # type: ignore[no-untyped-call]
    assert module.log_scale.weight.grad is not None
    assert module.log_scale.weight.grad.abs().max() > 0


def test_draws_of_the_best_network_have_the_moments_of_the_data() -> None:
    learner = made(inputs=[2], sigma_low=0.1, step_size=0.1)
    learner._module = Gauss(learner, 0.3, 0.5)
    torch.manual_seed(1)
    found = learner.draw(10_000)
    assert found.mean().item() == pytest.approx(0.3, abs=0.02)
    # The last step to the mean leaves s^4 / (s^2 + sigma^2) of the variance.
    assert found.std().item() == pytest.approx(0.25 / math.hypot(0.5, 0.1), rel=0.03)


@pytest.mark.parametrize("network", ["mlp", "unet"])
def test_networks_learn_and_sample(images: Examples, network: str) -> None:
    learner = made(network=network, langevin_steps=3, **({"channels": [8, 16]} if network == "unet" else {}))
    assert isinstance(learner, Sampler)
    data, held_out = images.select(torch.arange(400)), images.select(torch.arange(1400, 1600))
    before = learner.evaluate(learner.init(5), held_out).metrics["loss"]
    state = trained_slower(learner, data, [(3, 0.003)])
    # Without a network it is 0.64.
    assert learner.evaluate(state, held_out).metrics["loss"] < 0.6 < before
    samples = learner.sample(state, SampleRequest(3, generator()))
    assert samples.shape == (3, 1, 8, 8)
    assert samples.dtype == torch.float32
    assert samples.isfinite().all()
    assert torch.equal(samples, learner.sample(state, SampleRequest(3, generator())))
    assert not torch.equal(samples, learner.sample(state, SampleRequest(3, generator(2))))


def test_smallest_noise_above_the_largest_is_refused() -> None:
    with pytest.raises(LearnerError, match=r"sigma_low must be at most sigma_high \(0.5\), got 0.6"):
        build_learner(Named(name="score_matching", sigma_high=0.5, sigma_low=0.6))


def test_values_that_are_not_finite_are_refused(images: Examples) -> None:
    learner, inputs = made(), images.inputs.clone()
    learner.check(images)
    inputs[7, 0, 3, 3] = math.inf
    with pytest.raises(DataError, match="values must be finite, got another one in example 7"):
        learner.check(Examples(inputs, images.targets))


@pytest.mark.slow
def test_digits_reach_the_reference_and_samples_come_near_them() -> None:
    learner, data, unseen = made(), digits(*range(11)), digits(11, 12, 13)
    state = trained_slower(learner, data, [(60, 0.003), (20, 0.001), (20, 0.0003)])
    assert learner.evaluate(state, unseen).metrics["loss"] < 0.335
    samples = learner.sample(state, SampleRequest(1000, generator()))
    # Of the noise that samples begin as it is 3.4.
    assert energy_distance(samples, unseen.inputs) < 0.25
