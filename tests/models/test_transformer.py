"""Transformer: its layers against torch's own, the warm-up against the paper's formula, and what it learns."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models import DataError, Examples, LearnerError, build_learner
from models.attention import MultiHeadAttention
from models.learner import PADDING
from models.sequences import lengths
from models.transformer import Transformer, warm_up_factor
from models.transformer_layers import DecoderLayer, Embedding, EncoderLayer, LayerShape, positions
from tests.models.pronunciations import ADAM, fit, moved, part
from wire.spec import Named

SMALL = {"width": 8, "heads": 2, "feed_forward": 16, "layers": 1, "source_vocabulary": 5, "target_vocabulary": 3}


def small(**parameters: Any) -> Transformer:
    learner = build_learner(Named(name="transformer", **(SMALL | parameters)))
    assert isinstance(learner, Transformer)
    return learner


def classifier(**parameters: Any) -> Transformer:
    return small(task="classify", classes=3, target_vocabulary=39, **parameters)


def batch(count: int = 6) -> Examples:
    generator = torch.Generator().manual_seed(1)
    return Examples(
        torch.randint(0, 5, (count, 4), generator=generator), torch.randint(0, 3, (count, 5), generator=generator)
    )


def test_positions_are_the_papers_sines_and_cosines() -> None:
    found = positions(50, 6, torch.device("cpu"))
    for place in (0, 1, 49):
        for pair in range(3):
            angle = place / 10_000 ** (2 * pair / 6)
            assert found[place, 2 * pair].item() == pytest.approx(math.sin(angle), abs=1e-5)
            assert found[place, 2 * pair + 1].item() == pytest.approx(math.cos(angle), abs=1e-5)


@torch.no_grad()
def test_embedding_is_the_codes_own_scaled_by_the_root_of_the_width_where_it_stands() -> None:
    embedding = Embedding(5, LayerShape(6, 2, 8, 0.0, has_pre_norm=False))
    found = embedding(torch.tensor([[4, 0, 4]]))[0]
    expected = math.sqrt(6) * embedding.codes.weight[[4, 0, 4]] + positions(3, 6, torch.device("cpu"))
    torch.testing.assert_close(found, expected)


def copy_attention(own: MultiHeadAttention, other: nn.MultiheadAttention) -> None:
    parts = (own.query, own.key, own.value)
    other.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
    other.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
    other.out_proj.load_state_dict(own.output.state_dict())


def copy_layer(own: EncoderLayer | DecoderLayer, other: nn.Module) -> None:
    """Give torch's own layer the weights of ours."""
    norms = [own.around_attention.norm, own.around_feed_forward.norm]
    with torch.no_grad():
        assert isinstance(other.self_attn, nn.MultiheadAttention)
        copy_attention(own.attention, other.self_attn)
        if isinstance(own, DecoderLayer):
            assert isinstance(other.multihead_attn, nn.MultiheadAttention)
            copy_attention(own.look, other.multihead_attn)
            norms.insert(1, own.around_look.norm)
    pairs: list[tuple[nn.Module, nn.Module]] = [
        (norm, other.get_submodule(f"norm{number}")) for number, norm in enumerate(norms, 1)
    ]
    maps = {"0": "linear1", "2": "linear2"}
    pairs += [(own.feed_forward.get_submodule(name), other.get_submodule(copy)) for name, copy in maps.items()]
    for source, copy in pairs:
        copy.load_state_dict(source.state_dict())


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stirred(module: nn.Module) -> None:
    """Draw every parameter anew, norms and biases too, so that none hides behind a 0 or a 1."""
    torch.manual_seed(2)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)


IS_CODE = torch.tensor([[True, True, True], [True, False, False]])


@pytest.mark.parametrize("has_pre_norm", [False, True])
def test_encoder_layer_is_torchs_own(has_pre_norm: bool) -> None:
    layer = EncoderLayer(LayerShape(8, 2, 16, 0.0, has_pre_norm))
    stirred(layer)
    other = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=has_pre_norm)
    copy_layer(layer, other)
    x = drawn(2, 3, 8)
    found = layer(x, IS_CODE.unsqueeze(1))
    torch.testing.assert_close(found, other(x, src_key_padding_mask=~IS_CODE))


