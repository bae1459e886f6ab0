"""`choral encode`: codes and errors of examples as a table, pictures of what is made out of them, and refusals of one sentence."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from client.data import load, parse_source
from models import build_learner
from tests.choral.command_line import Choral, sentence
from wire.saved import LEARNER_KEY
from wire.spec import Named

DATA = "digits,blocks=0"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save(**learner: Any) -> tuple[Any, dict[str, Tensor]]:
    """Save a new model of a learner, and return the learner with the model."""
    named = Named(**learner)
    built = build_learner(named)
    state = {name: tensor.contiguous() for name, tensor in built.init(1).items()}
    save_file(state, "model.safetensors", metadata={LEARNER_KEY: named.model_dump_json()})
    return built, state


@pytest.mark.parametrize("name", ["autoencoder", "conv_autoencoder"])
def test_encode_writes_codes_errors_and_classes_of_each_example(choral: Choral, name: str) -> None:
    # Noise, which only training and its evaluation have, has no part in it.
    learner, state = save(name=name, code=3, noise=0.5)
    outcome = choral("encode", "model.safetensors", "--data", DATA)
    assert (outcome.code, outcome.err) == (0, "")
    header, *rows = csv.reader(Path("codes.csv").read_text().splitlines())
    assert header == ["code_1", "code_2", "code_3", "error", "target"]
    data = load(parse_source(DATA))
    found = torch.tensor([[float(value) for value in row] for row in rows])
    torch.testing.assert_close(found[:, :3], learner.encode(state, data.inputs))
    made = learner.reconstruct(state, data.inputs)
    torch.testing.assert_close(found[:, 3], (made - data.inputs).square().mean(dim=(1, 2, 3)))
    assert torch.equal(found[:, 4].long(), data.targets)
    assert outcome.lines == [f"codes.csv: {len(data)} codes of 3 numbers, mean error {float(found[:, 3].mean()):.4g}"]


def test_encode_needs_no_classes_even_of_a_model_that_knew_anomalies(choral: Choral) -> None:
    save(name="autoencoder", inputs=[2], code=1, anomalies=[1])
    Path("rows.csv").write_text("a,b\n0.5,1\n0,0.25\n")
    assert choral("encode", "model.safetensors", "--data", "csv:rows.csv,unlabelled=true", "--out", "b.csv").code == 0
    assert Path("b.csv").read_text().splitlines()[0] == "code_1,error"


def test_codes_are_features_of_another_learner(choral: Choral) -> None:
    save(name="autoencoder", code=3)
    assert choral("encode", "model.safetensors", "--data", DATA).code == 0
    build_learner(Named(name="mlp", inputs=[3], hidden=[])).check(
        load(parse_source("csv:codes.csv,target=target,features=code_1|code_2|code_3"))
    )


def test_encode_draws_each_image_beside_what_is_made_of_it(choral: Choral) -> None:
    _, state = save(name="autoencoder", code=3)
    # Whatever comes in, white comes out.
    white = {
        name: torch.ones_like(tensor) if name == "decoder.2.bias" else 0 * tensor for name, tensor in state.items()
    }
    save_file(white, "model.safetensors", metadata={LEARNER_KEY: Named(name="autoencoder", code=3).model_dump_json()})
    np.savez("black.npz", x=np.zeros((5, 1, 8, 8), dtype=np.float32))
    options = ("--data", "npz:black.npz,unlabelled=true", "--picture", "a.png")
    assert choral("encode", "model.safetensors", *options).lines[1].startswith("a.png: 5 examples, each with")
    with Image.open("a.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    row = pixels[(pixels == 0).any(axis=1).argmax() + 5]
    first_black = int((row == 0).argmax())
    side = int((row[first_black:] != 0).argmax())
    assert (row[first_black + side + 10 : first_black + 2 * side] == 255).all()
    assert row[first_black + 2 * side + 10] in (0, 255)


@pytest.mark.parametrize(
    ("learner", "more", "message"),
    [
        pytest.param(
            {"name": "vae"}, [], "Saved model model.safetensors: the learner must be an autoencoder, got vae.", id="vae"
        ),
        pytest.param(
            {"name": "autoencoder"},
            ["--data", "sunspots"],
            "Learner autoencoder: examples must have shape (1, 8, 8) float32, got (24, 1) float32.",
            id="data",
        ),
        pytest.param(
            {"name": "autoencoder", "inputs": [64]},
            ["--picture", "a.png"],
            "Picture a.png: examples must be images of 1 or 3 channels, got shape (64,). Leave it out.",
            id="rows",
        ),
        pytest.param(
            {"name": "autoencoder"},
            ["--out", "none/a.csv"],
            "File none/a.csv: must be writable, got: No such file or directory. Choose another.",
            id="folder",
        ),
        pytest.param(
            {"name": "autoencoder"},
            ["--picture", "a.txt"],
            "Picture a.txt: name must end with one of .png, .svg, .pdf, got 'a.txt'.",
            id="suffix",
        ),
    ],
)
def test_encode_of_what_cannot_be_encoded_is_refused(
    choral: Choral, folder: Path, learner: dict[str, Any], more: list[str], message: str
) -> None:
    save(**learner)
    assert sentence(choral("encode", "model.safetensors", *more)).startswith(message)
    assert [path.name for path in folder.iterdir()] == ["model.safetensors"]
