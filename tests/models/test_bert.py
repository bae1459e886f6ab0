"""BERT: its masks by their statistics, its networks against others with the same weights, and what it learns."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits, load_iris, load_wine
from torch import Tensor
from torch.nn import functional

from client.data import load_local
from models import PADDING, DataError, Examples
from models.bert import BERT, BERTParameters, mask_codes
from models.language import own_draws
from tests.models.text import adam, joined, plays, trained, unigram_accuracy, windows
from wire.tensors import Layout, State

CPU = torch.device("cpu")
MASK = 256


def bert(**parameters: object) -> BERT:
    return BERT(BERTParameters.model_validate(parameters), CPU)


def codes(*shape: int, below: int = 256) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(3))


def masked(windows: Tensor) -> tuple[Tensor, Tensor]:
    draws = torch.rand(*windows.shape, 3, generator=torch.Generator().manual_seed(4))
    return mask_codes(windows, draws, 256)


def test_masks_are_fifteen_percent_of_which_eighty_ten_ten() -> None:
    true = codes(2_000, 80)
    found, targets = masked(true)
    is_chosen = targets != PADDING
    assert (is_chosen.sum(1) == 12).all()
    assert torch.equal(found[~is_chosen], true[~is_chosen])
    assert torch.equal(targets[is_chosen], true[is_chosen])
    was, became = true[is_chosen], found[is_chosen]
    is_masked, is_kept = became == MASK, became == was
    # A random code is the true one in one case of 256. Margins: four standard deviations of 24,000 choices.
    assert float(is_masked.double().mean()) == pytest.approx(0.8, abs=4 * math.sqrt(0.8 * 0.2 / 24_000))
    assert float(is_kept.double().mean()) == pytest.approx(0.1 + 0.1 / 256, abs=4 * math.sqrt(0.1 * 0.9 / 24_000))
    # Each place, and each code as a random one, is as likely as the others.
    assert float((is_chosen.sum(0) - 300).abs().max()) < 5 * math.sqrt(300 * 0.85)
    random = became[~is_masked & ~is_kept].bincount(minlength=256)
    assert len(random) == 256
    assert float((random - random.double().mean()).abs().max()) < 5 * float(random.double().mean().sqrt())


@pytest.mark.parametrize(("time", "count"), [(1, 1), (3, 1), (10, 2), (20, 3), (80, 12)])
def test_masks_of_short_windows_choose_at_least_one_place(time: int, count: int) -> None:
    assert ((masked(codes(5, time))[1] != PADDING).sum(1) == count).all()


def test_masks_of_an_evaluation_follow_from_the_example_alone() -> None:
    learner = bert()
    data = Examples(codes(20, 80), codes(20, 80))
    seen: list[Tensor] = []
    learner._module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].clone()))
    order = torch.arange(19, -1, -1)
    learner.evaluate(learner.init(1), data)
    learner.evaluate(learner.init(2), data.select(order))
    assert torch.equal(seen[0][order], seen[1])
    # And differ from one example to another.
    assert len({tuple(row.nonzero().flatten().tolist()) for row in seen[0] == MASK}) == 20


def test_masks_of_training_differ_from_one_epoch_to_the_next() -> None:
    learner = bert()
    data = Examples(codes(1, 80), codes(1, 80))
    seen: list[Tensor] = []
    learner._module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].clone()))
    trained(learner, learner.init(1), data, epochs=2)
    assert not torch.equal(seen[0], seen[1])


def hugging_face(state: State, head: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the names that transformers has for our tensors."""
    names = {
        "encoder.codes.weight": "bert.embeddings.word_embeddings.weight",
        "encoder.positions.weight": "bert.embeddings.position_embeddings.weight",
    }
    for kind in ("weight", "bias"):
        names[f"encoder.norm.{kind}"] = f"bert.embeddings.LayerNorm.{kind}"
        for layer in range(2):
            own, theirs = f"encoder.blocks.{layer}.", f"bert.encoder.layer.{layer}."
            for part in ("query", "key", "value"):
                names[f"{own}attention.{part}.{kind}"] = f"{theirs}attention.self.{part}.{kind}"
            names[f"{own}attention.output.{kind}"] = f"{theirs}attention.output.dense.{kind}"
            names[f"{own}attention_norm.{kind}"] = f"{theirs}attention.output.LayerNorm.{kind}"
            names[f"{own}feed_forward.expand.{kind}"] = f"{theirs}intermediate.dense.{kind}"
            names[f"{own}feed_forward.contract.{kind}"] = f"{theirs}output.dense.{kind}"
            names[f"{own}feed_forward_norm.{kind}"] = f"{theirs}output.LayerNorm.{kind}"
    names |= head
    tensors = {names[name]: tensor for name, tensor in state.items()}
    return tensors | {"bert.embeddings.token_type_embeddings.weight": torch.zeros(2, 24)}