@pytest.mark.parametrize("has_pre_norm", [False, True])
def test_decoder_layer_is_torchs_own(has_pre_norm: bool) -> None:
    layer = DecoderLayer(LayerShape(8, 2, 16, 0.0, has_pre_norm))
    stirred(layer)
    other = nn.TransformerDecoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=has_pre_norm)
    copy_layer(layer, other)
    x, memory = drawn(2, 4, 8), drawn(2, 3, 8, seed=2)
    is_after = torch.ones(4, 4, dtype=torch.bool).triu(1)
    found, weights = layer(x, memory, IS_CODE.unsqueeze(1))
    torch.testing.assert_close(found, other(x, memory, tgt_mask=is_after, memory_key_padding_mask=~IS_CODE))
    assert not weights[1, :, :, 1:].any()


def test_training_loss_is_against_smoothed_targets_and_evaluation_is_not() -> None:
    learner, data = small(label_smoothing=0.3, dropout=0.0), batch()
    state = learner.init(1)
    plain = small(label_smoothing=0.0, dropout=0.0)
    assert learner.evaluate(state, data) == plain.evaluate(state, data)
    smooth = fit(learner, state, data, batch_size=6).metrics["train_loss"]
    logits, _ = plain._translation(data.inputs, functional.pad(data.targets, (1, 0), value=3))
    outputs = functional.pad(data.targets, (0, 1), value=3)
    log_likelihoods = logits.log_softmax(dim=2)  # (batch, time, 4)
    own = log_likelihoods.gather(2, outputs.unsqueeze(2)).squeeze(2)
    expected = -(0.7 * own + 0.3 * log_likelihoods.mean(dim=2)).mean()
    assert smooth == pytest.approx(expected.item(), rel=1e-5)


def test_warm_up_is_the_papers_rate_as_a_part_of_its_peak() -> None:
    width, warm_up_steps = 512, 4000

    def paper(step: int) -> float:
        return float(width**-0.5 * min(step**-0.5, step * warm_up_steps**-1.5))

    for step in (1, 100, 3999, 4000, 4001, 100_000):
        assert warm_up_factor(step, warm_up_steps) == pytest.approx(paper(step) / paper(warm_up_steps))


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_warm_up_trains_as_an_optimizer_whose_rate_is_set_step_by_step(optimizer: str) -> None:
    learner, data = small(warm_up_steps=3, dropout=0.0, label_smoothing=0.0), batch()
    state = learner.init(1)
    # A large eps, because Adam makes much of gradients that are 0 but for rounding, such as those of the keys' biases.
    more = {} if optimizer == "sgd" else {"eps": 1e-3}
    named = Named(name=optimizer, learning_rate=0.05, **more)
    after = moved(state, fit(learner, state, data, epochs=6, batch_size=6, optimizer=named))
    assert float(after["trained.units"]) * 1024 == 6
    plain = small(dropout=0.0, label_smoothing=0.0)
    plain._load(state)
    plain._module.train()
    classes: dict[str, Any] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    reference = classes[optimizer](plain._module.parameters(), lr=0.05, **more)
    order = torch.Generator().manual_seed(1)
    torch.randint(1 << 62, (), generator=order)
    for step in range(1, 7):
        reference.param_groups[0]["lr"] = 0.05 * warm_up_factor(step, 3)
        reference.zero_grad()
        plain.batch_loss(data.select(torch.randperm(6, generator=order))).backward()  # type: ignore[no-untyped-call]
        reference.step()
    for name, tensor in plain._module.state_dict().items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-4, atol=1e-5)


def test_warm_up_goes_on_from_the_count_of_the_state() -> None:
    learner, data = small(warm_up_steps=100, dropout=0.0), batch()
    sizes = []
    for steps in (0, 49):
        state = learner.init(1)
        state["trained.units"].fill_(steps / 1024)
        contribution = fit(learner, state, data, batch_size=6, optimizer=Named(name="sgd", learning_rate=0.1))
        change = learner.contribution_layout.views(contribution.vector)
        sizes.append(change["embedding.codes.weight"].norm().item())
    assert sizes[1] == pytest.approx(50 * sizes[0], rel=1e-3)


