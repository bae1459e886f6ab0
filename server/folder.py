"""A coordinator's folder: held by one process at a time, with small private files."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from server.errors import ConfigurationError, LeaseTakenError

STORE_FILE = "choral.sqlite"
"""The embedded store in a coordinator's folder."""


@contextlib.contextmanager
def held_folder(folder: Path) -> Iterator[None]:
    """Make the folder if need be, and keep other coordinators out of it while the context is open.

    The store's lease cannot do that: whoever starts on a folder has the name of the coordinator before it, and goes on with its lease. The
    lock ends with the process, in whatever way that ends.

    Raises:
        ConfigurationError: The folder cannot be written.
        LeaseTakenError: Another process has it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("a+")
    except OSError as error:
        raise ConfigurationError(f"Folder {folder}: must be writable, got: {error.strerror}.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise LeaseTakenError(
                f"Folder {folder}: must be used by one process at a time, got another one beside process {file.read(20)}. "
                "Stop that one, or take another folder."
            ) from error
        except OSError as error:
            raise ConfigurationError(
                f"Folder {folder}: must be on a file system with locks, got: {error.strerror}."
            ) from error
        with contextlib.suppress(OSError):  # its number is for people
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        yield


def kept(path: Path, new: str) -> str:
    """Return the text of a private file, which is made with `new` if it does not exist. A crash leaves no half of it.

    Raises:
        ConfigurationError: The file cannot be read or written, or is empty.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        if not path.exists():
            temporary.unlink(missing_ok=True)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(new)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        text = path.read_text().strip()
    except OSError as error:
        raise ConfigurationError(f"File {path}: must be readable and writable, got: {error.strerror}.") from error
    if not text:
        raise ConfigurationError(f"File {path}: must hold a line of text, got none. Remove it, and a new one is made.")
    return text