def config() -> Any:
    import transformers

    make: Any = transformers.BertConfig
    return make(
        vocab_size=258,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=96,
        max_position_embeddings=13,
        layer_norm_eps=1e-5,
        num_labels=4,
    )


SMALL = {"window": 12, "width": 24, "heads": 3, "norm_first": False}
FIRST = torch.full((3, 1), 257)


def test_guesses_equal_those_of_transformers_bert_with_the_same_weights() -> None:
    from transformers import BertForMaskedLM

    learner = bert(**SMALL)
    state = dict(learner.init(5))
    state["bias"] = torch.linspace(-1, 1, 256)
    module = learner.build().eval()
    module.load_state_dict(state)
    head = {f"head.dense.{kind}": f"cls.predictions.transform.dense.{kind}" for kind in ("weight", "bias")}
    head |= {f"head.norm.{kind}": f"cls.predictions.transform.LayerNorm.{kind}" for kind in ("weight", "bias")}
    state["bias"] = torch.cat([state["bias"], torch.zeros(2)])
    theirs = BertForMaskedLM(config()).eval()
    theirs.load_state_dict(hugging_face(state, head | {"bias": "cls.predictions.bias"}), strict=False)
    inputs = codes(3, 12, below=257)
    expected = theirs(torch.cat([FIRST, inputs], dim=1)).logits[:, 1:, :256]
    torch.testing.assert_close(module(inputs), expected, rtol=1e-4, atol=1e-5)


def test_classes_equal_those_of_transformers_bert_with_the_same_weights() -> None:
    from transformers import BertForSequenceClassification

    learner = bert(**SMALL, classes=4)
    state = learner.init(5)
    module = learner.build().eval()
    module.load_state_dict(dict(state))
    head = {f"head.dense.{kind}": f"bert.pooler.dense.{kind}" for kind in ("weight", "bias")}
    head |= {f"head.classes.{kind}": f"classifier.{kind}" for kind in ("weight", "bias")}
    theirs = BertForSequenceClassification(config()).eval()
    theirs.load_state_dict(hugging_face(state, head), strict=True)
    inputs = codes(3, 12)
    inputs[1, 5:] = PADDING
    read = torch.cat([FIRST, inputs], dim=1)
    expected = theirs(read.clamp(min=0), attention_mask=(read != PADDING).long()).logits
    torch.testing.assert_close(module(inputs), expected, rtol=1e-4, atol=1e-5)


def test_what_lies_in_the_padding_does_not_matter() -> None:
    module = bert(classes=3).build().eval()
    inputs = codes(2, 20)
    longer = torch.cat([inputs, torch.full((2, 9), PADDING)], dim=1)
    torch.testing.assert_close(module(longer), module(inputs))


def test_both_networks_share_the_names_of_their_encoder() -> None:
    guesser, classifier = bert().init(1), bert(classes=3).init(1)
    encoders = [
        {name: tensor.shape for name, tensor in state.items() if name.startswith("encoder.")}
        for state in (guesser, classifier)
    ]
    assert encoders[0] == encoders[1]
    assert len({tensor.data_ptr() for tensor in guesser.values()}) == len(guesser)
    block = 4 * (64 * 64 + 64) + (64 * 256 + 256) + (256 * 64 + 64) + 2 * 2 * 64
    assert Layout.of(guesser).size == (258 + 81) * 64 + 128 + 2 * block + 128 + (64 * 64 + 64) + 128 + 256


def test_classifier_tells_two_kinds_of_text_apart() -> None:
    """Twenty letters each of Hamlet, and of the descriptions of data sets; guessing is right in half of the cases."""
    descriptions = load_digits().DESCR + load_iris().DESCR + load_wine().DESCR
    spoken = load_local("shakespeare,roles=hamlet/HAMLET,window=20", 0.0, 0).training.inputs[:400]
    written = windows(descriptions, 20).inputs[:400]
    data = Examples(torch.cat([spoken, written]), torch.arange(2).repeat_interleave(400))
    learner = bert(classes=2, width=32, layers=1)
    learner.check(data)
    # The last quarter of each text is held out.
    is_held_out = torch.arange(800) % 400 >= 300
    state = trained(
        learner, learner.init(1), data.select((~is_held_out).nonzero().flatten()), epochs=4, optimizer=adam(3e-3)
    )
    metrics = learner.evaluate(state, data.select(is_held_out.nonzero().flatten())).metrics
    assert set(metrics) == {"loss", "accuracy"}
    assert metrics["accuracy"] > 0.75


