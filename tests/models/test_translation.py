"""What translators share: the ends of targets, edits, the error rate, and the checks of data."""

import itertools
from functools import cache

import pytest
import torch
from torch import Tensor

from models import PADDING, DataError, Examples, LearnerError, build_learner
from models.sequences import lengths
from models.translation import Translator, count_edits, shifted, trimmed
from wire.spec import Named
from wire.tensors import State

TARGETS = torch.tensor([[4, 5, 6, -1], [7, -1, -1, -1]])
SMALL = {
    "seq2seq": {"embedding": 8, "hidden": 8},
    "transformer": {"width": 8, "heads": 2, "feed_forward": 8, "layers": 1},
}
NAMES = pytest.mark.parametrize("name", SMALL)


def small(name: str, **parameters: object) -> Named:
    return Named(name=name, **(SMALL[name] | {"source_vocabulary": 5, "target_vocabulary": 3} | parameters))


def restless(name: str, seed: int = 1, **parameters: object) -> tuple[Translator, State]:
    """Return a learner and a state far enough from the initial one that it makes sequences of many kinds."""
    learner = build_learner(small(name, **parameters))
    assert isinstance(learner, Translator)
    generator = torch.Generator().manual_seed(seed)
    drawn = {key: torch.randn(tensor.shape, generator=generator) for key, tensor in learner.init(1).items()}
    state = {key: tensor + 0.7 * drawn[key] for key, tensor in learner.init(1).items()}
    # The boundary's logit: low, so that sequences do not end at once.
    if name == "seq2seq":
        state["output.bias"][-1] -= 1.5
    else:
        state["embedding.codes.weight"][-1] = 0.0
    return learner, state


def test_shifted_puts_the_boundary_before_inputs_and_behind_outputs() -> None:
    inputs, outputs = shifted(TARGETS, 9)
    assert inputs.tolist() == [[9, 4, 5, 6, 9], [9, 7, 9, 9, 9]]
    assert outputs.tolist() == [[4, 5, 6, 9, -1], [7, 9, -1, -1, -1]]
    assert shifted(TARGETS[:1, :3], 9)[1].tolist() == [[4, 5, 6, 9]]


def test_trimmed_drops_what_all_lack() -> None:
    assert lengths(TARGETS).tolist() == [3, 1]
    assert trimmed(TARGETS).tolist() == [[4, 5, 6], [7, -1, -1]]
    assert trimmed(TARGETS[1:]).tolist() == [[7]]


def distance(found: tuple[int, ...], target: tuple[int, ...]) -> int:
    """Return the edit distance as it is defined, over all ways to edit."""

    @cache
    def between(left: int, right: int) -> int:
        if not left or not right:
            return left + right
        changed = between(left - 1, right - 1) + (found[left - 1] != target[right - 1])
        return min(changed, between(left - 1, right) + 1, between(left, right - 1) + 1)

    return between(len(found), len(target))


def test_count_edits_is_the_edit_distance_of_all_short_sequences() -> None:
    every = [codes for length in range(4) for codes in itertools.product((0, 300_000), repeat=length)]
    for target in every[1:]:
        rows = [[*codes, *[PADDING] * (3 - len(codes))] for codes in every]
        targets = [[*target, *[PADDING] * (3 - len(target))]] * len(every)
        expected = sum(distance(codes, target) for codes in every)
        assert count_edits(torch.tensor(rows), torch.tensor(targets)) == expected


@NAMES
def test_evaluate_counts_edits_of_what_is_decoded_over_all_true_codes(name: str) -> None:
    learner, state = restless(name)
    generator = torch.Generator().manual_seed(1)
    sources = torch.randint(0, 5, (300, 4), generator=generator)
    targets = torch.randint(0, 3, (300, 5), generator=generator)
    targets[::2, 3:] = PADDING
    found = learner.translate(state, sources)
    assert len({plain(codes) for codes in found}) > 2
    edits = sum(distance(*map(plain, pair)) for pair in zip(found, targets, strict=True))
    rate = learner.evaluate(state, Examples(sources, targets)).metrics["error_rate"]
    assert rate == pytest.approx(edits / (150 * 5 + 150 * 3))


def plain(codes: Tensor) -> tuple[int, ...]:
    return tuple(code for code in codes.tolist() if code != PADDING)


@NAMES
def test_evaluate_decodes_no_more_than_is_asked_for(name: str) -> None:
    data = Examples(torch.randint(0, 5, (20, 4)), torch.randint(0, 3, (20, 5)))
    state = build_learner(small(name)).init(1)
    first = build_learner(small(name)).evaluate(state, data.select(torch.arange(6))).metrics
    some = build_learner(small(name, decoded=6)).evaluate(state, data).metrics
    assert some["error_rate"] == pytest.approx(first["error_rate"])
    assert some["loss"] != pytest.approx(first["loss"])
    assert set(build_learner(small(name, decoded=0)).evaluate(state, data).metrics) == {"loss", "accuracy"}


@NAMES
def test_loss_and_accuracy_are_means_over_codes_and_ends(name: str) -> None:
    learner = build_learner(small(name))
    state = learner.init(1)
    short, long = (Examples(torch.tensor([[1, 2]]), torch.tensor([codes])) for codes in ([0, -1, -1], [1, 2, 2]))
    both = Examples(torch.cat([short.inputs, long.inputs]), torch.cat([short.targets, long.targets]))
    parts = [learner.evaluate(state, part).metrics for part in (short, long)]
    whole = learner.evaluate(state, both).metrics
    for metric in ("loss", "accuracy"):
        assert whole[metric] == pytest.approx((2 * parts[0][metric] + 4 * parts[1][metric]) / 6, rel=1e-5)


