"""A learner's parameters in words: all of their ranges, to the last digit, and the parts that they have."""

from typing import Annotated

from pydantic import Field

from models import MODELS
from models.catalogue import default_in_words, described_parameters
from models.zoo import Model
from wire.validation import Strict


class Part(Strict):
    """A part of a parameter."""

    share: float = Field(default=0.5, gt=0, lt=1)
    """How much of it."""


class Parameters(Strict):
    """Parameters of many kinds."""

    name: str
    """What it is called."""
    codes: int = Field(default=256, ge=2, le=1 << 20)
    """How many codes."""
    width: int = Field(default=8, ge=2, multiple_of=2)
    """How wide."""
    shape: list[Annotated[int, Field(ge=1)]] = Field(default=[3], min_length=1, max_length=4)
    """How long on each axis."""
    image: list[int] = Field(default=[1, 8, 8], min_length=3, max_length=3)
    """Channels, height and width."""
    targets: list[str] = Field(default=["query"], min_length=1)
    """Which."""
    part: Part | None = None
    """A part, or none."""
    parts: list[Part] = []
    """Many parts."""


def test_described_parameters_tell_types_ranges_and_parts() -> None:
    described = described_parameters(Model(object, Parameters))
    assert {key: (row["type"], default_in_words(row)) for key, row in described.items()} == {
        "name": ("string, required", ""),
        "codes": ("integer, at least 2, at most 1048576", "256"),
        "width": ("integer, at least 2, a multiple of 2", "8"),
        "shape": ("list of 1 to 4, each integer, at least 1", "[3]"),
        "image": ("list of 3, each integer", "[1, 8, 8]"),
        "targets": ("list of 1 or more, each string", '["query"]'),
        "part": ("object or nothing", "null"),
        "part.share": ("number, above 0, below 1", "0.5"),
        "parts": ("list of object", "[]"),
        "parts.share": ("number, above 0, below 1", "0.5"),
    }
    assert described["part.share"]["meaning"] == "How much of it."


def test_described_parameters_of_the_zoo_all_have_a_meaning() -> None:
    for name, model in MODELS.items():
        assert all(row["meaning"] for row in described_parameters(model).values()), name
