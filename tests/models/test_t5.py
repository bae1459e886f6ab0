"""T5: its gaps can be filled again, its network equals another one with the same weights, and one model learns two tasks by prefix."""

import itertools
import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from models import PADDING, DataError, Examples, LearnerError, build_learner
from models.learner import SampleRequest
from models.spans import Spans
from models.t5 import T5, T5Parameters, bucket
from tests.models.text import adam, joined, plays, trained, unigram_accuracy, windows
from wire.spec import Named

CPU = torch.device("cpu")
END, START, SENTINEL = 256, 257, 258


def t5(**parameters: object) -> T5:
    return T5(T5Parameters.model_validate(parameters), CPU)


def codes(*shape: int, below: int = 256) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(3))


def corrupted(text: Tensor, spans: Spans) -> tuple[Tensor, Tensor]:
    return spans.corrupt(text, torch.rand(*text.shape, 2, generator=torch.Generator().manual_seed(4)))


def filled(inputs: list[int], answer: list[int], first: int) -> list[int]:
    """Put the parts of an answer into the gaps of its inputs."""
    gaps: dict[int, list[int]] = {}
    for code in answer:
        if code >= first:
            gap = gaps.setdefault(code, [])
        else:
            gap.append(code)
    return list(itertools.chain.from_iterable(gaps[code] if code >= first else [code] for code in inputs))


@pytest.mark.parametrize(
    ("length", "noise", "span", "counts"),
    [
        pytest.param(80, 0.15, 3.0, (12, 4), id="80"),
        pytest.param(2, 0.15, 3.0, (1, 1), id="2"),
        pytest.param(7, 0.5, 1.0, (4, 3), id="as-many-gaps-as-fit"),
        pytest.param(20, 0.95, 3.0, (19, 1), id="almost-all"),
        pytest.param(33, 0.3, 4.0, (10, 2), id="33"),
    ],
)
def test_gaps_can_be_filled_again(length: int, noise: float, span: float, counts: tuple[int, int]) -> None:
    spans, text = Spans(length, noise, span, 1000), codes(200, length)
    assert (spans.noise_count, spans.count) == counts
    inputs, answer = corrupted(text, spans)
    assert inputs.shape == (200, length - counts[0] + counts[1])
    assert answer.shape == (200, sum(counts))
    for row in range(200):
        assert filled(inputs[row].tolist(), answer[row].tolist(), 1000) == text[row].tolist()
        sentinels = [code for code in inputs[row].tolist() if code >= 1000]
        assert (
            sentinels == [code for code in answer[row].tolist() if code >= 1000] == list(range(1000, 1000 + counts[1]))
        )


def test_gaps_are_anywhere_as_likely() -> None:
    # Of 6 codes 3 in 2 gaps: 2 ways to cut the kept codes, 2 to cut the gaps.
    inputs, answer = corrupted(torch.arange(6).repeat(8_000, 1), Spans(6, 0.5, 1.5, 10))
    found = Counter(map(tuple, torch.cat([inputs, answer], dim=1).tolist()))
    assert len(found) == 4
    assert all(abs(count - 2_000) < 4 * math.sqrt(8_000 * 0.25 * 0.75) for count in found.values())


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (8, 20), (64, 1000)])
def test_buckets_are_those_of_transformers(buckets: int, farthest: int, is_causal: bool) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = torch.arange(-1500, 1501)
    theirs = T5Attention._relative_position_bucket(distances, not is_causal, buckets, farthest)
    assert torch.equal(bucket(distances, buckets, farthest, is_causal), theirs)


