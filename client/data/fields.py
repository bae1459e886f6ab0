"""Option types that several kinds of data share, and how errors show values and reasons."""

import re
from collections.abc import Iterable
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field

from wire.errors import ChoralError
from wire.validation import Strict

Chosen = TypeVar("Chosen", bound=Strict)


def _split_text(value: object) -> object:
    return tuple(value.split("|")) if isinstance(value, str) else value


def _refuse_repeated(values: tuple[object, ...]) -> tuple[object, ...]:
    seen = set[object]()
    for value in values:
        if value in seen:
            raise ValueError(f"must name each once, got {shown(value)} twice")
        seen.add(value)
    return values


OPTION_START = re.compile(r",\s*(?=[A-Za-z_]\w*=)")
"""The comma before an option. Other commas belong to what they stand in, so that paths and names may hold them."""

Joined = BeforeValidator(_split_text)
"""Reads a tuple from text whose parts are joined by `|`."""

Distinct = AfterValidator(_refuse_repeated)
"""Refuses a tuple that repeats a value."""

Names = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Joined, Distinct]
"""Distinct names in order; text joins them by `|`."""

Numbers = Annotated[tuple[Annotated[float, Field(strict=False)], ...], Joined]
"""Finite numbers in order; text joins them by `|`."""

Scales = Annotated[tuple[Annotated[float, Field(gt=0, strict=False)], ...], Joined]
"""Numbers above 0 in order; text joins them by `|`."""

Switch = Annotated[bool, Field(strict=False)]
"""True or false; text says so."""


def refuse_beside(options: Chosen, switch: str, *others: str) -> Chosen:
    """Return `options`. Raises `ValueError` where `switch` is on and one of the `others` is given too."""
    if getattr(options, switch):
        for other in others:
            if other in options.model_fields_set:
                raise ValueError(f"{other} must be left out beside {switch}=true, got both")
    return options


def read_pairs(subject: str, pairs: Iterable[str], refusal: type[ChoralError]) -> dict[str, str]:
    """Return the values of `key=value` texts by key. Raises `refusal` where a key is given twice."""
    values: dict[str, str] = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        if key in values:
            raise refusal(
                f"{subject}: {key} must be given once, got {shown(values[key])} and {shown(value)}. Leave one out."
            )
        values[key] = value
    return values


def reason(error: Exception) -> str:
    """Return what another library says about a failure, as an error shows it: on one line of at most 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return f"an error: {text[:200].rstrip('.')}"


def shown(value: object) -> str:
    """Return a value of the data as an error shows it, on one line of at most 80 characters."""
    if value is None:
        return "a missing value"
    text = repr(value) if isinstance(value, str | bytes | bool | int | float) else f"{value!s:.80}"
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:77]}..."
