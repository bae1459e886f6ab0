"""Sequence to sequence: what each technique feeds the decoder, and what it learns from English pronunciations."""

from pathlib import Path
from typing import Any

import pytest
import torch

from client.data import LocalData
from models import Examples, LearnerError, build_learner
from models.scheduled_sampling import inverse_sigmoid
from models.seq2seq import EncoderDecoder, Seq2Seq, Seq2SeqParameters
from models.translation import shifted
from simulation.serial import run_serially
from tests.models.pronunciations import ADAM, fit, moved, part
from tests.server.cohorts import opened
from wire.spec import Named, validate_spec

SMALL = {"embedding": 8, "hidden": 16, "source_vocabulary": 5, "target_vocabulary": 3}
ATTENTIONS = pytest.mark.parametrize("attention", ["none", "additive", "dot"])


def small(**parameters: Any) -> Seq2Seq:
    learner = build_learner(Named(name="seq2seq", **(SMALL | parameters)))
    assert isinstance(learner, Seq2Seq)
    return learner


def batch(seed: int = 1, count: int = 6) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    return Examples(
        torch.randint(0, 5, (count, 4), generator=generator), torch.randint(0, 3, (count, 5), generator=generator)
    )


def network(learner: Seq2Seq, seed: int = 1) -> EncoderDecoder:
    learner._load(learner.init(seed))
    return learner._network.eval()


@ATTENTIONS
def test_forward_writes_what_the_equations_say(attention: str) -> None:
    model = network(small(attention=attention))
    source, inputs = torch.tensor([[1, 4, 2]]), torch.tensor([[3, 0]])
    forward, backward = torch.zeros(8), torch.zeros(8)
    halves: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    cells = [torch.nn.GRUCell(8, 8) for _ in range(2)]
    for cell, suffix in zip(cells, ("l0", "l0_reverse"), strict=True):
        names = {f"{part}_{kind}": f"{part}_{kind}_{suffix}" for part in ("weight", "bias") for kind in ("ih", "hh")}
        cell.load_state_dict({own: model.encoder.get_parameter(name) for own, name in names.items()})
    for code in (1, 4, 2):
        forward = cells[0](model.source.weight[code], forward)
        halves[0].append(forward)
    for code in (2, 4, 1):
        backward = cells[1](model.source.weight[code], backward)
        halves[1].insert(0, backward)
    memory = torch.stack([torch.cat(pair) for pair in zip(*halves, strict=True)])  # (3, 16)
    state = torch.tanh(model.bridge(torch.cat([forward, backward])))
    expected, looked = [], []
    for code in (3, 0):
        fed = model.target.weight[code]
        if attention == "additive":
            looks = model.attention
            scores = looks.score(torch.tanh(looks.query(state) + looks.memory(memory))).squeeze(1)  # type: ignore[union-attr,operator]
            fed = torch.cat([fed, scores.softmax(0) @ memory])
        state = model.cell(fed, state)
        if attention == "dot":
            scores = memory @ state
        features = state if attention == "none" else torch.cat([state, scores.softmax(0) @ memory])
        expected.append(model.output(torch.tanh(model.readout(features))))
        looked.append(None if attention == "none" else scores.softmax(0))
    logits, weights = model(source, inputs)
    torch.testing.assert_close(logits[0], torch.stack(expected))
    if attention == "none":
        assert weights is None
    else:
        torch.testing.assert_close(weights[0], torch.stack([row for row in looked if row is not None]))


def test_run_on_true_codes_alone_is_teacher_forcing() -> None:
    model, data = network(small()), batch()
    inputs, _ = shifted(data.targets, 3)
    logits, weights = model(data.inputs, inputs)
    run = model.run(data.inputs, inputs, 1.0)
    assert torch.equal(run.logits, logits)
    assert run.weights is not None
    assert torch.equal(run.weights, weights)


def test_run_on_its_own_codes_alone_sees_no_true_code() -> None:
    model, data = network(small()), batch()
    runs = []
    for targets in (data.targets, batch(2).targets):
        torch.manual_seed(3)
        runs.append(model.run(data.inputs, shifted(targets, 3)[0], 0.0))
    assert torch.equal(runs[0].logits, runs[1].logits)
    assert torch.equal(runs[0].states, runs[1].states)


def test_scheduled_sampling_begins_as_teacher_forcing_and_counts_its_steps() -> None:
    data, learner = batch(), small(forcing="scheduled", schedule="inverse_sigmoid", schedule_k=2.0)
    state = learner.init(1)
    assert float(state["trained.units"]) == 0
    contribution = fit(learner, state, data, epochs=4, batch_size=2)
    after = moved(state, contribution)
    assert float(after["trained.units"]) == 12 / 1024
    assert learner.evaluate(after, data).metrics["true_part"] == pytest.approx(inverse_sigmoid(12, 2.0))
    first = small().evaluate(small().init(1), data).metrics
    assert {
        name: value for name, value in learner.evaluate(state, data).metrics.items() if name != "true_part"
    } == first


def test_scheduled_sampling_trains_on_its_own_codes_when_the_schedule_has_run_out() -> None:
    data, learner = batch(), small(forcing="scheduled", schedule="exponential", schedule_k=0.001)
    states = [learner.init(1), learner.init(1)]
    states[1]["trained.units"].fill_(5 / 1024)
    vectors = [fit(learner, state, data, batch_size=6).vector for state in states]
    assert fit(small(), small().init(1), data, batch_size=6).vector.tobytes() == vectors[0][:-1].tobytes()
    assert vectors[0][:-1].tobytes() != vectors[1][:-1].tobytes()


