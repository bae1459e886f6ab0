"""Files of text."""

from pathlib import Path

from client.data.fields import reason
from models.errors import DataError


def read_utf8(subject: str, file: Path) -> bytes:
    """Return what a file holds, which is UTF-8; `subject` says what kind it is. Raises `DataError` where it is not, or cannot be read."""
    try:
        content = file.read_bytes()
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"0x{error.object[error.start]:02x} at byte offset {error.start}"
        raise DataError(f"{subject} {file}: text must be UTF-8, got {byte}. Convert the file to UTF-8.") from error
    except OSError as error:
        raise DataError(
            f"{subject} {file}: file must be readable, got {reason(error)}. Check its permissions."
        ) from error
    return content