def test_logits_loss_and_gradient_equal_those_of_transformers_t5_with_the_same_weights() -> None:
    import transformers
    from transformers import T5ForConditionalGeneration

    learner = t5(width=24, heads=3, buckets=8, farthest=20)
    state = dict(learner.init(5))
    for name, tensor in state.items():
        if tensor.dim() == 1:  # Norms begin with ones, which would hide it if two of them were exchanged.
            state[name] = torch.linspace(0.5, 1.5, 24).roll(len(name))
    learner._load(state)
    module = learner._module
    names = {"codes.weight": "shared.weight"}
    for stack, cross in (("encoder", 0), ("decoder", 1)):
        names[f"{stack}.distances.biases.weight"] = (
            f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        )
        names[f"{stack}.norm.weight"] = f"{stack}.final_layer_norm.weight"
        for layer in range(2):
            own, theirs = f"{stack}.blocks.{layer}.", f"{stack}.block.{layer}.layer."
            parts = [("attention", "0.SelfAttention"), ("cross", "1.EncDecAttention")][: 1 + cross]
            for place, (part, other) in enumerate(parts):
                names |= {
                    f"{own}{part}.{kind}.weight": f"{theirs}{other}.{letter}.weight"
                    for kind, letter in (("query", "q"), ("key", "k"), ("value", "v"), ("output", "o"))
                }
                names[f"{own}{part}_norm.weight"] = f"{theirs}{place}.layer_norm.weight"
            names[f"{own}feed_forward_norm.weight"] = f"{theirs}{1 + cross}.layer_norm.weight"
            names[f"{own}feed_forward.expand.weight"] = f"{theirs}{1 + cross}.DenseReluDense.wi.weight"
            names[f"{own}feed_forward.contract.weight"] = f"{theirs}{1 + cross}.DenseReluDense.wo.weight"
    make: Any = transformers.T5Config
    config = make(
        vocab_size=290,
        d_model=24,
        d_kv=8,
        d_ff=96,
        num_layers=2,
        num_heads=3,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=20,
        tie_word_embeddings=True,
        decoder_start_token_id=START,
        pad_token_id=END,
    )
    theirs = T5ForConditionalGeneration(config).eval()
    renamed = {names[name]: tensor for name, tensor in state.items()}
    missing = theirs.load_state_dict(renamed, strict=False).missing_keys
    assert set(missing) <= {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"}
    inputs, answer = codes(3, 30), codes(3, 25)
    inputs[1, 11:] = PADDING
    expected = theirs(inputs.clamp(min=0), (inputs != PADDING).long(), decoder_input_ids=answer).logits
    torch.testing.assert_close(module(inputs, answer), expected, rtol=1e-3, atol=1e-4)
    # They shift answers themselves.
    answer[2, 9:] = PADDING
    loss = theirs(inputs.clamp(min=0), (inputs != PADDING).long(), labels=answer.where(answer != PADDING, -100)).loss
    found = learner.loss(module(inputs, learner._shifted(answer)), answer)
    torch.testing.assert_close(found, loss, rtol=1e-5, atol=0)
    loss.backward()
    found.backward()  # type: ignore[no-untyped-call]
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[names[name]], rtol=1e-3, atol=1e-4)


def test_changing_a_later_code_of_the_answer_changes_no_earlier_logit() -> None:
    module = t5().build()
    inputs, answer = codes(2, 9), codes(2, 12)
    logits = module(inputs, answer)
    for place in range(12):
        changed = answer.clone()
        changed[:, place] = (changed[:, place] + 1) % 256
        found = module(inputs, changed)
        assert torch.equal(found[:, :place], logits[:, :place])
        assert not torch.equal(found[:, place], logits[:, place])


def test_padding_of_what_is_read_does_not_matter() -> None:
    module = t5().build()
    inputs, answer = codes(2, 9), codes(2, 12)
    longer = torch.cat([inputs, torch.full((2, 5), PADDING)], dim=1)
    torch.testing.assert_close(module(longer, answer), module(inputs, answer))


def test_task_of_gaps_is_read_and_answered_with_an_end() -> None:
    learner = t5()
    seen: list[tuple[Tensor, Tensor]] = []
    learner._module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments))
    text = codes(1, 80)
    trained(learner, learner.init(1), Examples(text, text), epochs=2)
    (inputs, known), (others, _) = seen
    assert inputs[0, -1] == END
    assert known[0, 0] == START
    assert known.shape == (1, 12 + 4 + 1)
    assert not torch.equal(inputs, others)
    assert filled(inputs[0, :-1].tolist(), known[0, 1:].tolist(), SENTINEL) == text[0].tolist()


def padded(texts: tuple[str, ...]) -> Tensor:
    """Return texts as bytes, int64 (texts, longest)."""
    rows = [torch.tensor(list(text.encode())) for text in texts]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PADDING)


def pairs(*lines: tuple[str, str]) -> Examples:
    inputs, targets = zip(*lines, strict=True)
    return Examples(padded(inputs), padded(targets))


def test_task_of_text_has_an_end_after_each_text_and_measures_what_is_right() -> None:
    learner = t5(task="text")
    seen: list[tuple[Tensor, Tensor]] = []
    learner._module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments))
    data = pairs(("ab", "xyz"), ("a", "x"))
    learner.check(data)
    metrics = learner.evaluate(learner.init(1), data).metrics
    assert seen[0][0].tolist() == [[97, 98, END], [97, END, PADDING]]
    assert seen[0][1].tolist() == [[START, 120, 121, 122], [START, 120, END, PADDING]]
    module = learner.build()
    module.load_state_dict(dict(learner.init(1)))
    odds = module(*seen[0]).log_softmax(2).detach()
    targets = [[120, 121, 122, END], [120, END]]
    own = [[-float(odds[row, place, code]) for place, code in enumerate(text)] for row, text in enumerate(targets)]
    assert metrics["loss"] == pytest.approx((sum(own[0]) / 4 + sum(own[1]) / 2) / 2, rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))
    assert (metrics["accuracy"], metrics["exact_match"]) == (0.0, 0.0)


