"""Every learner of the zoo does what every learner must: who is registered is tested here, without being named."""

from functools import cache

import pytest

from choral.conformance import CHECKS, Case, case_of
from client.device import choose_device
from models import MODELS
from models.examples import example_of
from wire.spec import Named

VARIANTS = {
    "mlp-batch-norm": Named(
        name="mlp", inputs=[1, 8, 8], hidden=[16, 16], activation="tanh", batch_norm=True, dropout=0.2
    ),
    "cnn-average": Named(name="cnn", channels=[4], pooling="average", hidden=16, batch_norm=True, dropout=0.2),
    "cnn-two-convolutions": Named(name="cnn", channels=[[4, 8]], padding="valid", feature_dropout=0.1),
    "mlp-step": Named(name="mlp", inputs=[1, 8, 8], activation="step"),
    "rbf-network-gradient": Named(name="rbf_network", inputs=[1, 8, 8], centres=12, readout="gradient"),
    "cnn-metrics": Named(name="cnn", channels=[4], metrics=["f1", "auroc", "precision", "recall"]),
    "perceptron-metrics": Named(name="perceptron", inputs=[1, 8, 8], metrics=["f1", "auroc"]),
    "mlp-regressor-r2": Named(name="mlp_regressor", metrics=["r2"]),
    "autoencoder-noise": Named(name="autoencoder", noise=0.3),
    "seq2seq-scheduled": Named(name="seq2seq", hidden=16, attention="dot", forcing="scheduled", dropout=0.2),
    "seq2seq-professor": Named(name="seq2seq", hidden=16, attention="none", forcing="professor", beam_width=2),
    "transformer-pre-norm": Named(name="transformer", width=16, feed_forward=16, layers=1, norm="pre", beam_width=2),
    "mlp-bfloat16": Named(name="mlp", inputs=[1, 8, 8], precision="bfloat16"),
    "lstm-layers": Named(name="lstm", hidden=8, layers=2, dropout=0.2),
    "gru-truncated": Named(name="gru", task="forecast", features=1, hidden=16, truncate=8),
    "gan-points": Named(name="gan", inputs=[1, 8, 8], hidden=[32], precision="bfloat16"),
    "hf-classifier-lora": Named(
        name="hf_sequence_classifier", base="all-minilm-l6-v2", classes=12, lora={"rank": 8, "alpha": 16}
    ),
    "hf-classifier-decoder": Named(name="hf_sequence_classifier", base="gpt2-comedies", classes=12),
    "hf-classifier-encoder-decoder": Named(name="hf_sequence_classifier", base="t5", classes=12),
    "hf-causal-whole": Named(name="hf_causal_lm", base="gpt2-comedies"),
    "ddpm-unet": Named(name="ddpm", network="unet", channels=[8, 16], steps=20, schedule="cosine"),
}
"""Options that change how a learner trains, by a name of their own."""


@cache
def case_named(name: str) -> Case:
    variant = VARIANTS.get(name)
    example = example_of(variant.name if variant else name)
    changes = {"learner": variant} if variant else {}
    return case_of(example.spec.model_copy(update=changes), example.data, choose_device())


@pytest.mark.usefixtures("bases")
@pytest.mark.parametrize("rule", CHECKS)
@pytest.mark.parametrize("name", [*MODELS, *VARIANTS])
def test_learner_does_what_every_learner_must(name: str, rule: str) -> None:
    CHECKS[rule](case_named(name))


@pytest.mark.slow
@pytest.mark.usefixtures("bases")
@pytest.mark.parametrize("rule", ["loss falls", "evaluate is a function", "fit is a function", "bad data is refused"])
@pytest.mark.parametrize("name", [name for name in MODELS if "precision" in MODELS[name].parameters.model_fields])
def test_learner_that_has_a_precision_does_so_in_bfloat16(name: str, rule: str) -> None:
    example = example_of(name)
    learner = Named.model_validate({**example.spec.learner.model_dump(), "precision": "bfloat16"})
    CHECKS[rule](case_of(example.spec.model_copy(update={"learner": learner}), example.data, choose_device()))
