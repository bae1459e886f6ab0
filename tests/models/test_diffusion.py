"""Denoising diffusion: the schedules, the closed forms against chained steps and Bayes' rule by hand, and digits that it learns to make."""

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.svm import SVC
from torch import Tensor

from choral.conformance.case import copied
from models import DataError, Examples, LearnerError, build_learner
from models.denoiser import LAST, ROUNDS, spread_levels
from models.diffusion import DDPM, DDPMParameters, Schedule, ScheduleName
from models.learner import Sampler, SampleRequest
from models.optimizers import ServerOptimizer
from tests.models.digits import FED_AVG, after_round, digits, generator, trained_slower
from wire.spec import LocalSpec, Named
from wire.tensors import Layout, State

NAMES: tuple[ScheduleName, ...] = ("linear", "cosine")
DOUBLE = torch.float64


def made(**parameters: Any) -> DDPM:
    # Without an average, which after the one round that most of these tests train would still have 2/11 of the beginning in it.
    return DDPM(DDPMParameters(**{"average_decay": 0.0, **parameters}), torch.device("cpu"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [2, 10, 100, 1000])
def test_schedule_goes_from_hardly_any_noise_to_hardly_anything_else(name: ScheduleName, steps: int) -> None:
    schedule = Schedule.named(name, steps)
    assert schedule.betas.shape == (steps,)
    assert ((schedule.betas > 0) & (schedule.betas <= 0.999)).all()
    assert (schedule.betas.diff() >= 0).all()
    assert (schedule.kept.diff() < 0).all()
    assert schedule.kept[-1] < 2e-3
    if steps >= 100:
        assert schedule.kept[0] > 0.998


def test_schedule_of_a_thousand_steps_has_the_papers_numbers() -> None:
    linear = Schedule.named("linear", 1000).betas
    assert (linear[0].item(), linear[-1].item()) == pytest.approx((1e-4, 0.02))
    torch.testing.assert_close(linear.diff(), torch.full((999,), 0.0199 / 999, dtype=DOUBLE))
    # Equation 17 of Nichol and Dhariwal, away from the end, where a beta is cut to 0.999.
    cosine = Schedule.named("cosine", 1000)
    places = [math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(1001)]
    expected = torch.tensor([place / places[0] for place in places[1:]], dtype=DOUBLE)
    torch.testing.assert_close(cosine.kept[:-1], expected[:-1])
    assert cosine.betas[-1] == 0.999


@pytest.mark.parametrize("name", NAMES)
def test_noise_at_once_has_the_moments_of_all_steps_one_after_another(name: ScheduleName) -> None:
    schedule = Schedule.named(name, 30)
    mean, variance = 1.7, 0.0
    for step, beta in enumerate(schedule.betas.tolist()):
        # x_t = sqrt(1 - beta) x_{t-1} + sqrt(beta) e
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
        at = torch.tensor([step])
        clean, nothing, one = (torch.full((1, 1), value, dtype=DOUBLE) for value in (1.7, 0.0, 1.0))
        assert schedule.noisy(clean, nothing, at).item() == pytest.approx(mean, rel=1e-12)
        assert schedule.noisy(nothing, one, at).item() ** 2 == pytest.approx(variance, rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_clean_takes_back_what_noisy_did(name: ScheduleName) -> None:
    schedule, draws = Schedule.named(name, 20), generator()
    clean, noise = (torch.randn(20, 1, 3, 2, dtype=DOUBLE, generator=draws) for _ in range(2))
    steps = torch.randperm(20, generator=draws)
    found = schedule.clean(schedule.noisy(clean, noise, steps), noise, steps)
    torch.testing.assert_close(found, clean, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_posterior_is_bayes_rule_by_hand(name: ScheduleName) -> None:
    # q(x_{t-1} | x_t, x_0) is in proportion to q(x_t | x_{t-1}) q(x_{t-1} | x_0), here summed over a fine grid of x_{t-1}.
    schedule = Schedule.named(name, 12)
    clean, noisy = 0.4, -0.3
    grid = torch.linspace(-12, 12, 480_001, dtype=DOUBLE)
    for step in (1, 4, 10):
        beta, before = schedule.betas[step].item(), schedule.kept_before[step].item()
        assert before == pytest.approx(math.prod(1 - beta for beta in schedule.betas[:step].tolist()))
        log_density = -((noisy - math.sqrt(1 - beta) * grid) ** 2) / (2 * beta)
        log_density -= (grid - math.sqrt(before) * clean) ** 2 / (2 * (1 - before))
        weights = log_density.softmax(0)
        expected = float((weights * grid).sum())
        spread = float((weights * (grid - expected).square()).sum())
        mean, variance = schedule.posterior(
            torch.full((1, 1), clean, dtype=DOUBLE), torch.full((1, 1), noisy, dtype=DOUBLE), torch.tensor([step])
        )
        assert mean.item() == pytest.approx(expected, rel=1e-6)
        assert variance.item() == pytest.approx(spread, rel=1e-6)


def test_posterior_of_the_first_step_is_the_example_itself() -> None:
    schedule = Schedule.named("linear", 12)
    clean, noisy = torch.randn(2, 3, 4, dtype=DOUBLE, generator=generator())
    mean, variance = schedule.posterior(clean, noisy, torch.zeros(3, dtype=torch.int64))
    torch.testing.assert_close(mean, clean)
    assert variance.tolist() == [0, 0, 0]


@pytest.mark.parametrize(("count", "levels"), [(8, 100), (100, 100), (960, 100), (24, 12)])
def test_levels_of_an_evaluation_are_as_frequent_as_can_be(count: int, levels: int) -> None:
    torch.manual_seed(1)
    found = spread_levels(count, levels, torch.device("cpu"))
    counts = torch.bincount(found, minlength=levels)
    assert len(found) == counts.sum() == count
    assert counts.max() <= math.ceil(count / levels) + 1
    assert counts.min() >= math.floor(count / levels) - 1
    if count % levels == 0:
        assert (counts == count // levels).all()
    assert not torch.equal(found, found.sort().values)


class Oracle(torch.nn.Module):
    """Knows that every example is the same one, so that it knows the noise as well."""

    def __init__(self, schedule: Schedule, example: Tensor) -> None:
        super().__init__()
        self.schedule, self.example = schedule, example

    def forward(self, noisy: Tensor, levels: Tensor) -> Tensor:
        kept = self.schedule.kept[levels].float().reshape(-1, 1)
        return (noisy - kept.sqrt() * self.example) / (1 - kept).sqrt()


def test_an_oracle_has_no_loss_and_draws_the_example() -> None:
    learner = made(inputs=[3], steps=20, low=-4.0, high=6.0)
    example = torch.tensor([[5.0, -3.5, 0.5]])
    data = Examples(example.repeat(40, 1), torch.empty(40, 0, dtype=torch.int64))
    # The range from -4 to 6 is scaled to -1 to 1.
    learner._module = Oracle(learner.schedule, example / 5 - 0.2)
    loss = float(learner.measure_batch(data)["loss"])
    assert loss == pytest.approx(0, abs=1e-8)
    torch.testing.assert_close(learner.draw(4), example.repeat(4, 1), rtol=0, atol=1e-5)


class Gauss(torch.nn.Module):
    """The best there is where each number of the data is from N(mean, deviation^2): E[e | x_t]."""

    def __init__(self, schedule: Schedule, mean: float, deviation: float) -> None:
        super().__init__()
        self.schedule, self.mean, self.deviation = schedule, mean, deviation

    def forward(self, noisy: Tensor, levels: Tensor) -> Tensor:
        kept = self.schedule.kept[levels].float().reshape(-1, 1)
        variance = kept * self.deviation**2 + 1 - kept
        return (1 - kept).sqrt() * (noisy - kept.sqrt() * self.mean) / variance


@pytest.mark.parametrize(("name", "steps"), [("linear", 800), ("cosine", 200)])
def test_draws_of_the_best_network_have_the_moments_of_the_data(name: ScheduleName, steps: int) -> None:
    learner = made(inputs=[2], steps=steps, schedule=name, low=-1.0, high=1.0)
    learner._module = Gauss(learner.schedule, 0.3, 0.2)
    torch.manual_seed(1)
    found = learner.draw(4000)
    assert found.mean().item() == pytest.approx(0.3, abs=0.01)
    assert found.std().item() == pytest.approx(0.2, rel=0.05)


def test_draws_are_kept_within_the_range_at_the_end_alone() -> None:
    # Where the data come from N(0.9, 0.3^2) and end at 1, what lies beyond 1 is moved there, and the rest stays where it was.
    learner = made(inputs=[2], steps=400, low=-1.0, high=1.0)
    learner._module = Gauss(learner.schedule, 0.9, 0.3)
    torch.manual_seed(1)
    found = learner.draw(4000).flatten()
    whole = NormalDist(0.9, 0.3)
    assert found.max().item() == 1
    assert (found == 1).float().mean().item() == pytest.approx(1 - whole.cdf(1.0), abs=0.02)
    assert found.quantile(0.25).item() == pytest.approx(whole.inv_cdf(0.25), abs=0.02)


@pytest.mark.parametrize("network", ["mlp", "unet"])
def test_networks_learn_and_sample(images: Examples, network: str) -> None:
    learner = made(network=network, steps=20, **({"channels": [8, 16]} if network == "unet" else {}))
    assert isinstance(learner, Sampler)
    data, held_out = images.select(torch.arange(400)), images.select(torch.arange(1400, 1600))
    before = learner.evaluate(learner.init(5), held_out).metrics["loss"]
    state = trained_slower(learner, data, [(3, 0.003)])
    # Of noise that it does not tell from the example, the error is 1.
    assert learner.evaluate(state, held_out).metrics["loss"] < 0.7 < 0.95 < before
    samples = learner.sample(state, SampleRequest(3, generator()))
    assert samples.shape == (3, 1, 8, 8)
    assert samples.dtype == torch.float32
    assert samples.min() >= 0
    assert samples.max() <= 1
    assert torch.equal(samples, learner.sample(state, SampleRequest(3, generator())))
    assert not torch.equal(samples, learner.sample(state, SampleRequest(3, generator(2))))


def test_average_over_rounds_is_the_one_worked_by_hand() -> None:
    learner = made(inputs=[2], hidden=[], average_decay=0.27)
    begun = copied(learner.init(1))
    state: State = learner.init(1)
    layout = learner.contribution_layout
    expected, last = 0.0, 0.0
    # (1 + t) / (10 + t), until that is more than the decay: 4/13 is 0.31.
    for change, decay in ((1.0, 2 / 11), (2.0, 3 / 12), (-4.0, 0.27)):
        last += change
        expected = decay * expected + (1 - decay) * last
        mean = {entry.name: torch.full(entry.shape, change) for entry in layout.entries}
        state = learner.apply(state, mean, ServerOptimizer(FED_AVG), 10)
    for entry in layout.entries:
        torch.testing.assert_close(state[entry.name], begun[entry.name] + expected)
        torch.testing.assert_close(state[LAST + entry.name], begun[entry.name] + last)
    assert state[ROUNDS].tolist() == [3]


def test_training_goes_on_from_the_last_round_and_the_average_is_the_model(images: Examples) -> None:
    learner = made(hidden=[16], steps=5, average_decay=0.9)
    data, names = images.select(torch.arange(64)), [entry.name for entry in learner.contribution_layout.entries]
    state = learner.init(1)
    other_average = {**state, **{name: state[name] + 0.1 for name in names}}
    other_last = {**state, **{LAST + name: state[name] + 0.1 for name in names}}
    local, request = LocalSpec(epochs=1, batch_size=32), SampleRequest(2, generator())
    own, same, another = (
        learner.fit(given, data, local, generator(), lambda fraction: None).vector.copy()
        for given in (state, other_average, other_last)
    )
    assert own.tobytes() == same.tobytes() != another.tobytes()
    assert learner.evaluate(state, data) == learner.evaluate(other_last, data) != learner.evaluate(other_average, data)
    samples = learner.sample(state, request)
    assert torch.equal(samples, learner.sample(other_last, SampleRequest(2, generator())))
    assert not torch.equal(samples, learner.sample(other_average, SampleRequest(2, generator())))


def test_average_is_downloaded_but_not_uploaded() -> None:
    plain, averaged = made(hidden=[16]), made(hidden=[16], average_decay=0.9)
    model, state = plain.init(1), averaged.init(1)
    assert Layout.of(model) == plain.contribution_layout == averaged.contribution_layout
    assert set(state) == {*model, *(LAST + name for name in model), ROUNDS}
    assert all(torch.equal(state[name], tensor) for name, tensor in model.items())
    assert all(torch.equal(state[LAST + name], tensor) for name, tensor in model.items())


def test_average_predicts_noise_better_than_the_last_round() -> None:
    learner, data, unseen = made(average_decay=0.99), digits(0, 1, 2, 3), digits(11)
    state: State = learner.init(1)
    adam = Named(name="adam", learning_rate=0.003)
    for number in range(15):
        state = after_round(learner, state, data, number, epochs=2, batch_size=32, optimizer=adam)
    last = {**state, **{entry.name: state[LAST + entry.name] for entry in learner.contribution_layout.entries}}
    average, alone = (learner.evaluate(model, unseen).metrics["loss"] for model in (state, last))
    assert average < 0.97 * alone


@pytest.mark.parametrize("shape", [[3, 16, 12], [1, 4, 4]])
def test_unet_takes_images_of_other_shapes_and_is_told_the_level(shape: list[int]) -> None:
    learner = made(inputs=shape, network="unet", channels=[8, 16, 24])
    images = torch.randn(2, *shape, generator=generator())
    outputs = learner.predict(images, torch.tensor([3, 3]))
    assert outputs.shape == images.shape
    assert not torch.allclose(outputs, learner.predict(images, torch.tensor([3, 90]))[:1].expand_as(outputs))
    assert (outputs[1] - learner.predict(images, torch.tensor([3, 90]))[1]).abs().max() > 1e-3


def test_evaluation_noise_hardly_moves_the_loss(images: Examples) -> None:
    learner = made()
    state = trained_slower(learner, images, [(2, 0.003)])
    halves = [images.select(torch.arange(start, 1796, 2)) for start in (0, 1)]
    left, right = (learner.evaluate(state, half).metrics["loss"] for half in halves)
    assert left != right
    assert left == pytest.approx(right, rel=0.03)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"low": 1.0}, r"high must be above low \(1\), got 1"),
        ({"network": "unet", "inputs": [64]}, "inputs must be channels, height and width"),
        ({"network": "unet", "inputs": [1, 9, 8]}, "both a multiple of 2 for a unet of 2 channels"),
        ({"schedule": "square"}, "schedule must be 'linear' or 'cosine', got 'square'"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(LearnerError, match=message):
        build_learner(Named(name="ddpm", **parameters))


def test_values_out_of_range_are_refused(images: Examples) -> None:
    learner = made()
    learner.check(images)
    with pytest.raises(DataError, match=r"values must be low to high, 0 to 1, got -1 to 1\. Set low and high"):
        learner.check(Examples(2 * images.inputs - 1, images.targets))
    with pytest.raises(DataError, match="values must be low to high"):
        learner.check(Examples(images.inputs * math.nan, images.targets))


@pytest.mark.slow
def test_digits_reach_the_reference_and_every_class_is_made() -> None:
    learner, data, unseen = made(average_decay=0.99), digits(*range(11)), digits(11, 12, 13)
    state = trained_slower(learner, data, [(5, 0.003)] * 16 + [(5, 0.001)] * 6 + [(5, 0.0003)] * 6)
    assert learner.evaluate(state, unseen).metrics["loss"] < 0.13
    samples = learner.sample(state, SampleRequest(1000, generator()))
    classifier = SVC().fit(data.inputs.flatten(1).numpy(), data.targets.numpy())
    assert classifier.score(unseen.inputs.flatten(1).numpy(), unseen.targets.numpy()) > 0.9
    counts = np.bincount(classifier.predict(samples.flatten(1).numpy()), minlength=10)
    # Ten classes are a tenth each in the data; a floor, because the rarest one moves by some percent with the draws.
    assert counts.min() >= 40, counts
