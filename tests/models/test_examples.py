"""The example of each learner, as it is shipped: what the federation learns is better than its floor, on data that no client has.

The clients are those of the example's command, of which the last fifth of the natural keys (form blocks, roles, letters, spans of years) is
kept for the test, or a fifth of the examples where there are none.
"""

import json
from dataclasses import dataclass

import pytest

from benchmarks.zoo import dealt, trained
from choral.zoo_page import RESULTS
from models import MODELS
from models.examples import example_of


@dataclass(frozen=True)
class Floor:
    """What a measure must be better than: above the bound, or for errors below it."""

    measure: str
    bound: float
    is_error: bool = False

    def is_beaten_by(self, value: float) -> bool:
        return value < self.bound if self.is_error else value > self.bound


FLOORS = {
    "perceptron": Floor("accuracy", 0.86),
    "mlp": Floor("accuracy", 0.87),
    "mlp_regressor": Floor("mse", 0.6, is_error=True),  # persistence: see test_recurrent_learning.py
    "rbf_network": Floor("accuracy", 0.91),
    "cnn": Floor("accuracy", 0.87),
    "autoencoder": Floor("mse", 0.0225, is_error=True),  # as many principal components of pooled data: .0245
    "conv_autoencoder": Floor("mse", 0.015, is_error=True),
    "vae": Floor("elbo", -25.6),
    "rbm": Floor("log_likelihood", -20.0),  # independent pixels: -24.6
    "bayesian_network": Floor("log_likelihood", -2.9),
    "gan": Floor("loss", 0.15, is_error=True),
    "ddpm": Floor("loss", 0.2, is_error=True),
    "score_matching": Floor("loss", 0.45, is_error=True),
    "rnn": Floor("bits_per_character", 3.2, is_error=True),
    "lstm": Floor("bits_per_character", 3.2, is_error=True),
    "gru": Floor("mse", 0.27, is_error=True),
    "seq2seq": Floor("error_rate", 0.55, is_error=True),
    "transformer": Floor("error_rate", 0.38, is_error=True),
    "gpt": Floor("bits_per_character", 4.0, is_error=True),
    "bert": Floor("accuracy", 0.19),  # the commonest character: .16
    "t5": Floor("accuracy", 0.21),
    "hf_causal_lm": Floor("bits_per_character", 3.06, is_error=True),
    "hf_sequence_classifier": Floor("accuracy", 0.36),
    "evolution": Floor("accuracy", 0.88),
    "genetic": Floor("accuracy", 0.81),
}


NEED_A_BASE = ("hf_causal_lm", "hf_sequence_classifier")
"""Learners whose examples begin with a model that a machine need not have."""


def test_every_learner_has_a_floor_that_its_published_result_beats_and_one_client_alone_does_not() -> None:
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert set(results) == set(FLOORS) == set(MODELS)
    for name, floor in FLOORS.items():
        found = results[name]
        assert floor.is_beaten_by(found["federated"][floor.measure]), name
        assert not floor.is_beaten_by(found["alone"][floor.measure]), name


def test_published_results_are_those_of_the_examples_as_they_are() -> None:
    for name, found in json.loads(RESULTS.read_text(encoding="utf-8")).items():
        example = example_of(name)
        assert (found["data"], found["rounds"]) == (example.data, example.spec.rounds), name


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", [name for name in FLOORS if name not in NEED_A_BASE])
def test_federation_of_each_example_beats_its_floor_on_data_that_no_client_has(name: str) -> None:
    example, floor = example_of(name), FLOORS[name]
    federation = dealt(example)
    found = trained(example.spec, federation.clients, federation.test, None)
    assert floor.is_beaten_by(found[floor.measure]), found
