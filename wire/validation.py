"""What every checked document shares: models that take nothing on trust, and findings as sentences."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from wire.errors import Finding


class Strict(BaseModel):
    """A frozen part of a document: unknown keys are refused, and so are values that would have to be converted."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def explain(error: ValidationError, source: str) -> str:
    """Turn pydantic's findings into one sentence each: source, key, rule, value."""
    return "\n".join(f"{source}: {finding.message}" for finding in findings(error))


def findings(error: ValidationError, parent: str = "") -> list[Finding]:
    """Return pydantic's findings in a document that stands at the key `parent` of a larger one."""
    return [
        Finding(".".join(str(part) for part in (parent, *problem["loc"]) if part != ""), sentence(dict(problem)))
        for problem in error.errors(include_url=False)
    ]


def shown(value: object) -> str:
    """Return a value as a sentence shows it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def sentence(problem: Mapping[str, Any]) -> str:
    """Return one of pydantic's findings as a sentence: key, rule, value."""
    key = ".".join(str(part) for part in problem["loc"])
    match problem["type"]:
        case "extra_forbidden":
            return f"{key} is not a key that exists here."
        case "missing":
            return f"{key} is required."
        case "json_invalid":
            return f"must be JSON of whole Unicode characters, got something else: {problem['ctx']['error']}."
        case "union_tag_not_found":
            return f"{key}.{_discriminator(problem)} is required."
        case "union_tag_invalid":
            context = problem["ctx"]
            return f"{key}.{_discriminator(problem)} must be one of {context['expected_tags']}, got {shown(context['tag'])}."
    rule = re.sub(r"^(Value error, |[A-Z]\w+ (?=should))", "", problem["msg"]).replace("should", "must", 1)
    rule = rule.partition(", unable to parse")[0]
    if problem["type"] == "value_error":
        return f"{key}: {rule}." if key else f"{rule}."
    return f"{key} {rule}, got {shown(problem['input'])}.".lstrip()


def _discriminator(problem: Mapping[str, Any]) -> str:
    return str(problem["ctx"]["discriminator"]).strip("'")
