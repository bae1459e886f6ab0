"""Files that commands write: text, and rows as CSV."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from choral.errors import OutputError


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8. Raises `OutputError`."""
    try:
        path.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise OutputError(f"File {path}: must be writable, got: {error.strerror}. Choose another.") from error


def write_rows(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write rows, the first of which may be their header, as CSV. Raises `OutputError`."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    write_text(path, text.getvalue())
