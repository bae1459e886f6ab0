"""Settings of a run that its learner has no use for, or too few rounds for it: refused, and never passed over in silence."""

import re

import pytest

from models import MODELS, LearnerError, build_learner, check_spec
from models.examples import example_of
from wire.spec import Named, parse_spec

ADAM = "{optimizer: {name: adam, learning_rate: 0.1}}"
SCHEDULE = "{optimizer: {name: sgd, learning_rate: 0.1}, schedule: {kind: cosine}}"


def check(learner: str, more: str = "", rounds: int = 20) -> None:
    check_spec(parse_spec(f"name: a\nlearner: {{name: {learner}}}\nrounds: {rounds}\ncohort: {{size: 2}}\n{more}"))


@pytest.mark.parametrize(
    ("learner", "more", "message"),
    [
        pytest.param("perceptron", f"local: {ADAM}", r"local\.optimizer .* got Named\(name='adam', ", id="optimizer"),
        pytest.param("perceptron", "local: {proximal_mu: 0.1}", r"local\.proximal_mu .* got 0\.1", id="fedprox"),
        pytest.param("perceptron", "local: {clip_norm: 1.0}", r"local\.clip_norm .* got 1\.0", id="clipping"),
        pytest.param("perceptron", f"local: {SCHEDULE}", r"local\.schedule .* got ", id="schedule"),
        pytest.param("bayesian_network", "local: {epochs: 3}", r"local\.epochs .* got 3", id="counts-once"),
        pytest.param("bayesian_network", f"server: {ADAM}", r"server\.optimizer .* got ", id="exact-server-step"),
        pytest.param("rbf_network", f"local: {ADAM}", r"local\.optimizer .* got ", id="ridge"),
        pytest.param("rbf_network", "local: {epochs: 2}", r"local\.epochs .* got 2", id="ridge-epochs"),
        pytest.param("evolution", "local: {epochs: 5}", r"local\.epochs .* got 5", id="evolution-epochs"),
        pytest.param("evolution", "local: {batch_size: 16}", r"local\.batch_size .* got 16", id="evolution-batches"),
        pytest.param("genetic", f"local: {ADAM}", r"local\.optimizer .* got ", id="genetic"),
        pytest.param("genetic", f"server: {ADAM}", r"server\.optimizer .* got ", id="genetic-server"),
    ],
)
def test_check_spec_setting_without_any_effect_is_refused(learner: str, more: str, message: str) -> None:
    key, _, found = message.partition(" .* ")
    rule = rf"^Run spec: {key} must be left out for learner {learner}, which has no use for it, {found}"
    with pytest.raises(LearnerError, match=rule):
        check(learner, more)


@pytest.mark.parametrize(
    ("learner", "parameters", "key", "where"),
    [
        ("gan", {"channels": [8]}, "channels", "where kind is points"),
        ("gan", {"kind": "images", "inputs": [1, 8, 8], "hidden": [8]}, "hidden", "where kind is images"),
        ("rbf_network", {"readout": "gradient", "ridge": 0.5}, "ridge", "where readout is gradient"),
        ("seq2seq", {"schedule": "exponential"}, "schedule", "where forcing is teacher"),
        ("seq2seq", {"forcing": "professor", "schedule_k": 0.5}, "schedule_k", "where forcing is professor"),
        ("seq2seq", {"schedule_slope": 0.5}, "schedule_slope", "where forcing is teacher"),
        ("seq2seq", {"schedule_floor": 0.5}, "schedule_floor", "where forcing is teacher"),
        ("seq2seq", {"discriminator": 8}, "discriminator", "where forcing is teacher"),
        (
            "seq2seq",
            {"forcing": "scheduled", "schedule": "exponential", "schedule_floor": 0.5},
            "schedule_floor",
            "where schedule is exponential",
        ),
        ("transformer", {"classes": 3}, "classes", "where task is translate"),
        ("transformer", {"pooling": "first"}, "pooling", "where task is translate"),
        ("transformer", {"length_power": 1.0}, "length_power", "where beam_width is 1"),
        ("seq2seq", {"length_power": 1.0}, "length_power", "where beam_width is 1"),
        ("t5", {"task": "text", "noise": 0.3}, "noise", "where task is text"),
        ("t5", {"task": "text", "span": 5.0}, "span", "where task is text"),
        ("ddpm", {"channels": [8]}, "channels", "where network is mlp"),
        ("score_matching", {"network": "unet", "hidden": [8]}, "hidden", "where network is unet"),
        ("rbm", {"annealing_chains": 7}, "annealing_chains", "where log Z is found exactly"),
        ("rbm", {"partition": "exact", "annealing_steps": 7}, "annealing_steps", "where log Z is found exactly"),
    ],
)
def test_parameter_without_any_effect_is_refused(
    learner: str, parameters: dict[str, object], key: str, where: str
) -> None:
    message = f"^Learner {learner}: {key} must be left out {where}, got {re.escape(repr(parameters[key]))}\\.$"
    with pytest.raises(LearnerError, match=message):
        build_learner(Named(name=learner, **parameters))