def test_accuracy_is_of_codes_of_text_among_themselves() -> None:
    """The likeliest code is a sentinel each time, and after it the true one at even places: what is right of text is half of it."""
    learner = t5()
    text = codes(5, 80)

    def likeliest(_: Any, arguments: tuple[Tensor, Tensor], outputs: Tensor) -> Tensor:
        known = arguments[1]
        true = torch.cat([known[:, 1:], torch.full((len(known), 1), END)], dim=1)
        place = torch.arange(true.shape[1])
        guess = torch.where((true < 256) & (place % 2 == 1), (true + 1) % 256, true)
        logits = torch.zeros_like(outputs).scatter(2, guess.unsqueeze(2), 1.0)
        logits[:, :, SENTINEL] = 2.0
        rights.extend(((true < 256) & (place % 2 == 0)).sum(1).tolist())
        return logits

    rights: list[int] = []
    learner._module.register_forward_hook(likeliest)
    metrics = learner.evaluate(learner.init(1), Examples(text, text)).metrics
    assert len(rights) == 5
    assert metrics["accuracy"] == pytest.approx(sum(rights) / (5 * 12))
    assert 0 < metrics["accuracy"] < 1
    assert metrics["exact_match"] == 0.0


def words(count: int, seed: int) -> list[str]:
    draws = torch.randint(97, 103, (count, 3), generator=torch.Generator().manual_seed(seed))
    return sorted({bytes(row).decode() for row in draws.tolist()})


def test_one_model_learns_two_tasks_by_their_prefix() -> None:
    """`copy: abc` is abc and `reverse: abc` is cba. Words of the test are none of the training's."""
    held_out = words(30, seed=1)
    training = [word for word in words(400, seed=2) if word not in held_out]
    learner = t5(task="text", width=32, layers=1)
    data = pairs(
        *(("copy: " + word, word) for word in training), *(("reverse: " + word, word[::-1]) for word in training)
    )
    state = trained(learner, learner.init(1), data, epochs=25, batch_size=16, optimizer=adam(4e-3), clip_norm=1.0)
    asymmetric = [word for word in held_out if word != word[::-1]]
    for prefix, step in (("copy: ", 1), ("reverse: ", -1)):
        metrics = learner.evaluate(state, pairs(*((prefix + word, word[::step]) for word in asymmetric))).metrics
        assert metrics["exact_match"] > 0.8, prefix
        # It answers so by itself, too.
        prompt = torch.tensor(list((prefix + asymmetric[0]).encode()))
        request = SampleRequest(2, torch.Generator().manual_seed(1), prompt, length=10, temperature=0.01)
        answer = learner.sample(state, request)
        assert answer.shape == (2, 4)
        assert torch.equal(answer[0], answer[1])
        right = learner.evaluate(state, pairs((prefix + asymmetric[0], asymmetric[0][::step]))).metrics["exact_match"]
        assert (bytes(answer[0, :3].tolist()).decode() == asymmetric[0][::step]) == (right == 1.0)


def test_sample_pads_what_has_ended_and_draws_from_its_generator() -> None:
    learner = t5(vocabulary=2, sentinels=1, width=8, heads=1)
    state = learner.init(1)
    before = torch.get_rng_state()
    answers = learner.sample(
        state, SampleRequest(50, torch.Generator().manual_seed(1), torch.tensor([0, 1]), length=12)
    )
    again = learner.sample(state, SampleRequest(50, torch.Generator().manual_seed(1), torch.tensor([0, 1]), length=12))
    assert torch.equal(answers, again)
    assert torch.equal(torch.get_rng_state(), before)
    assert answers.shape == (50, 12)
    for row in answers.tolist():
        text = row[: row.index(2) + 1] if 2 in row else row
        assert row == text + [PADDING] * (12 - len(text))
        assert PADDING not in text
    assert learner.sample(state, SampleRequest(3, torch.Generator(), length=4)).shape[0] == 3


