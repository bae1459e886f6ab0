"""What the REST API tells of the learners, and what a coordinator without torch knows of them: a file that is made where torch is.

`make learners` writes it; a test fails when it is stale.
"""

import json
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter

from wire.tensors import HAS_TORCH

PATH = Path(__file__).with_name("learners.json")
NEEDS = "torch on the coordinator: pip install 'choral[torch]'"


class ParameterView(BaseModel):
    """A parameter of a learner, in words."""

    type: str
    """Type and range, such as "integer, at least 1"."""
    default: Any
    meaning: str


class LearnerView(BaseModel):
    """A learner."""

    name: str
    summary: str
    task: str
    data: str
    """What data suits it."""
    parameter_count: int
    """Coordinates of its example's model; 0 where it cannot be built."""
    needs: str
    """Why it cannot be built here; empty where it can."""
    needs_torch: bool
    """Whether the coordinator must have torch for it."""
    parameters: dict[str, ParameterView]


class LearnerDetail(LearnerView):
    """A learner with all that is known of it."""

    explanation: str
    """What its file says: equations and source."""
    parameters_schema: dict[str, Any]
    """JSON Schema of its parameters."""
    example: dict[str, Any]
    """A run spec to begin with."""
    command: str
    """What tries its example; empty for a learner that does not come with Choral."""


_DETAILS = TypeAdapter(dict[str, LearnerDetail])


def learner_names() -> list[str]:
    """Return the learners by name: with torch all that are installed, without it those of the zoo."""
    if not HAS_TORCH:
        return list(kept_learners())
    from models import learners

    return list(learners())


def learner_detail(name: str) -> LearnerDetail:
    """Return what is known of one of `learner_names`. Its model is laid out, which takes a moment."""
    return _made(name) if HAS_TORCH else kept_learners()[name]


@cache
def kept_learners() -> dict[str, LearnerDetail]:
    """Return the zoo's learners from the file, by name."""
    return {
        name: detail.model_copy(update={"needs": NEEDS}) if detail.needs_torch else detail
        for name, detail in _DETAILS.validate_json(PATH.read_bytes()).items()
    }


def written() -> str:
    """Return what the file must hold: the same on every machine, whatever bases it has."""
    from models import MODELS

    details = {name: _made(name) for name in MODELS}
    for detail in details.values():
        if "base" in detail.example["learner"]:
            detail.needs, detail.parameter_count = "", 0
    return json.dumps(_DETAILS.dump_python(details, mode="json"), indent=1, ensure_ascii=False) + "\n"


def _made(name: str) -> LearnerDetail:
    from models import MODELS, learners
    from models.catalogue import about_learner, described_parameters, first_spec
    from models.examples import example_of

    model = learners()[name]
    return LearnerDetail(
        name=name,
        **asdict(about_learner(name, model)),
        parameters=described_parameters(model),
        explanation=model.explanation,
        parameters_schema=model.parameters.model_json_schema(),
        example=first_spec(name).model_dump(mode="json", exclude_unset=True),
        command=example_of(name).command if name in MODELS else "",
    )


if __name__ == "__main__":
    PATH.write_text(written(), encoding="utf-8")