@pytest.mark.parametrize(
    ("learner", "parameters"),
    [
        ("gan", {"kind": "images", "inputs": [1, 8, 8], "channels": [8]}),
        ("gan", {"hidden": [8]}),
        ("rbf_network", {"readout": "ridge", "ridge": 0.5}),
        ("seq2seq", {"forcing": "scheduled", "schedule_k": 0.5, "schedule_slope": 0.5, "schedule_floor": 0.1}),
        ("seq2seq", {"forcing": "professor", "discriminator": 8}),
        ("transformer", {"task": "classify", "classes": 3, "pooling": "first"}),
        ("transformer", {"beam_width": 4, "length_power": 1.0}),
        ("t5", {"noise": 0.3, "span": 5.0}),
        ("ddpm", {"hidden": [8]}),
        ("ddpm", {"network": "unet", "channels": [8, 16]}),
        ("rbm", {"partition": "annealed", "annealing_chains": 7}),
        # What a program writes names the defaults too.
        ("gan", {"channels": [32, 64]}),
    ],
)
def test_parameter_with_an_effect_or_its_default_is_taken(learner: str, parameters: dict[str, object]) -> None:
    build_learner(Named(name=learner, **parameters), "meta")


def test_genetic_elite_above_the_population_is_refused() -> None:
    with pytest.raises(LearnerError, match=r"^Learner genetic: elite must be at most the population \(8\), got 9\.$"):
        build_learner(Named(name="genetic", population=8, elite=9))
    build_learner(Named(name="genetic", population=8, elite=8))


def test_check_spec_setting_with_an_effect_is_taken() -> None:
    check("perceptron", f"local: {{epochs: 5, batch_size: 16}}\nserver: {ADAM}")
    check("bayesian_network", "local: {batch_size: 16}")
    check("rbf_network, readout: gradient", f"local: {ADAM}\nserver: {ADAM}")
    check("evolution", f"server: {ADAM}")
    check("rbm", f"local: {ADAM}")


@pytest.mark.usefixtures("bases")
@pytest.mark.parametrize("name", MODELS)
def test_check_spec_of_an_example_passes_and_so_does_what_a_program_writes_of_it(name: str) -> None:
    spec = example_of(name).spec
    check_spec(spec)
    # It names every default too.
    check_spec(parse_spec(spec.canonical_json()))


def test_check_spec_of_fewer_rounds_than_the_phases_of_a_network_take_is_refused() -> None:
    # 4 splits make 12 centres, which 3 steps move; then a round finds the readout.
    check("rbf_network, centres: 12, lloyd_rounds: 3", rounds=8)
    message = r"^Run spec: rounds must be at least 8 for learner rbf_network, got 7\.$"
    with pytest.raises(LearnerError, match=message):
        check("rbf_network, centres: 12, lloyd_rounds: 3", rounds=7)