def test_mean_of_clients_counts_the_steps_of_a_mean_client() -> None:
    learner = small(forcing="scheduled")
    state = learner.init(1)
    layout = learner.contribution_layout
    steps = []
    for count in (6, 18):
        contribution = fit(learner, state, batch(count=count), batch_size=2)
        steps.append(layout.views(contribution.vector)["trained.units"] * 1024)
    # Weights 6 and 18: 3 * 0.25 + 9 * 0.75.
    assert float(0.25 * steps[0] + 0.75 * steps[1]) == 7.5


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        pytest.param(
            {"forcing": "scheduled", "schedule": "inverse_sigmoid", "schedule_k": 0.9},
            r"inverse_sigmoid must be at least 1, got 0\.9",
            id="sigmoid",
        ),
        pytest.param(
            {"forcing": "scheduled", "schedule": "exponential", "schedule_k": 1.0},
            r"exponential must be below 1, got 1\.0",
            id="power",
        ),
        pytest.param(
            {"forcing": "scheduled", "schedule_k": 1.5},
            r"schedule_k of linear must be at most 1, got 1\.5",
            id="linear",
        ),
        pytest.param({"hidden": 15}, r"hidden must be a multiple of 2, got 15", id="odd"),
        pytest.param(
            {"attention": "soft"}, r"attention must be 'none', 'additive' or 'dot', got 'soft'", id="attention"
        ),
    ],
)
def test_parameters_that_break_a_rule_are_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(LearnerError, match=message):
        small(**parameters)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("linear", [1.0, 0.9, 0.0]), ("exponential", [1.0, 0.8186, 0.0]), ("inverse_sigmoid", [0.9901, 0.9735, 0.0])],
)
def test_true_part_of_each_schedule_by_default(schedule: Any, expected: list[float]) -> None:
    parameters = Seq2SeqParameters(forcing="scheduled", schedule=schedule)
    assert [parameters.true_part(steps) for steps in (0, 100, 10_000)] == pytest.approx(expected, abs=1e-4)


def test_linear_schedule_has_slope_and_floor() -> None:
    parameters = Seq2SeqParameters(forcing="scheduled", schedule_k=0.9, schedule_slope=0.01, schedule_floor=0.2)
    assert [parameters.true_part(steps) for steps in (0, 30, 1000)] == pytest.approx([0.9, 0.6, 0.2])


def test_professor_forcing_federates_its_discriminator_and_reports_both_losses() -> None:
    data, learner = batch(), small(forcing="professor", discriminator=4)
    state = learner.init(1)
    contribution = fit(learner, state, data, epochs=2, batch_size=3)
    changes = learner.contribution_layout.views(contribution.vector)
    names = [name for name in changes if name.startswith("discriminator.")]
    assert len(names) == 12
    assert all(changes[name].any() for name in names)
    metrics = learner.evaluate(moved(state, contribution), data).metrics
    assert set(metrics) == {"loss", "accuracy", "error_rate", "discriminator_loss", "fooling_loss"}
    assert metrics["discriminator_loss"] == pytest.approx(1.386, abs=0.1)


async def test_federated_by_letters_learns_to_pronounce(tmp_path: Path) -> None:
    learner = {"name": "seq2seq", "embedding": 24, "hidden": 64, "attention": "dot"}
    optimizer = {"name": "adam", "learning_rate": 0.005}
    configured = validate_spec(
        {
            "name": "pronounce",
            "learner": learner,
            "rounds": 3,
            "cohort": {"size": 3},
            "local": {"epochs": 2, "batch_size": 16, "optimizer": optimizer, "clip_norm": 1.0},
        }
    )
    sites = {letters: LocalData("memory", *part(letters)) for letters in ("abc", "mnp", "st")}
    async with opened(tmp_path) as store:
        run = await run_serially(configured, sites, store, tmp_path / "run")
        records = await store.rounds(run.run_id)
    assert records[-1].metrics["error_rate"] < 0.5
    assert records[-1].metrics["error_rate"] < records[0].metrics["error_rate"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parameters", "floor"),
    [
        pytest.param({"attention": "none"}, 0.45, id="none"),
        pytest.param({"attention": "dot"}, 0.22, id="dot"),
        pytest.param({"attention": "additive"}, 0.22, id="additive"),
        pytest.param({"forcing": "scheduled", "schedule": "inverse_sigmoid"}, 0.22, id="scheduled"),
        pytest.param({"forcing": "professor"}, 0.22, id="professor"),
    ],
)
def test_each_technique_learns_to_pronounce_words_that_were_held_out(parameters: dict[str, Any], floor: float) -> None:
    training, held_out = part()
    learner = build_learner(Named(name="seq2seq", dropout=0.2, **parameters))
    state = learner.init(1)
    after = moved(state, fit(learner, state, training, epochs=8, batch_size=32, optimizer=ADAM, clip_norm=1.0))
    greedy = learner.evaluate(after, held_out).metrics["error_rate"]
    assert greedy < floor
    # Without attention, all that is known of a word must go through one state.
    assert (greedy > 0.3) == (parameters.get("attention") == "none")
    beam = build_learner(Named(name="seq2seq", dropout=0.2, beam_width=4, **parameters))
    assert beam.evaluate(after, held_out).metrics["error_rate"] < greedy + 0.01
