"""The zoo in words and numbers: what each learner is, how large, and what it takes."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_jsonable_python

from models.examples import example_of
from models.zoo import MODELS, Model, build_learner
from wire.errors import LearnerError
from wire.spec import Named, RunSpec, validate_spec
from wire.tensors import Layout

REQUIRED = ", required"
"""Ends the type of a parameter that has no default."""

_RANGES = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "multipleOf": "a multiple of {}",
}
"""What a JSON Schema says of a range, in words."""


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
    """Return type, default and meaning of each parameter of a learner; of one that has parts also of these, by names such as lora.rank."""
    schema = model.parameters.model_json_schema()
    return dict(_described(schema, schema.get("$defs", {}), ""))


def default_in_words(row: Mapping[str, Any]) -> str:
    """Return the default of a described parameter as a spec would say it; nothing where one must be given."""
    return "" if row["type"].endswith(REQUIRED) else json.dumps(row["default"])


def _described(
    schema: Mapping[str, Any], definitions: Mapping[str, Any], prefix: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    for key, value in schema["properties"].items():
        name = prefix + key
        yield (
            name,
            {
                "type": type_in_words(value, definitions) + REQUIRED * (key in schema.get("required", ())),
                "default": to_jsonable_python(value.get("default")),
                "meaning": " ".join(str(value.get("description", "")).split()),
            },
        )
        for part in _parts(value, definitions):
            yield from _described(part, definitions, f"{name}.")


def _parts(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the objects with keys of their own that a value may be, or a list have."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    if "properties" in schema:
        yield schema
    for inner in [*schema.get("anyOf", ()), *([schema["items"]] if "items" in schema else [])]:
        yield from _parts(inner, definitions)


def type_in_words(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
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
        text = f"list of {_length(schema)}{type_in_words(schema['items'], definitions)}"
    return ", ".join([text, *(words.format(_plain(schema[key])) for key, words in _RANGES.items() if key in schema)])


def _length(schema: Mapping[str, Any]) -> str:
    fewest, most = schema.get("minItems", 0), schema.get("maxItems")
    if most is None:
        return f"{fewest} or more, each " if fewest else ""
    return f"{most}, each " if fewest == most else f"{fewest} to {most}, each "


def _plain(bound: object) -> str:
    # A bound of a number need not be an integer, and large integers are told to the last digit.
    return f"{bound:g}" if isinstance(bound, float) else str(bound)
