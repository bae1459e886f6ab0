"""`choral maps`: the picture of a saved model's activations, and refusals of one sentence."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image
from safetensors.torch import save_file

from choral.pictures import draw_maps, mosaic
from models import build_learner
from tests.choral.command_line import Choral, sentence
from wire.saved import LEARNER_KEY
from wire.spec import Named


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an image of 30 x 20 pixels."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path


def save(**learner: Any) -> str:
    """Save a new model of a learner, and return the file's name."""
    named = Named(**learner)
    state = dict(build_learner(named).init(1))
    save_file(state, "model.safetensors", metadata={LEARNER_KEY: named.model_dump_json()})
    return "model.safetensors"


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


@pytest.mark.parametrize(
    ("learner", "line"),
    [
        pytest.param({}, "maps.png: 96 maps of 4 layers", id="default"),
        pytest.param({"image": [3, 9, 12], "channels": [[4, 5], 6]}, "maps.png: 26 maps of 5 layers", id="colours"),
        pytest.param(
            {"channels": [1], "pooling": "average", "batch_norm": True}, "maps.png: 2 maps of 2 layers", id="one"
        ),
    ],
)
def test_maps_draws_every_layer_of_a_saved_model(
    choral: Choral, folder: Path, learner: dict[str, Any], line: str
) -> None:
    outcome = choral("maps", save(name="cnn", **learner), "a.png")
    assert (outcome.code, outcome.err, outcome.lines) == (0, "", [line])
    width, height = size(folder / "maps.png")
    assert width == 1248
    assert 300 < height < 4000


def test_maps_goes_where_it_is_told(choral: Choral, folder: Path) -> None:
    assert choral("maps", save(name="cnn"), "a.png", "--out", "b.svg").code == 0
    assert (folder / "b.svg").read_bytes().startswith(b"<?xml")


@pytest.mark.parametrize(
    ("learner", "arguments", "message"),
    [
        pytest.param(
            {"name": "mlp"},
            ("model.safetensors", "a.png"),
            "Saved model model.safetensors: the learner must have activation maps, as cnn has, got mlp.",
            id="learner",
        ),
        pytest.param({"name": "cnn"}, ("a.png", "a.png"), "Saved model a.png: must be a readable", id="model"),
        pytest.param(
            {"name": "cnn"}, ("model.safetensors", "none.png"), "Image none.png: file must be a readable", id="image"
        ),
        pytest.param(
            {"name": "cnn", "image": [2, 8, 8]},
            ("model.safetensors", "a.png"),
            "Image a.png: the learner's images must have 1 or 3 channels to be read from a file, got 2.",
            id="channels",
        ),
        pytest.param(
            {"name": "cnn"},
            ("model.safetensors", "a.png", "--out", "b.txt"),
            "Picture b.txt: name must end with one of .png, .svg, .pdf, got 'b.txt'.",
            id="suffix",
        ),
        pytest.param(
            {"name": "cnn"},
            ("model.safetensors", "a.png", "--out", "none/b.png"),
            "Picture none/b.png: file must be writable, got No such file or directory.",
            id="folder",
        ),
    ],
)
def test_maps_that_cannot_be_drawn_are_refused(
    choral: Choral, folder: Path, learner: dict[str, Any], arguments: tuple[str, ...], message: str
) -> None:
    save(**learner)
    assert sentence(choral("maps", *arguments)).startswith(message)
    assert sorted(path.name for path in folder.iterdir()) == ["a.png", "model.safetensors"]


def test_mosaic_lays_maps_in_rows_with_gaps() -> None:
    maps = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    nan = np.nan
    expected = [[0, 1, nan, 4, 5], [2, 3, nan, 6, 7], [nan] * 5, [8, 9, nan, nan, nan], [10, 11, nan, nan, nan]]
    np.testing.assert_array_equal(mosaic(maps, 2), np.array(expected, dtype=np.float32))


def test_draw_maps_gives_each_map_its_colours(folder: Path) -> None:
    # One map of nothing, one of the largest value: as many pixels have the first colour as the last one.
    layer = torch.stack([torch.zeros(4, 4), torch.full((4, 4), 3.0)])
    draw_maps(folder / "b.png", torch.full((1, 4, 4), 0.5), {"a": layer}, "b")
    with Image.open(folder / "b.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    least, most = (
        int((pixels == np.array(colormaps["cividis"](end, bytes=True)[:3])).all(axis=2).sum()) for end in (0.0, 1.0)
    )
    assert least > 10_000
    assert most == pytest.approx(least, rel=0.05)
