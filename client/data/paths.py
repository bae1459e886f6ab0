"""Checks of the paths that data is read from."""

from pathlib import Path

from client.data.fields import reason
from models.errors import DataError


def require_present(subject: str, path: Path) -> None:
    """Raise `DataError` unless there is something at `path`; `subject` says what should be, such as "Text"."""
    try:
        is_present = path.exists()
    except OSError as error:  # such as a name that is too long, or a folder that may not be entered
        raise DataError(f"{subject} {path}: path must be readable, got {reason(error)}. Check it.") from error
    if not is_present:
        raise DataError(f"{subject} {path}: path must exist, got nothing there, seen from {Path.cwd()}. Check it.")


def require_file(subject: str, path: Path) -> None:
    """Raise `DataError` unless `path` is a file; `subject` says what kind, such as "CSV file"."""
    require_present(subject, path)
    if not path.is_file():
        raise DataError(f"{subject} {path}: path must be a file, got a folder. Give the path of one file.")


def require_folder(subject: str, path: Path) -> None:
    """Raise `DataError` unless `path` is a folder; `subject` says what kind, such as "Image folder"."""
    require_present(subject, path)
    if not path.is_dir():
        raise DataError(f"{subject} {path}: path must be a folder, got a file. Give the path of the folder around it.")


def visible_entries(folder: Path) -> list[Path]:
    """Return what lies in `folder`, sorted by name, without hidden files. Raises `DataError` if it cannot be listed."""
    try:
        return sorted(
            (entry for entry in folder.iterdir() if not entry.name.startswith(".")), key=lambda entry: entry.name
        )
    except OSError as error:
        raise DataError(
            f"Folder {folder}: path must be readable, got {reason(error)}. Check its permissions."
        ) from error
