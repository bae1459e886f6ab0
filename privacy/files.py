"""Files that are there whole or not at all, with the mode that they are meant to have."""

import contextlib
import os
import tempfile
from pathlib import Path


def write_file(path: Path, content: bytes, mode: int) -> None:
    """Write a file in one step: a reader, a crash or a full disk meets what was there before, or all of the new.

    Raises:
        OSError: It cannot be written. What was there is unchanged.
    """
    # The name is new each time: in a container every process has the same id, and one that was killed here leaves its file.
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _make_lasting(path.parent)


def _make_lasting(folder: Path) -> None:
    """Wait until a new name in the folder is on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
