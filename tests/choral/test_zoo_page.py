"""The page of the zoo is what the code says."""

from pathlib import Path

from choral.examples import FOLDER
from choral.zoo_page import page
from models import MODELS

PAGE = Path(__file__).parents[2] / "docs" / "zoo.md"


def test_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "docs/zoo.md is stale: run make docs."


def test_page_has_a_section_and_a_result_for_every_learner() -> None:
    text = page()
    for name in MODELS:
        assert f"\n## {name}\n" in text
        assert f"\n| [`{name}`](#{name}) | " in text
        # A network of others learns from what its base is: there is none to measure without one.
        if not name.startswith("hf_"):
            assert f"\n| `{name}` | " in text, f"{name} has no result: run python -m benchmarks.zoo {name}."


def test_specs_are_those_of_the_learners() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == sorted(MODELS)