@pytest.mark.parametrize(
    ("task", "code", "highest"),
    [
        # 8 codes, END, START and 2 sentinels; gaps there are in spans alone.
        pytest.param("text", 8, 7, id="end"),
        pytest.param("text", 10, 7, id="sentinel"),
        pytest.param("spans", 12, 11, id="beyond-sentinels"),
    ],
)
def test_sample_of_a_prompt_beyond_the_vocabulary_is_refused(task: str, code: int, highest: int) -> None:
    learner = t5(vocabulary=8, sentinels=2, task=task)
    request = SampleRequest(1, torch.Generator(), torch.tensor([1, code]))
    message = rf"^Learner t5: codes of the prompt must be 0 to {highest}, got {code} in example 1\.$"
    with pytest.raises(DataError, match=message):
        learner.sample(learner.init(5), request)


def test_sample_of_a_prompt_with_a_gap_reads_its_sentinel() -> None:
    learner = t5(vocabulary=8, sentinels=2)
    state = {name: 3 * tensor for name, tensor in learner.init(5).items()}
    answers = [
        learner.sample(state, SampleRequest(20, torch.Generator().manual_seed(1), torch.tensor([1, code, 2]), length=5))
        for code in (10, 11)
    ]
    assert not torch.equal(*answers)


def test_sample_is_computed_in_the_precision_that_is_asked_for() -> None:
    seen = set()
    for precision in ("float32", "bfloat16"):
        learner = t5(vocabulary=8, precision=precision)
        for stack in (learner._module.encoder, learner._module.decoder):
            query = stack.get_submodule("blocks.0.attention.query")
            query.register_forward_hook(lambda module, inputs, outputs, stack=stack: seen.add((stack, outputs.dtype)))
        learner.sample(learner.init(1), SampleRequest(1, torch.Generator(), length=2))
    assert sorted(str(kind) for _, kind in seen) == 2 * ["torch.bfloat16"] + 2 * ["torch.float32"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_comedies_are_learned_by_reading_around_the_gaps() -> None:
    """The last play is held out. Of codes in gaps the commonest one is .18, and the commonest after the code before .24."""
    *training, last = plays("comedies").values()
    data, held_out = joined(*(windows(text, 40) for text in training)), windows(last, 40)
    learner = t5()
    state = learner.init(1)
    for rate, epochs in ((3e-3, 3), (4.5e-4, 1)):
        state = trained(learner, state, data, epochs=epochs, batch_size=16, optimizer=adam(rate), clip_norm=1.0)
    metrics = learner.evaluate(state, held_out).metrics
    assert unigram_accuracy(data.inputs, held_out.inputs) < 0.2
    assert metrics["accuracy"] > 0.27
    # Who reads another's text answers worse: so the gaps are filled from what is around them, too.
    learner._module.register_forward_pre_hook(lambda _, arguments: (arguments[0].roll(1, 0), arguments[1]))
    assert learner.evaluate(state, held_out).metrics["loss"] > metrics["loss"] + 0.04


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"width": 66}, r"^Learner t5: width must be a multiple of heads \(4\), got 66\.$"),
        ({"farthest": 16}, r"^Learner t5: farthest must be above half the buckets \(16\), got 16\.$"),
        ({"buckets": 30}, r"buckets must be a multiple of 4, got 30\."),
        ({"task": "copy"}, r"task must be 'spans' or 'text', got 'copy'\."),
    ],
)
def test_parameter_that_breaks_a_rule_is_refused(parameters: dict[str, object], message: str) -> None:
    with pytest.raises(LearnerError, match=message):
        build_learner(Named(name="t5", **parameters))


def test_data_of_another_kind_is_refused() -> None:
    none = torch.zeros(2, 0, dtype=torch.int64)
    t5().check(Examples(codes(2, 80), none))
    with pytest.raises(
        DataError, match=r"^Learner t5: windows must have 1 to 3 gaps, got 4 in 80 codes\. Give t5 more"
    ):
        t5(sentinels=3).check(Examples(codes(2, 80), none))
    with pytest.raises(DataError, match=r"^Learner t5: windows must have 1 to 32 gaps, got 0 in 1 codes\."):
        t5().check(Examples(codes(2, 1), none))
    with pytest.raises(DataError, match=r"^Learner t5: codes must be 0 to 255, got 256 in example 0\."):
        t5().check(Examples(codes(1, 80) * 0 + 256, none))
    with pytest.raises(DataError, match=r"^Learner t5: examples must be windows of 1 to 65536 codes, got shape \(0,\)"):
        t5(task="text").check(Examples(codes(2, 8), none))
    with pytest.raises(DataError, match=r"^Learner t5: padding \(-1\) must follow the codes"):
        t5(task="text").check(Examples(codes(1, 8), torch.tensor([[PADDING]])))
