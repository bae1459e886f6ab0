"""Scheduled sampling: values of the schedules worked by hand, and how often a true code is fed."""

import math

import pytest
import torch

from models.scheduled_sampling import exponential, inverse_sigmoid, linear, mixed


def test_linear_falls_to_its_floor() -> None:
    assert [linear(steps, 0.9, 0.1, 0.25) for steps in (0, 1, 5, 100)] == pytest.approx([0.9, 0.8, 0.4, 0.25])


def test_exponential_is_k_to_the_steps() -> None:
    assert [exponential(steps, 0.5) for steps in (0, 1, 2, 10)] == pytest.approx([1, 0.5, 0.25, 1 / 1024])


@pytest.mark.parametrize("k", [1.0, 5.0, 100.0])
def test_inverse_sigmoid_is_that_of_the_paper(k: float) -> None:
    for steps in (0, 1, 10, 300):
        assert inverse_sigmoid(steps, k) == pytest.approx(k / (k + math.exp(steps / k)), abs=1e-12)
    assert inverse_sigmoid(k * math.log(k), k) == pytest.approx(0.5)
    assert inverse_sigmoid(1e9, k) == pytest.approx(0)


def test_mixed_feeds_true_codes_as_often_as_asked_and_else_draws_from_the_prediction() -> None:
    torch.manual_seed(1)
    true = torch.zeros(20_000, dtype=torch.int64)
    logits = torch.tensor([0.0, 0.75, 0.25]).log().expand(20_000, 3)
    parts = mixed(true, logits, 0.4).bincount(minlength=3) / 20_000
    torch.testing.assert_close(parts, torch.tensor([0.4, 0.45, 0.15]), atol=0.01, rtol=0)
    assert mixed(true, logits, 1.0).equal(true)