def test_decoder_sees_no_code_that_follows() -> None:
    learner, data = small(), batch(2)
    learner._load(learner.init(1))
    model = learner._translation.eval()
    inputs = torch.tensor([[3, 0, 1, 2]])
    changed = torch.tensor([[3, 0, 2, 0]])
    logits = [model(data.inputs[:1], codes)[0] for codes in (inputs, changed)]
    torch.testing.assert_close(logits[0][:, :2], logits[1][:, :2])
    assert not torch.allclose(logits[0][:, 2], logits[1][:, 2])


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_classifier_depends_neither_on_padding_nor_on_the_batch(pooling: str) -> None:
    learner = classifier(pooling=pooling)
    alone = Examples(torch.tensor([[1, 2]]), torch.tensor([1]))
    beside = Examples(torch.tensor([[1, 2, PADDING, PADDING]]), torch.tensor([1]))
    state = learner.init(1)
    expected = learner.evaluate(state, alone).metrics["loss"]
    assert learner.evaluate(state, beside).metrics["loss"] == pytest.approx(expected, rel=1e-5)
    longer = Examples(torch.tensor([[1, 2, 4, 4]]), torch.tensor([1]))
    assert learner.evaluate(state, longer).metrics["loss"] != pytest.approx(expected, rel=1e-5)
    assert set(learner.evaluate(state, longer).metrics) == {"loss", "accuracy"}


def test_poolings_are_the_mean_and_the_first_position() -> None:
    learner = classifier()
    learner._load(learner.init(1))
    model = learner._module.eval()
    sources = torch.tensor([[1, 2, 3, PADDING]])
    memory = model.get_submodule("encoder")(sources)
    dense = model.get_submodule("dense")
    torch.testing.assert_close(model(sources), dense(memory[:, :3].mean(dim=1)))
    model.is_mean = False
    torch.testing.assert_close(model(sources), dense(memory[:, 0]))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        pytest.param({"heads": 3}, r"width must be a multiple of heads, 3, got 8", id="heads"),
        pytest.param({"norm": "none"}, r"norm must be 'post' or 'pre', got 'none'", id="norm"),
        pytest.param({"task": "both"}, r"task must be 'translate' or 'classify', got 'both'", id="task"),
        pytest.param({"classes": 3}, r"classes must be left out where task is translate, got 3", id="classes"),
        pytest.param(
            {"task": "classify"}, r"target_vocabulary must be left out where task is classify, got 3", id="targets"
        ),
        pytest.param({"label_smoothing": 1.0}, r"label_smoothing must be less than 1, got 1\.0", id="smoothing"),
    ],
)
def test_parameters_that_break_a_rule_are_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(LearnerError, match=message):
        small(**parameters)


def test_check_of_a_classifier_wants_classes() -> None:
    learner = classifier()
    learner.check(Examples(torch.tensor([[1, PADDING]]), torch.tensor([2])))
    with pytest.raises(DataError, match=r"Learner transformer: classes must be one an example, got shape \(1, 1\)\."):
        learner.check(Examples(torch.tensor([[1]]), torch.tensor([[2]])))
    with pytest.raises(DataError, match=r"Learner transformer: sources must be 0 to 4, got 7 in example 0\."):
        learner.check(Examples(torch.tensor([[7]]), torch.tensor([2])))


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_learns_to_pronounce(norm: str) -> None:
    training, held_out = part("bp")
    learner = build_learner(Named(name="transformer", width=32, feed_forward=64, layers=1, norm=norm, dropout=0.0))
    state = learner.init(1)
    after = moved(state, fit(learner, state, training, epochs=12, batch_size=16, optimizer=ADAM))
    assert learner.evaluate(after, held_out).metrics["error_rate"] < 0.5


def test_classifies_spellings_by_the_phone_that_they_end_in() -> None:
    parts = [Examples(pairs.inputs, last_phones(pairs.targets)) for pairs in part("bmp")]
    named = Named(
        name="transformer", task="classify", classes=39, width=32, feed_forward=64, layers=1, dropout=0.0, norm="pre"
    )
    learner = build_learner(named)
    state = learner.init(1)
    after = moved(state, fit(learner, state, parts[0], epochs=4, batch_size=16, optimizer=ADAM))
    commonest = parts[1].targets.bincount().max().item() / len(parts[1])
    assert learner.evaluate(after, parts[1]).metrics["accuracy"] > commonest + 0.3


def last_phones(targets: Tensor) -> Tensor:
    return targets.gather(1, lengths(targets).unsqueeze(1) - 1).squeeze(1)


@pytest.mark.slow
@pytest.mark.parametrize("parameters", [{}, {"warm_up_steps": 200}, {"norm": "pre"}], ids=["post", "warm-up", "pre"])
def test_learns_to_pronounce_words_that_were_held_out(parameters: dict[str, Any]) -> None:
    training, held_out = part()
    learner = build_learner(Named(name="transformer", **parameters))
    state = learner.init(1)
    after = moved(state, fit(learner, state, training, epochs=15, batch_size=32, optimizer=ADAM, clip_norm=1.0))
    assert learner.evaluate(after, held_out).metrics["error_rate"] < 0.24
