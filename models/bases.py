"""Bases: trained models that lie on each machine already, and from which a run starts.

A spec names a base; where it lies is each machine's own business. A base is a file `NAME.safetensors`, such as a model that a run has
saved, or a folder `NAME`, such as one that `transformers` reads.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field

from wire.errors import LearnerError

FOLDER_VARIABLE = "CHORAL_BASES"
"""Environment variable that names the folder of bases."""

DEFAULT_FOLDER = "bases"
"""The folder where the variable is not set, below the one where the process was started."""

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
"""What names a base: no path, and nothing hidden."""

BaseName = Annotated[str, Field(pattern=NAME_PATTERN)]


def find_base(name: str, sha256: str | None = None) -> Path:
    """Return the file or folder of a base on this machine.

    Args:
        name: Letters, digits, dot, dash and underscore, without ".safetensors".
        sha256: The `digest_base` that it must have, if that matters.

    Raises:
        LearnerError: The name breaks the rule, there is no such base, or a file and a folder of that name, or its digest is another one.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise LearnerError(f"Base: name must be letters, digits, dot, dash and underscore, got {name!r:.200}.")
    folder = Path(os.environ.get(FOLDER_VARIABLE) or DEFAULT_FOLDER)
    file, inner = folder / f"{name}.safetensors", folder / name
    found = [path for path, is_there in ((file, file.is_file()), (inner, inner.is_dir())) if is_there]
    if len(found) != 1:
        count = "both" if found else "neither"
        raise LearnerError(
            f"Base {name}: folder {folder} must hold a file {file.name} or a folder {name}, got {count}. "
            f"Put the base there, or set {FOLDER_VARIABLE} to the folder it is in."
        )
    if sha256 is not None and (own := digest_base(found[0])) != sha256:
        raise LearnerError(f"Base {name}: SHA-256 must be {sha256}, got {own}. Take the base that the run is for.")
    return found[0]


def digest_base(path: Path) -> str:
    """Return the SHA-256 of a base, hexadecimal: equal for equal names and bytes of its files, wherever they lie.

    Of a file it is what `sha256sum FILE` prints; of a folder it is that of a list with a line "DIGEST  PATH" for each file in it, as
    `sha256sum` prints them, in the order of the paths' bytes. Files and folders whose name begins with a dot do not count.

    Raises:
        LearnerError: A file cannot be read.
    """
    try:
        if path.is_file():
            return _digest(path)
        lines = sorted((relative.encode(), _digest(file)) for relative, file in _files(path, ""))
        return hashlib.sha256(b"".join(b"%s  %s\n" % (digest.encode(), name) for name, digest in lines)).hexdigest()
    except OSError as error:
        raise LearnerError(f"Base {path.name}: files must be readable, got: {error}.") from error


def _files(folder: Path, prefix: str) -> Iterator[tuple[str, Path]]:
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _files(path, f"{prefix}{path.name}/")
        else:
            yield prefix + path.name, path


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
