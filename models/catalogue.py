"""The zoo in words and numbers: what each learner is, how large, and what it takes."""

from dataclasses import dataclass
from typing import Any

from pydantic_core import to_jsonable_python

from models.examples import example_of
from models.zoo import MODELS, Model, build_learner
from wire.errors import LearnerError
from wire.spec import Named, RunSpec, validate_spec
from wire.tensors import Layout


@dataclass(frozen=True, slots=True)
class LearnerFacts:
    """What a learner is.

    Attributes:
        summary: One line.
        task: What it learns to do.
        data: What data suits it.
        parameter_count: Coordinates of its example's model; 0 where it cannot be built.
        needs: Why it cannot be built here; empty where it can.
        needs_torch: Whether its coordinator must have torch.
    """

    summary: str
    task: str
    data: str
    parameter_count: int
    needs: str
    needs_torch: bool


def about_learner(name: str, model: Model) -> LearnerFacts:
    """Return what a learner is. Its model is laid out, without memory for its numbers."""
    count, needs = 0, ""
    named = example_of(name).spec.learner if name in MODELS else Named(name=name)
    try:
        count = Layout.of(build_learner(named, "meta").init(0)).size
    except (LearnerError, ImportError) as error:
        needs = str(error)
    return LearnerFacts(model.summary, model.task, model.data, count, needs, model.needs_torch)


def first_spec(name: str) -> RunSpec:
    """Return a spec to begin with: a learner's example, or with its default parameters where it has none."""
    if name in MODELS:
        return example_of(name).spec
    parts = {"learner": {"name": name}, "cohort": {"size": 2}, "local": {"batch_size": 16}}
    return validate_spec({"name": name, "rounds": 2, **parts})


def described_parameters(model: Model) -> dict[str, dict[str, Any]]:
    """Return type, default and meaning of each parameter of a learner."""
    schema = model.parameters.model_json_schema()
    definitions = schema.get("$defs", {})
    return {
        key: {
            "type": type_in_words(value, definitions),
            "default": to_jsonable_python(value.get("default")),
            "meaning": " ".join(str(value.get("description", "")).split()),
        }
        for key, value in schema["properties"].items()
    }


def type_in_words(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Return a type and its range, such as "integer, at least 1"."""
    if "$ref" in schema:
        return type_in_words(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        return " or ".join(type_in_words(choice, definitions) for choice in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    text = "nothing" if schema.get("type") == "null" else str(schema.get("type", "any"))
    if "items" in schema:
        text = f"list of {type_in_words(schema['items'], definitions)}"
    ranges = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    return ", ".join([text, *(f"{words} {schema[key]:g}" for key, words in ranges.items() if key in schema)])
