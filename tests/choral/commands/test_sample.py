"""`choral sample`: what generative models make, as pictures, rows or text."""

import csv
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import save_file

from client.data import load, parse_source
from models import MODELS, build_learner
from models.examples import example_of
from models.learner import Sampler
from tests.choral.command_line import Choral, sentence
from wire.saved import LEARNER_KEY
from wire.spec import Named

SAMPLERS = [name for name, model in MODELS.items() if hasattr(model.learner, "sample") and not name.startswith("hf_")]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save(named: Named) -> str:
    """Save a new model of a learner, and return the file's name."""
    state = {name: tensor.contiguous() for name, tensor in build_learner(named).init(1).items()}
    save_file(state, "model.safetensors", metadata={LEARNER_KEY: named.model_dump_json()})
    return "model.safetensors"


def learner_of(name: str) -> Named:
    """Return the learner of an example, or one that has samples where the example's has none."""
    return Named(name=name) if name == "gru" else example_of(name).spec.learner


@pytest.mark.parametrize("name", SAMPLERS)
def test_sample_of_each_generative_learner_is_what_its_kind_makes(choral: Choral, folder: Path, name: str) -> None:
    named = learner_of(name)
    learner: Any = build_learner(named)
    assert isinstance(learner, Sampler)
    model = save(named)
    options = ("sample", model, "--count", "3", "--seed", "2", *(("--length", "12") if learner.samples_text else ()))
    outcome = choral(*options)
    assert outcome.code == 0, outcome.err
    if learner.samples_text:
        assert [line for line in outcome.lines if line.startswith("---")] == ["--- 1 ---", "--- 2 ---", "--- 3 ---"]
    else:
        (path,) = folder.glob("samples.*")
        assert outcome.lines == [f"{path.name}: 3 samples of {name}"]
        assert path.stat().st_size > 0
    again = choral(*options, "--out", "again.csv")
    assert again.code == 0, again.err


def test_sample_of_images_is_a_grid_and_the_same_for_the_same_seed(choral: Choral, folder: Path) -> None:
    model = save(Named(name="vae", inputs=[1, 8, 8]))
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert choral("sample", model, "--count", "9", "--seed", seed, "--out", f"{name}.csv").code == 0
    texts = {name: (folder / f"{name}.csv").read_text() for name in "abc"}
    assert texts["a"] == texts["b"] != texts["c"]
    rows = list(csv.reader(texts["a"].splitlines()))
    assert [len(row) for row in rows] == [64] * 9
    assert choral("sample", model, "--count", "9", "--out", "grid.png").code == 0
    with Image.open(folder / "grid.png") as picture:
        assert picture.size[0] == 780
        assert 700 < picture.size[1] < 900


def test_sample_of_a_bayesian_network_is_a_table_that_the_network_can_be_trained_on(
    choral: Choral, folder: Path
) -> None:
    named = example_of("bayesian_network").spec.learner
    assert choral("sample", save(named), "--count", "5").code == 0
    header, *rows = csv.reader((folder / "samples.csv").read_text().splitlines())
    assert (header, len(rows)) == (["sex", "department", "admitted"], 5)
    build_learner(named).check(load(parse_source("csv:samples.csv,codes=true,unlabelled=true")))


def test_sample_of_points_is_a_scatter(choral: Choral, folder: Path) -> None:
    outcome = choral("sample", save(Named(name="gan", kind="points", inputs=[2])), "--count", "50")
    assert (outcome.code, outcome.lines) == (0, ["samples.png: 50 samples of gan"])
    with Image.open(folder / "samples.png") as picture:
        assert picture.size == (650, 650)


def test_sample_of_text_goes_on_from_the_prompt(choral: Choral) -> None:
    outcome = choral("sample", save(Named(name="lstm")), "--count", "2", "--prompt", "To be, ", "--length", "20")
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("\nTo be, ") == 2
    written = choral(
        "sample", "model.safetensors", "--count", "2", "--prompt", "To be, ", "--length", "20", "--out", "a.txt"
    )
    assert written.lines == ["a.txt: 2 texts"]
    assert Path("a.txt").read_text() == outcome.out


def test_sample_of_text_is_as_long_and_as_bold_as_is_asked_for(choral: Choral) -> None:
    # Codes below 128 are a character each.
    model = save(Named(name="lstm", vocabulary=128))
    written = {}
    for length, temperature in ((20, 1.0), (20, 0.01), (30, 1.0)):
        options = ("--count", "1", "--length", str(length), "--temperature", str(temperature), "--out", "a.txt")
        assert choral("sample", model, *options).code == 0
        written[length, temperature] = Path("a.txt").read_bytes().removeprefix(b"--- 1 ---\n").removesuffix(b"\n")
    assert [len(text) for text in written.values()] == [20, 20, 30]
    assert written[20, 1.0] == written[30, 1.0][:20] != written[20, 0.01]


def test_sample_of_text_follows_from_the_seed(choral: Choral) -> None:
    model = save(Named(name="lstm"))
    first, again, other = (choral("sample", model, "--length", "20", "--seed", seed).out for seed in ("1", "1", "2"))
    assert first == again != other


@pytest.mark.parametrize(
    ("option", "value", "found"),
    [("--prompt", "To be", "'To be'"), ("--length", "200", "200"), ("--temperature", "1", "1.0")],
)
def test_sample_with_an_option_of_text_of_something_else_is_refused(
    choral: Choral, folder: Path, option: str, value: str, found: str
) -> None:
    outcome = choral("sample", save(Named(name="vae")), option, value)
    assert sentence(outcome) == f"Option {option}: must be left out for learner vae, which makes no text, got {found}."
    assert not list(folder.glob("samples.*"))


def test_sample_of_a_classifier_is_refused(choral: Choral) -> None:
    outcome = choral("sample", save(Named(name="mlp")))
    assert sentence(outcome) == "Saved model model.safetensors: the learner must be a generative one, got mlp."


def test_sample_of_rows_as_a_picture_is_refused(choral: Choral) -> None:
    outcome = choral("sample", save(Named(name="vae", inputs=[7])), "--out", "rows.png")
    assert sentence(outcome).startswith(
        "Samples: must be images or points for a picture (.png, .svg, .pdf), got shape (7,)."
    )


@pytest.mark.parametrize("learner", [{"name": "vae"}, {"name": "lstm", "hidden": 4}], ids=["rows", "text"])
def test_sample_to_a_folder_that_is_not_there_is_refused(choral: Choral, learner: dict[str, Any]) -> None:
    outcome = choral("sample", save(Named(**learner)), "--count", "1", "--out", "none/a.csv")
    assert sentence(outcome) == "File none/a.csv: must be writable, got: No such file or directory. Choose another."


def test_sample_to_another_kind_of_file_is_refused_before_anything_is_drawn(choral: Choral, folder: Path) -> None:
    outcome = choral("sample", save(Named(name="vae")), "--out", "samples.txt")
    assert "name must end with one of .png, .svg, .pdf, got 'samples.txt'" in sentence(outcome)
    assert not (folder / "samples.txt").exists()