@NAMES
def test_predictions_depend_neither_on_padding_nor_on_the_batch(name: str) -> None:
    learner, state = restless(name)
    alone = torch.tensor([[1, 2, 3]])
    beside = torch.tensor([[1, 2, 3, -1, -1], [4, 4, 4, 4, 4]])
    found = learner.translate(state, beside)[0]
    assert plain(found) == plain(learner.translate(state, alone)[0]) != ()
    measured = [
        learner.evaluate(state, Examples(sources, torch.tensor([target]))).metrics["loss"]
        for sources, target in ((alone, [0, 1]), (beside[:1], [0, 1, -1, -1]))
    ]
    assert measured[0] == pytest.approx(measured[1], rel=1e-5)
    # Nor is there a trace of padding in the logits, which might leave the likeliest code as it is.
    inputs = torch.tensor([[3, 0, 1]])
    with torch.no_grad():
        logits = learner._translation(alone, inputs)[0]
        torch.testing.assert_close(learner._translation(beside, inputs.repeat(2, 1))[0][:1], logits)


@NAMES
def test_decoding_step_by_step_sees_what_teacher_forcing_shows(name: str) -> None:
    learner, state = restless(name)
    learner._load(state)
    model = learner._translation.eval()
    sources = torch.tensor([[1, 2, 3], [4, -1, -1]])
    inputs = torch.tensor([[3, 0, 1, 2], [3, 2, 2, 0]])
    expected, _ = model(sources, inputs)
    carried = model.start(sources)
    for time in range(4):
        logits, carried = model.advance(inputs[:, time], carried)
        torch.testing.assert_close(logits, expected[:, time])


@NAMES
def test_attend_gives_weights_of_each_code_over_the_source(name: str) -> None:
    learner, state = restless(name)
    codes, weights = learner.attend(state, torch.tensor([1, 2, 3, 4]))
    assert len(codes) > 0
    assert weights.shape == (len(codes), 4)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(codes)))
    assert torch.equal(codes, trimmed(learner.translate(state, torch.tensor([[1, 2, 3, 4]])))[0])


@pytest.mark.parametrize(
    ("named", "message"),
    [
        pytest.param(small("seq2seq", attention="none"), r"seq2seq: model must have attention to show", id="none"),
        pytest.param(
            Named(name="transformer", task="classify"), r"transformer: task must be translate", id="classifier"
        ),
    ],
)
def test_attend_without_attention_is_refused(named: Named, message: str) -> None:
    learner = build_learner(named)
    assert isinstance(learner, Translator)
    with pytest.raises(LearnerError, match=message):
        learner.attend(learner.init(1), torch.tensor([1, 2]))


@NAMES
def test_wider_beams_are_no_less_likely(name: str) -> None:
    sources = torch.randint(0, 5, (40, 4), generator=torch.Generator().manual_seed(1))
    likelihoods: list[Tensor] = []
    for width in (1, 8):
        learner, state = restless(name, beam_width=width, longest=6)
        found = learner.translate(state, sources)
        inputs, outputs = shifted(found, 3)
        if found.shape[1] == 6:  # what is as long as may be need not end
            outputs[lengths(found) == 6, 6] = PADDING
        logits, _ = learner._translation(sources, inputs)
        steps = logits.log_softmax(dim=2).gather(2, outputs.clamp(min=0).unsqueeze(2)).squeeze(2)
        likelihoods.append((steps * (outputs != PADDING)).sum(dim=1).detach())
    assert (likelihoods[1] - likelihoods[0]).mean() > 0.01


@NAMES
@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        pytest.param([[0.5]], [[1]], r"sources must be int64, got float32\.", id="float"),
        pytest.param([1], [[1]], r"sources must be sequences of codes, \(time,\) each, got shape \(\)\.", id="no-time"),
        pytest.param([[1], [5]], [[1], [1]], r"sources must be 0 to 4, got 5 in example 1\.", id="source-code"),
        pytest.param([[1]], [[3]], r"targets must be 0 to 2, got 3 in example 0\.", id="target-code"),
        pytest.param([[1]], [[-2]], r"targets must be 0 to 2, got -2 in example 0\.", id="negative"),
        pytest.param(
            [[1, -1, 1]], [[1]], r"sources must not go on behind padding, got others in example 0\.", id="hole"
        ),
        pytest.param([[1], [1]], [[1], [-1]], r"targets must have at least 1 step each, .* example 1\.", id="empty"),
        pytest.param([[1]], [[]], r"targets must have at least 1 step each, .* example 0\.", id="no-targets"),
        pytest.param(
            [[1]], [[0] * 33], r"targets must have at most 32 codes, got 33\. Raise the parameter longest\.", id="long"
        ),
    ],
)
def test_check_what_are_no_pairs_of_sequences_is_refused(
    name: str, inputs: list[object], targets: list[list[int]], message: str
) -> None:
    data = Examples(torch.tensor(inputs), torch.tensor(targets, dtype=torch.int64))
    with pytest.raises(DataError, match=rf"^Learner {name}: {message}"):
        build_learner(small(name)).check(data)
