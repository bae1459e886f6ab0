"""`choral query`: what a saved Bayesian network answers."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models import Examples, ServerOptimizer, build_learner
from tests.choral.command_line import Choral, sentence
from wire.saved import LEARNER_KEY
from wire.spec import LocalSpec, Named
from wire.tensors import State

WEATHER = Named(
    name="bayesian_network",
    variables=[{"name": "rain", "states": 2}, {"name": "wet", "states": 2, "parents": ["rain"]}],
    smoothing=1.0,
)


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A network that has seen six dry days, of which one was wet, and four days of rain, all of them wet."""
    days = torch.tensor([[0, 0]] * 5 + [[0, 1]] + [[1, 1]] * 4)
    learner = build_learner(WEATHER)
    data = Examples(days, torch.zeros(len(days), 0, dtype=torch.int64))
    found = learner.fit(learner.init(1), data, LocalSpec(), torch.Generator(), lambda fraction: None)
    mean = learner.contribution_layout.views(found.vector)
    state = learner.apply(learner.init(1), mean, ServerOptimizer(Named(name="sgd", learning_rate=1.0)), len(days))
    return saved(tmp_path / "model.safetensors", WEATHER, state)


def saved(path: Path, named: Named, state: State) -> str:
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(tensors, path, metadata={LEARNER_KEY: named.model_dump_json()})
    return str(path)


def test_query_without_evidence_is_the_marginal(choral: Choral, model: str) -> None:
    # With one more of each: P(rain) = 5/12, P(wet | dry) = 2/8, P(wet | rain) = 5/6.
    wet = 7 / 12 * 2 / 8 + 5 / 12 * 5 / 6
    outcome = choral("query", model, "wet")
    assert (outcome.code, outcome.lines) == (0, [f"wet=0  {1 - wet:.6f}", f"wet=1  {wet:.6f}"])


def test_query_given_a_child_is_the_rule_of_bayes(choral: Choral, model: str) -> None:
    wet_and_rain, wet_and_dry = 5 / 12 * 5 / 6, 7 / 12 * 2 / 8
    rain = wet_and_rain / (wet_and_rain + wet_and_dry)
    outcome = choral("query", model, "rain", "--given", "wet=1")
    assert (outcome.code, outcome.lines) == (0, [f"rain=0  {1 - rain:.6f}", f"rain=1  {rain:.6f}"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["snow"], "Query: variables must be among rain, wet, got 'snow'."),
        (["rain", "--given", "wet=2"], "Query: state of wet must be 0 to 1, got 2."),
        (["rain", "--given", "wet"], "Option --given: must read NAME=STATE, a number, got 'wet='."),
        (["rain", "--given", "wet=yes"], "Option --given: must read NAME=STATE, a number, got 'wet=yes'."),
        (
            ["rain", "--given", "wet=1", "--given", "wet=0"],
            "Option --given: wet must be given once, got '1' and '0'. Leave one out.",
        ),
    ],
)
def test_query_that_makes_no_sense_is_refused(choral: Choral, model: str, arguments: list[str], message: str) -> None:
    assert sentence(choral("query", model, *arguments)) == message


def test_query_to_another_learner_is_refused(choral: Choral, tmp_path: Path) -> None:
    named = Named(name="mlp")
    path = saved(tmp_path / "mlp.safetensors", named, dict(build_learner(named).init(1)))
    assert sentence(choral("query", path, "rain")) == (
        f"Saved model {path}: the learner must be a bayesian_network, got mlp."
    )
