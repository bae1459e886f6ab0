"""Numbers for classes that the data knows by name.

A class must have the same number at every site, and a site cannot see the names that others have. So names are numbered
only by a list that the operator gives; numbers are taken as they are.
"""

import re
from collections.abc import Iterable

from client.data.fields import OPTION_START
from models.errors import DataError

CLASS_LIMIT = 2**31
"""Class numbers are below this."""

_MOST_NAMES = 1000
_NUMBER = re.compile(r"[0-9]{1,10}")


def class_number(name: str) -> int | None:
    """Return the class number that `name` spells in decimal digits, or None where it is text."""
    return int(name) if _NUMBER.fullmatch(name) and int(name) < CLASS_LIMIT else None


def classes_wanted(subject: str, names: Iterable[str]) -> DataError:
    """Return the error that asks for the `classes` option and gives its exact text.

    Args:
        subject: What the names were found in, with its path.
        names: The names found, at least one.
    """
    found = sorted(set(names))
    if len(found) > _MOST_NAMES:
        return DataError(
            f"{subject}: classes must be at most {_MOST_NAMES} names, got {len(found)} such as {found[0]!r}. "
            "Check that this is what to predict."
        )
    for name in found:
        if "|" in name or OPTION_START.search(name):
            return DataError(f"{subject}: a class must be named without '|' and ',key=', got {name!r}. Rename it.")
    return DataError(
        f"{subject}: classes must be listed where they are text, got none. Add ,classes={'|'.join(found)} to the data "
        "source, with the classes of the other sites and in one order, so that every site numbers the classes alike."
    )
