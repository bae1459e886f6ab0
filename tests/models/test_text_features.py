"""Features of a base of transformers: each text passes through the base once, alone, and one dense layer learns from them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models import Examples, LearnerError, build_learner
from models.hugging_face import HuggingFaceSequenceClassifier
from tests.models.text import adam, role, trained
from wire.spec import Named

BERT: dict[str, Any] = {"name": "hf_sequence_classifier", "base": "all-minilm-l6-v2", "window": 80, "features": True}

pytestmark = pytest.mark.usefixtures("bases")


def built(**changes: Any) -> HuggingFaceSequenceClassifier:
    learner = build_learner(Named(**BERT | changes))
    assert isinstance(learner, HuggingFaceSequenceClassifier)
    return learner


def speakers(count: int) -> Examples:
    """Return windows of two roles, one after the other, of which each third is cut short by padding."""
    parts = [role(name).training.inputs[:count] for name in ("hamlet/HAMLET", "othello/IAGO")]
    inputs = torch.cat(parts)
    inputs[::3, 50:] = -1
    return Examples(inputs, torch.arange(2).repeat_interleave(count))


def watched(learner: HuggingFaceSequenceClassifier) -> list[tuple[int, ...]]:
    """Return a list that gets the shape of the tokens each time the base runs."""
    shapes: list[tuple[int, ...]] = []

    def note(module: object, arguments: object, options: dict[str, Tensor]) -> None:
        shapes.append(tuple(options["input_ids"].shape))

    learner._module.get_submodule("base").register_forward_pre_hook(note, with_kwargs=True)
    return shapes


def test_outputs_are_those_of_a_dense_layer_on_the_mean_of_the_last_hidden_states(bases: Path) -> None:
    from transformers import AutoModel

    learner, data = built(), speakers(3)
    state = learner.init(7)
    base: Any = AutoModel.from_pretrained(bases / BERT["base"]).eval()
    losses = []
    for row, target in zip(data.inputs, data.targets, strict=True):
        codes = row[row >= 0]
        tokens = torch.tensor([learner.tokenizer(bytes(codes.tolist()).decode())["input_ids"]])
        features = base(tokens).last_hidden_state.detach()[0].mean(0)
        logits = state["classifier.weight"] @ features + state["classifier.bias"]
        losses.append(float(torch.nn.functional.cross_entropy(logits, target)))
    assert learner.evaluate(state, data).metrics["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_each_text_passes_through_the_base_once_and_alone() -> None:
    learner, data = built(), speakers(4)
    seen = watched(learner)
    state = learner.init(7)
    after = trained(learner, state, data, epochs=3, batch_size=3, optimizer=adam(0.1))
    learner.evaluate(after, data)
    assert len(seen) == len(data)
    assert all(count == 1 for count, _ in seen)


def test_classes_are_learned() -> None:
    learner = built()
    data = Examples(torch.tensor([[97] * 20, [98] * 20] * 8), torch.tensor([0, 1] * 8))
    after = trained(learner, learner.init(7), data, epochs=20, batch_size=4, optimizer=adam(0.1))
    assert learner.evaluate(after, data).metrics["accuracy"] == 1.0


def test_only_the_dense_layer_travels_whatever_a_decoder_or_an_encoder_is_the_base() -> None:
    for base in ("all-minilm-l6-v2", "gpt2"):
        state = built(base=base, classes=3).init(7)
        assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
            "classifier.weight": (3, 16),
            "classifier.bias": (3,),
        }


def test_base_without_a_pooler_is_taken_and_one_that_lacks_another_tensor_is_refused(bases: Path) -> None:
    whole = bases / BERT["base"]
    for name, lacking in (("unpooled", "pooler.dense"), ("lacking-layer", "encoder.layer.0.output.dense")):
        folder = bases / name
        folder.mkdir()
        for file in whole.iterdir():
            if file.suffix != ".safetensors":
                (folder / file.name).write_bytes(file.read_bytes())
        tensors = {key: value for key, value in load_file(whole / "model.safetensors").items() if lacking not in key}
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    data = speakers(2)
    state = built().init(7)
    assert built(base="unpooled").evaluate(state, data) == built().evaluate(state, data)
    with pytest.raises(LearnerError, match=r"^Base lacking-layer: .* tensor encoder\.layer\.0\.output\.dense\.bias is"):
        built(base="lacking-layer")


def test_features_of_what_has_none_are_refused(bases: Path) -> None:
    with pytest.raises(LearnerError, match=r"features must be false with lora, which changes them, got true"):
        built(lora={})
    with pytest.raises(LearnerError, match=r"^Base t5: features must be of an encoder or a decoder, got a model of b"):
        built(base="t5")
