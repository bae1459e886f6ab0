"""The page of the zoo is what the code says."""

import re
from pathlib import Path

from choral.zoo_page import page
from models import MODELS
from models.examples import FOLDER, example_of
from models.gradient import GradientParameters

PAGE = Path(__file__).parents[2] / "docs" / "zoo.md"


def test_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "docs/zoo.md is stale: run make docs."


def test_page_has_a_section_and_a_result_for_every_learner() -> None:
    text = page()
    for name in MODELS:
        assert f"\n## {name}\n" in text
        assert f"\n| [`{name}`](#{name}) | " in text
        assert f"\n| `{name}` | " in text, f"{name} has no result: run python -m benchmarks.zoo {name}."


def test_page_has_its_parts_in_order_and_all_of_each() -> None:
    text = page()
    parts = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)[1:]
    titles, sections = parts[::2], dict(zip(parts[::2], parts[1::2], strict=True))
    common = "Parameters that learners by gradient descent share"
    assert titles == ["All", "What they learn", "Activations", common, *MODELS]
    assert "(activations.png)" in sections["Activations"]
    shared = GradientParameters.model_fields.keys()
    assert _rows(sections[common]) == list(shared)
    for name, model in MODELS.items():
        assert model.explanation in sections[name]
        assert f"```yaml\n{example_of(name).text}```\n" in sections[name]
        own = [key for key in model.parameters.model_fields if key not in shared]
        is_gradient = issubclass(model.parameters, GradientParameters)
        assert _rows(sections[name]) == (own if is_gradient else list(model.parameters.model_fields))


def _rows(section: str) -> list[str]:
    """Return the names of the parameters in a section's table."""
    return re.findall(r"^\| `(\w+)` \| ", section, flags=re.MULTILINE)


def test_specs_are_those_of_the_learners() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == sorted(MODELS)
