"""`choral attention`: what a saved model makes of a text, its picture, and refusals of one sentence."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from choral.attention_picture import draw_attention
from models import build_learner
from tests.choral.command_line import Choral, sentence
from wire.saved import LEARNER_KEY
from wire.spec import Named


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save(is_mute: bool = False, **learner: Any) -> str:
    """Save a new model of a learner, which says nothing or, of three phones, goes on for five codes; return the file's name."""
    named = Named(**({"longest": 5} | learner))
    state = {name: tensor.clone() for name, tensor in build_learner(named).init(1).items()}
    if "output.bias" in state:
        state["output.bias"][-1] = 99.0 if is_mute else -99.0
    save_file(state, "model.safetensors", metadata={LEARNER_KEY: named.model_dump_json()})
    return "model.safetensors"


def test_attention_prints_the_codes_and_draws_the_weights(choral: Choral, folder: Path) -> None:
    model = save(name="seq2seq", target_vocabulary=3)
    plain = choral("attention", model, "a b")
    assert (plain.code, plain.err) == (0, "")
    codes, picture = plain.lines
    assert [int(code) for code in codes.split()] == [code for code in map(int, codes.split()) if 0 <= code < 3]
    assert len(codes.split()) == 5
    assert picture == "attention.png: the picture"
    assert (folder / "attention.png").read_bytes().startswith(b"\x89PNG")
    names = dict(enumerate(("AA", "AE", "AH")))
    expected = " ".join(names[int(code)] for code in codes.split())
    for symbols in ("phones", "AA AE AH"):
        assert choral("attention", model, "a b", "--symbols", symbols, "--out", "b.svg").lines[0] == expected
    written = (folder / "b.svg").read_text()
    assert "0x20" in written  # the space, in a comment beside its outlines


def test_draw_attention_shows_each_weight_where_it_belongs(folder: Path) -> None:
    weights = np.zeros((2, 14), dtype=np.float32)  # too many for numbers
    weights[0, 3] = weights[1, 10] = 1.0
    draw_attention(folder / "a.png", weights, list("abcdefghijklmn"), ["$x", "y$"], "$a$ b$")
    with Image.open(folder / "a.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    bright = (pixels[..., 0] > 200) & (pixels[..., 2] < 120)  # the upper end of cividis is yellow
    bright = bright[:, : int(0.8 * pixels.shape[1])]  # without the scale at the right
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    middle = (rows[0] + rows[-1]) // 2
    upper, lower = (np.flatnonzero(half.any(axis=0)).mean() for half in (bright[:middle], bright[middle:]))
    assert columns[0] < upper < lower < columns[-1]


@pytest.mark.parametrize(
    ("learner", "more", "message"),
    [
        pytest.param(
            {"name": "seq2seq"}, ["--out", "a.gif"], "Picture a.gif: name must end with one of .png", id="gif"
        ),
        pytest.param(
            {"name": "seq2seq"}, ["--out", "no/a.png"], "Picture no/a.png: file must be writable", id="folder"
        ),
        pytest.param({"name": "mlp", "longest": None}, [], "the learner must have attention, as seq2seq and", id="mlp"),
        pytest.param({"name": "seq2seq", "attention": "none"}, [], "model must have attention to show", id="none"),
        pytest.param(
            {"name": "transformer", "task": "classify", "longest": 32}, [], "task must be translate", id="classifier"
        ),
        pytest.param({"name": "seq2seq", "source_vocabulary": 60}, [], "sources must be 0 to 59, got 97", id="text"),
        pytest.param({"name": "seq2seq", "is_mute": True}, [], "must make something of 'abc', got nothing", id="mute"),
        pytest.param({"name": "seq2seq"}, ["--symbols", "A"], "a name for each code, got 1 and code", id="symbols"),
    ],
)
def test_attention_that_cannot_be_drawn_is_refused(
    choral: Choral, learner: dict[str, Any], more: list[str], message: str
) -> None:
    given = {key: value for key, value in learner.items() if value is not None}
    if learner["name"] == "mlp":
        save_file(
            dict(build_learner(Named(name="mlp")).init(1)),
            "model.safetensors",
            metadata={LEARNER_KEY: Named(name="mlp").model_dump_json()},
        )
    else:
        save(**given)
    assert message in sentence(choral("attention", "model.safetensors", "abc", *more))


def test_attention_of_an_empty_text_is_refused(choral: Choral) -> None:
    assert "sources must have at least 1 step each" in sentence(choral("attention", save(name="seq2seq"), ""))
