"""What recurrent networks write: texts from a prompt, or from nothing."""

from typing import Any

import pytest
import torch

from models import DataError, Examples, LearnerError
from models.learner import Sampler, SampleRequest
from tests.models.recurrences import CELLS, recurrent


def request(count: int = 1, seed: int = 1, **options: Any) -> SampleRequest:
    return SampleRequest(count, torch.Generator().manual_seed(seed), **options)


@pytest.mark.parametrize("name", CELLS)
def test_sample_at_low_temperature_takes_the_likeliest_code_each_time(name: str) -> None:
    learner = recurrent(name, vocabulary=8, hidden=16, layers=2, dropout=0.5)
    assert isinstance(learner, Sampler)
    state, prompt = learner.init(5), torch.tensor([3, 1, 4])
    state = {key: value * 3 for key, value in state.items()}
    found = learner.sample(state, request(2, prompt=prompt, length=12, temperature=1e-42))
    assert found.shape == (2, 15)
    assert found.dtype == torch.int64
    expected = prompt[None]
    with torch.no_grad():
        for _ in range(12):
            likeliest = learner._module(expected)[:, :, -1].argmax(dim=1, keepdim=True)
            expected = torch.cat([expected, likeliest], dim=1)
    assert torch.equal(found, expected.expand(2, -1))
    assert len(set(expected[0].tolist())) > 2


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_sample_without_prompt_draws_what_a_hidden_state_of_zeros_predicts(temperature: float) -> None:
    learner = recurrent("gru", vocabulary=4, hidden=4)
    state = {key: torch.zeros_like(value) for key, value in learner.init(5).items()}
    state["dense.bias"] = torch.tensor([0.0, 1.0, 2.0, -1.0])
    found = learner.sample(state, request(20_000, length=1, temperature=temperature))
    odds = (state["dense.bias"] / temperature).softmax(dim=0)
    # Within five deviations of the count of each code.
    deviations = (odds * (1 - odds) / 20_000).sqrt()
    assert (((found.flatten().bincount(minlength=4) / 20_000) - odds).abs() < 5 * deviations).all()


def test_sample_follows_from_its_generator_alone_and_changes_nothing() -> None:
    learner = recurrent("lstm", vocabulary=8, hidden=4, dropout=0.5)
    state, before = learner.init(5), torch.get_rng_state()
    kept = {key: value.clone() for key, value in state.items()}
    first = learner.sample(state, request(3, length=20))
    assert first.shape == (3, 20)
    learner.evaluate(learner.init(6), Examples(torch.tensor([[1]]), torch.tensor([[2]])))
    assert torch.equal(learner.sample(state, request(3, length=20)), first)
    assert not torch.equal(learner.sample(state, request(3, seed=2, length=20)), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(state[key], kept[key]) for key in kept)


def test_sample_of_no_length_is_the_prompt() -> None:
    learner = recurrent("rnn", vocabulary=8, hidden=4)
    found = learner.sample(learner.init(5), request(2, prompt=torch.tensor([5, 7]), length=0))
    assert found.tolist() == [[5, 7], [5, 7]]


def test_sample_of_a_classifier_is_refused() -> None:
    learner = recurrent("gru", task="classify", vocabulary=8)
    message = r"^Learner gru: task must be next_character to draw samples, got classify\.$"
    with pytest.raises(LearnerError, match=message):
        learner.sample(learner.init(5), request())


def test_sample_of_a_prompt_beyond_the_vocabulary_is_refused() -> None:
    learner = recurrent("gru", vocabulary=8)
    with pytest.raises(DataError, match=r"^Learner gru: codes of the prompt must be 0 to 7, got 9 in example 1\.$"):
        learner.sample(learner.init(5), request(prompt=torch.tensor([1, 9])))
