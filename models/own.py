"""Learners of a user's own: a class in a Python file, or an entry point of an installed package.

A file is named as PATH:CLASS. What is loaded so is the user's own code, run on this machine because the user asked for it here: nothing
that arrives over the network can name a file (law L6).
"""

import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, get_type_hints

from wire.errors import LearnerError
from wire.validation import Strict

VARIABLE = "CHORAL_LEARNERS"
"""Environment variable with the learners of this site, PATH:CLASS, joined by commas: processes that this one starts know them too."""

GROUP = "choral.learners"
"""Group of entry points in which an installed package names learners."""

_METHODS = ("init", "check", "fit", "step_bytes", "apply", "evaluate", "contribution_layout")


def add_own(text: str) -> str:
    """Load a learner for this process and those that it starts, and return the name that it has in a spec.

    Args:
        text: PATH:CLASS, such as "./mine.py:MyLearner", which is then named "my_learner".

    Raises:
        LearnerError: There is no such file or class, or the class is no learner. Nothing was added.
    """
    path, _, name = text.rpartition(":")
    entry = f"{Path(path).resolve()}:{name}"
    if "," in entry:
        raise LearnerError(f"Learner {text}: the path must have no comma, got one. Move the file.")
    found = _load(entry)
    if entry not in (known := _entries()):
        os.environ[VARIABLE] = ",".join([*known, entry])
    return name_of(found.__name__)


def own_learners() -> Mapping[str, type[Any]]:
    """Return the learners of installed packages and of this site, by name.

    Raises:
        LearnerError: One of them cannot be loaded.
    """
    found = {point.name: _installed(point) for point in entry_points(group=GROUP)}
    return found | {name_of(learner.__name__): learner for learner in map(_load, _entries())}


def site_names() -> list[str]:
    """Return the names of this site's learners, none of which is loaded."""
    return [name_of(entry.rpartition(":")[2]) for entry in _entries()]


def path_of(name: str) -> str | None:
    """Return PATH:CLASS of one of this site's learners, by its name in a spec; None for all others."""
    return next((entry for entry in _entries() if name_of(entry.rpartition(":")[2]) == name), None)


def name_of(class_name: str) -> str:
    """Return the name of a learner in specs: its class's, in small letters with underscores."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", class_name).lower()


def parameters_of(learner: type[Any]) -> type[Strict]:
    """Return the model of a learner's parameters: what its class says of the attribute `parameters`.

    Raises:
        LearnerError: It says nothing, or names no subclass of `Strict`.
    """
    found = get_type_hints(learner).get("parameters")
    if not (isinstance(found, type) and issubclass(found, Strict)):
        raise LearnerError(
            f"Learner {learner.__name__}: attribute `parameters` must be annotated with a subclass of "
            f"wire.validation.Strict, got {getattr(found, '__name__', found)}. Write `parameters: MyParameters` in the class."
        )
    return found


def _installed(point: EntryPoint) -> type[Any]:
    what = f"{point.name}, which an installed package has at {point.value}"
    try:
        found = point.load()
    except Exception as error:
        raise LearnerError(f"Learner {what}: must be importable, got {type(error).__name__}: {error}.") from error
    return _checked(what, found)


def _entries() -> list[str]:
    return [entry for entry in os.environ.get(VARIABLE, "").split(",") if entry]


def _load(entry: str) -> type[Any]:
    path, _, name = entry.rpartition(":")
    file = Path(path)
    if not file.is_file() or not name.isidentifier():
        raise LearnerError(f"Learner {entry}: must be PATH:CLASS of a file that exists, such as ./mine.py:MyLearner.")
    # Named after its path, so that no other module is hidden, and loaded once, so that a class is the same each time.
    module_name = "choral_own_" + re.sub(r"\W", "_", str(file.resolve()))
    if (module := sys.modules.get(module_name)) is None:
        spec = importlib.util.spec_from_file_location(module_name, file)
        if spec is None or spec.loader is None:
            raise LearnerError(f"Learner {entry}: the file must be Python source, got {file.suffix or 'no suffix'}.")
        module = sys.modules[module_name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[module_name]
            raise LearnerError(f"Learner {entry}: the file must run, got {type(error).__name__}: {error}.") from error
    return _checked(entry, getattr(module, name, None))


def _checked(what: str, found: object) -> type[Any]:
    if not isinstance(found, type):
        raise LearnerError(f"Learner {what}: must be a class of that file, got {found!r:.100}.")
    if absent := [method for method in _METHODS if not hasattr(found, method)]:
        raise LearnerError(
            f"Learner {what}: must have {', '.join(_METHODS)}, got none of {', '.join(absent)}. "
            "Derive it from models.gradient.GradientLearner."
        )
    if not (found.__doc__ or "").strip():
        raise LearnerError(f"Learner {what}: must have a docstring, whose first line tells what it is, got none.")
    parameters_of(found)
    return found
