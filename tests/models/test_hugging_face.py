"""Bases of transformers: read from a folder, fine-tuned in full or by adapters, and otherwise as they were to the bit."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from client.data import load, load_local, parse_source
from models import PADDING, DataError, Examples, LearnerError, build_learner
from models.bases import FOLDER_VARIABLE, digest_base
from models.hugging_face import HuggingFaceLearner
from models.learner import SampleRequest
from tests.models.foundation import minilm
from tests.models.text import adam, role, trained
from wire.spec import Named
from wire.tensors import Layout

GPT2: dict[str, Any] = {"name": "hf_causal_lm", "base": "gpt2", "window": 80}
BERT: dict[str, Any] = {"name": "hf_sequence_classifier", "base": "all-minilm-l6-v2", "window": 80}
T5 = BERT | {"base": "t5"}
LORA = {"rank": 2, "targets": ["c_attn"]}

pytestmark = pytest.mark.usefixtures("bases")


def built(**named: Any) -> HuggingFaceLearner:
    learner = build_learner(Named(**named))
    assert isinstance(learner, HuggingFaceLearner)
    return learner


def codes(*texts: str) -> Tensor:
    rows = [torch.tensor(list(text.encode())) for text in texts]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PADDING)


def named_texts(*texts: str, classes: list[int] | None = None) -> Examples:
    inputs = codes(*texts)
    return Examples(
        inputs, torch.zeros(len(inputs), 0, dtype=torch.int64) if classes is None else torch.tensor(classes)
    )


def tensors_of(learner: HuggingFaceLearner) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in learner._module.state_dict().items()}


def test_full_model_starts_as_its_base_and_has_each_tensor_once(bases: Path) -> None:
    saved = load_file(bases / "gpt2" / "model.safetensors")
    state = built(**GPT2).init(7)
    # The last layer is the embedding under a second name.
    assert "lm_head.weight" not in state
    assert set(state) == {name for name in saved if name != "lm_head.weight"}
    assert all(torch.equal(tensor, saved[name]) for name, tensor in state.items())
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)


def test_measures_are_those_of_the_base_itself(bases: Path) -> None:
    from transformers import AutoModelForCausalLM

    texts = ["To be, or not to be", "whöse?"]
    theirs: Any = AutoModelForCausalLM.from_pretrained(bases / "gpt2").eval()
    learner = built(**GPT2)
    alphabet = learner.tokenizer("".join(map(chr, range(128))))["input_ids"]
    losses, hits, bits = [], [], []
    for text in texts:
        tokens = torch.tensor([[256, *learner.tokenizer(text)["input_ids"]]])
        assert tokens.shape[1] == len(text.encode()) + 1
        logits = theirs(tokens).logits[0, :-1].detach()
        losses.append(float(torch.nn.functional.cross_entropy(logits, tokens[0, 1:])))
        hits.append(float((logits.argmax(1) == tokens[0, 1:]).double().mean()))
        bits.append(losses[-1] / math.log(2) * len(text.encode()) / len(text))
    metrics = learner.evaluate(learner.init(7), named_texts(*texts)).metrics
    assert len(set(alphabet)) == 128
    assert metrics["loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(sum(hits) / 2)
    assert metrics["bits_per_character"] == pytest.approx(sum(bits) / 2, rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))


def test_character_that_a_window_cuts_is_left_out() -> None:
    learner = built(**GPT2)
    whole = named_texts("thou")
    cut = Examples(torch.tensor([[0xA9, *b"thou", 0xC3]]), torch.zeros(1, 0, dtype=torch.int64))
    state = learner.init(7)
    assert learner.evaluate(state, cut) == learner.evaluate(state, whole)


@pytest.mark.parametrize(
    ("named", "travelling"),
    [
        pytest.param(GPT2 | {"lora": LORA}, {"lora_A", "lora_B"}, id="gpt2"),
        pytest.param(BERT | {"lora": {"rank": 2}}, {"lora_A", "lora_B", "classifier"}, id="bert"),
        pytest.param(BERT | {"features": True}, {"classifier"}, id="features"),
        pytest.param(T5 | {"lora": {"rank": 2, "targets": ["q", "v"]}}, {"lora_A", "lora_B", "head"}, id="t5"),
    ],
)
def test_only_adapters_and_a_new_head_travel_and_the_base_stays_to_the_bit(
    named: dict[str, Any], travelling: set[str], bases: Path
) -> None:
    learner = built(**named)
    data = role("hamlet/HAMLET").training.select(torch.arange(24))
    if named["name"] == "hf_sequence_classifier":
        data = Examples(data.inputs, torch.arange(24) % 2)
    learner.check(data)
    state, before = learner.init(7), tensors_of(learner)
    assert all(any(part in name for part in travelling) for name in state)
    assert learner.contribution_layout.size < 0.25 * sum(tensor.numel() for tensor in before.values())
    after = trained(
        learner,
        state,
        data,
        batch_size=8,
        optimizer=Named(name="adamw", learning_rate=0.01, weight_decay=0.5),
        clip_norm=1.0,
    )
    learner.evaluate(after, data)
    now = tensors_of(learner)
    assert all(torch.equal(tensor, before[name]) for name, tensor in now.items() if name not in state)
    assert all(not torch.equal(after[name], state[name]) for name in state)
    saved = load_file(bases / named["base"] / "model.safetensors")
    values = [tensor.flatten() for name, tensor in now.items() if name not in state]
    assert all(any(torch.equal(tensor.flatten(), value) for value in values) for tensor in saved.values())


@pytest.mark.parametrize("base", ["gpt2", "t5"])
def test_decoder_classifies_a_text_alike_alone_and_beside_a_longer_one(base: str) -> None:
    learner: Any = built(**BERT | {"base": base})
    learner._rest(learner.init(7))
    short, both = named_texts("To be!"), named_texts("To be!", "or not to be")
    with torch.no_grad():
        torch.testing.assert_close(learner.outputs(both)[:1], learner.outputs(short))
        assert not torch.allclose(*learner.outputs(both))


def test_encoder_and_decoder_classifies_as_the_base_does_whatever_the_text_says_of_its_end(bases: Path) -> None:
    from transformers import T5ForSequenceClassification

    learner: Any = built(**T5)
    state = learner.init(7)
    learner._rest(state)
    end, text = "<|endoftext|>", "To be, or not to be"
    with torch.no_grad():
        found = learner.outputs(named_texts(text, f"{text}{end}", f"{end}To be, {end}or not to be{end}", end))
        make: Any = T5ForSequenceClassification
        theirs = make.from_pretrained(bases / "t5", eos_token_id=256)
        theirs.config.decoder_start_token_id = 0
        theirs.load_state_dict(state, strict=False)
        expected = theirs.eval()(torch.tensor([[*learner.tokenizer(text)["input_ids"], 256]])).logits
    torch.testing.assert_close(found[:3], expected.expand(3, 2))
    assert found[3].isfinite().all()


def test_encoder_and_decoder_learns_classes_of_texts() -> None:
    rows = role("hamlet/HAMLET").training.select(torch.arange(48)).inputs
    # Of every other text letters are small: easy to tell, but not from the first or last token.
    is_small = torch.arange(48) % 2
    lowered = torch.tensor([list(bytes(row).lower()) for row in rows.tolist()])
    data = Examples(torch.where(is_small.bool()[:, None], lowered, rows.clamp(max=90)), is_small)
    learner = built(**T5)
    learner.check(data)
    state = learner.init(7)
    after = trained(learner, state, data, epochs=3, batch_size=8, optimizer=adam(0.01))
    assert learner.evaluate(after, data).metrics["loss"] < learner.evaluate(state, data).metrics["loss"] - 0.1


def test_adapted_model_starts_as_its_base() -> None:
    data = named_texts("To be, or not to be", "that is the question")
    plain, adapted = built(**GPT2), built(**GPT2, lora=LORA)
    assert adapted.evaluate(adapted.init(7), data) == plain.evaluate(plain.init(7), data)


@pytest.mark.parametrize("lora", [None, LORA | {"targets": ["c_attn", "c_fc"]}])
def test_text_is_learned(lora: dict[str, Any] | None) -> None:
    data = role("hamlet/HAMLET")
    learner = built(**GPT2, lora=lora)
    state = learner.init(7)
    before = learner.evaluate(state, data.held_out).metrics
    after = learner.evaluate(trained(learner, state, data.training, batch_size=8, optimizer=adam(0.01)), data.held_out)
    assert before["bits_per_character"] == pytest.approx(math.log2(257), abs=0.1)
    assert after.metrics["bits_per_character"] < before["bits_per_character"] - (1.5 if lora is None else 0.05)


def test_sample_writes_on_from_the_prompt() -> None:
    learner = built(**GPT2)
    request = SampleRequest(3, torch.Generator().manual_seed(1), codes("To be")[0], length=12)
    found = learner.sample(learner.init(7), request)  # type: ignore[attr-defined]
    assert found.dtype == torch.int64
    assert found.shape[0] == 3
    assert 5 < found.shape[1] <= 5 + 12
    assert all(bytes(row[:5]) == b"To be" for row in found.tolist())
    again = SampleRequest(3, torch.Generator().manual_seed(1), codes("To be")[0], length=12)
    assert torch.equal(found, learner.sample(learner.init(7), again))  # type: ignore[attr-defined]
    assert learner.sample(learner.init(7), SampleRequest(1, torch.Generator(), length=4)).shape[0] == 1  # type: ignore[attr-defined]


def test_sample_is_computed_in_the_precision_that_is_asked_for() -> None:
    seen = set()
    for precision in ("float32", "bfloat16"):
        learner = built(**GPT2, precision=precision)
        learner._module.register_forward_hook(lambda module, inputs, outputs: seen.add(outputs.logits.dtype))
        learner.sample(learner.init(7), SampleRequest(1, torch.Generator(), length=2))  # type: ignore[attr-defined]
    assert seen == {torch.float32, torch.bfloat16}


def test_coordinator_needs_no_weights_in_memory() -> None:
    for named in (GPT2, GPT2 | {"lora": LORA}, BERT, BERT | {"lora": {}}, BERT | {"features": True}, T5):
        learner, meta = built(**named), build_learner(Named(**named), "meta")
        assert all(tensor.is_meta for tensor in meta._module.state_dict().values())  # type: ignore[attr-defined]
        assert meta.contribution_layout == learner.contribution_layout == Layout.of(meta.init(7))
        assert all(torch.equal(tensor, learner.init(7)[name]) for name, tensor in meta.init(7).items())


def other_base(bases: Path, name: str) -> Path:
    folder = bases / name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(bases / "gpt2", folder)
    return folder


def test_base_with_pickled_weights_alone_is_refused_and_not_read(bases: Path) -> None:
    folder = other_base(bases, "pickled")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(LearnerError, match=r"^Base pickled: must be readable by transformers, got: .*safetensors"):
        built(**GPT2 | {"base": "pickled"})


def test_base_with_code_of_its_own_is_refused_and_not_run(bases: Path) -> None:
    folder = other_base(bases, "coded")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("raise SystemExit('run')")
    with pytest.raises(LearnerError, match=r"^Base coded: must be readable by transformers, got: "):
        built(**GPT2 | {"base": "coded"})


def test_base_that_lacks_a_tensor_is_refused_where_adapters_would_not_train_it(bases: Path) -> None:
    folder = other_base(bases, "lacking")
    tensors = load_file(folder / "model.safetensors")
    del tensors["transformer.h.0.attn.c_attn.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(LearnerError, match=r"got: tensor transformer\.h\.0\.attn\.c_attn\.weight is missing"):
        built(**GPT2 | {"base": "lacking", "lora": LORA})
    built(**GPT2 | {"base": "lacking"})


def test_base_with_another_digest_is_refused_where_it_is_read(bases: Path) -> None:
    digest = digest_base(bases / "gpt2")
    built(**GPT2, base_sha256=digest)
    build_learner(Named(**GPT2, base_sha256="0" * 64), "meta")
    with pytest.raises(LearnerError, match=rf"^Base gpt2: SHA-256 must be {'0' * 64}, got {digest}\."):
        built(**GPT2, base_sha256="0" * 64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": "gpt3"}, r"^Base gpt3: folder .* must hold a file gpt3\.safetensors or a folder gpt3, got neither\."),
        ({"base": "../gpt2"}, r"^Learner hf_causal_lm: base .* got '\.\./gpt2'\."),
        ({"base_sha256": "0"}, r"base_sha256 .*got '0'\."),
        ({"reset": ["lm_head.*"]}, r"^Learner hf_causal_lm: reset must come with initialize_from, got none"),
        ({"window": 257}, r"^Base gpt2: window must be at most 256, got 257\.$"),
        ({"lora": {}}, r"^Base gpt2: lora\.targets must be among c_attn, c_fc, c_proj, lm_head, got 'query'\.$"),
    ],
)
def test_parameter_that_breaks_a_rule_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LearnerError, match=message):
        build_learner(Named(**GPT2 | changes), "meta")


def test_file_in_the_place_of_a_folder_is_refused(bases: Path) -> None:
    save_file({"a": torch.zeros(1)}, bases / "saved.safetensors")
    with pytest.raises(
        LearnerError, match=r"^Base saved: must be a folder with a whole model of transformers, got saved\.safe"
    ):
        built(**GPT2 | {"base": "saved"})


def test_data_of_another_kind_is_refused() -> None:
    causal, classifier = built(**GPT2), built(**BERT, classes=3)
    causal.check(named_texts("a", "bc"))
    classifier.check(named_texts("a", "bc", classes=[0, 2]))
    with pytest.raises(DataError, match=r"^Learner hf_causal_lm: codes must be 0 to 255, got 256 in example 0\."):
        causal.check(Examples(torch.tensor([[256]]), torch.zeros(1, 0, dtype=torch.int64)))
    with pytest.raises(DataError, match=r"^Learner hf_causal_lm: examples must be windows of 1 to 80 codes"):
        causal.check(Examples(torch.zeros(1, 81, dtype=torch.int64), torch.zeros(1, 81, dtype=torch.int64)))
    with pytest.raises(
        DataError, match=r"^Learner hf_sequence_classifier: classes must be 0 to 2, got 3 in example 1\."
    ):
        classifier.check(named_texts("a", "bc", classes=[0, 3]))
    with pytest.raises(DataError, match=r"^Learner hf_sequence_classifier: classes must be one an example, got shape"):
        classifier.check(load_local("shakespeare", 0.0, 0).training)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_minilm_tells_speakers_apart_after_adapters_have_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who says these 200 characters, of four roles? Guessing the commonest is right in a quarter of the cases."""
    (tmp_path / "all-minilm-l6-v2").symlink_to(minilm())
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    before = digest_base(minilm())
    found = load(parse_source("shakespeare,window=200,speakers=true"))
    rows = (found.targets < 4).nonzero().flatten()
    is_held_out = torch.arange(len(rows)) % 4 == 3
    training, held_out = found.select(rows[~is_held_out]), found.select(rows[is_held_out])
    learner = built(**BERT | {"window": 200, "classes": 4, "lora": {"rank": 8, "alpha": 16}})
    state = learner.init(7)
    assert learner.contribution_layout.size < 0.01 * 22.7e6
    fixed = tensors_of(learner)
    after = trained(learner, state, training, epochs=6, batch_size=16, optimizer=adam(2e-3), clip_norm=1.0)
    assert learner.evaluate(after, held_out).metrics["accuracy"] > 0.4
    assert all(torch.equal(tensor, fixed[name]) for name, tensor in tensors_of(learner).items() if name not in state)
    assert digest_base(minilm()) == before