def seen_of(windows: Tensor) -> Tensor:
    """Return what an evaluation shows of windows."""
    return mask_codes(windows, own_draws(windows, 3), 256)[0]


def neighbour_accuracy(training: Tensor, held_out: Tensor, side: int) -> float:
    """Return the top-1 accuracy at [MASK] of the commonest code beside what is seen at one side, before (-1) or after it (1)."""

    def beside(windows: Tensor) -> Tensor:
        return functional.pad(seen_of(windows), (1, 1), value=MASK)[:, 1 + side :][:, : windows.shape[1]]

    counts = torch.zeros(257, 256, dtype=torch.int64)
    counts.index_put_((beside(training), training), torch.tensor(1), accumulate=True)
    return float((counts.argmax(dim=1)[beside(held_out)] == held_out)[seen_of(held_out) == MASK].double().mean())


def masked_accuracy(learner: BERT, state: State, held_out: Tensor) -> float:
    """Return the top-1 accuracy at [MASK]."""
    module = learner.build().eval()
    module.load_state_dict(dict(state))
    seen = seen_of(held_out)
    with torch.no_grad():
        guesses = module(seen).argmax(dim=2)
    return float((guesses == held_out)[seen == MASK].double().mean())


def test_accuracy_is_of_all_chosen_places_of_which_some_show_their_code() -> None:
    """Who says what is shown is right at a tenth of them, without reading: so what is learned is measured at [MASK] alone."""
    learner = bert()
    text = codes(40, 80).clamp(min=1)  # A masked 0 would be guessed.
    learner._module.register_forward_hook(
        lambda _, arguments, outputs: functional.one_hot(arguments[0], 257)[:, :, :256].float()
    )
    _, targets = mask_codes(text, own_draws(text, 3), 256)
    is_shown = (seen_of(text) == targets) & (targets != PADDING)
    accuracy = learner.evaluate(learner.init(1), Examples(text, text)).metrics["accuracy"]
    assert accuracy == pytest.approx(int(is_shown.sum()) / (40 * 12))
    assert 0.05 < accuracy < 0.15


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_comedies_are_learned_by_reading_around_the_masks() -> None:
    """Of the codes at [MASK] in the last play, held out, .522, .502 and .549 are right with seeds 1, 2 and 3.

    Trivial tables: the commonest code .187, after the code before .258, before the code after .257, between both .442. The floor is below
    the worst seed by over three times what lies between seeds, and above what one neighbour says.
    """
    *training, last = plays("comedies").values()
    data, held_out = joined(*(windows(text, 20) for text in training)), windows(last, 20).inputs
    learner = bert()
    state = learner.init(1)
    for rate, epochs in ((3e-3, 3), (4.5e-4, 1)):
        state = trained(learner, state, data, epochs=epochs, batch_size=32, optimizer=adam(rate), clip_norm=1.0)
    assert unigram_accuracy(data.inputs, held_out) < 0.2
    for side in (-1, 1):
        assert neighbour_accuracy(data.inputs, held_out, side) < 0.27
    assert masked_accuracy(learner, state, held_out) > 0.35


def test_data_of_another_kind_is_refused() -> None:
    none = torch.zeros(2, 0, dtype=torch.int64)
    bert().check(Examples(codes(2, 8), none))
    bert(classes=3).check(Examples(torch.tensor([[1, 2, PADDING], [3, PADDING, PADDING]]), torch.tensor([0, 2])))
    with pytest.raises(DataError, match=r"^Learner bert: examples must be windows of 1 to 80 codes, got shape \(81,\)"):
        bert().check(Examples(codes(2, 81), none))
    with pytest.raises(DataError, match=r"^Learner bert: codes must be 0 to 255, got -1 in example 0\."):
        bert().check(Examples(torch.tensor([[1, PADDING]]), none))
    with pytest.raises(
        DataError, match=r"^Learner bert: padding \(-1\) must follow the codes, of which there is one or more"
    ):
        bert(classes=3).check(Examples(torch.tensor([[PADDING, 1]]), torch.tensor([0])))
    with pytest.raises(DataError, match=r"^Learner bert: padding \(-1\) must follow the codes"):
        bert(classes=3).check(Examples(torch.tensor([[1, PADDING, 1]]), torch.tensor([0])))
    with pytest.raises(DataError, match=r"^Learner bert: classes must be 0 to 2, got 3 in example 0\."):
        bert(classes=3).check(Examples(codes(1, 8), torch.tensor([3])))
