"""Whether a client has a session, for those who look after its process: a lock on a file in its folder, held as long as a session is open.

The lock ends with the process, in whatever way that ends, so the mark cannot outlive it.
"""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

_NAME = "session.lock"


@contextlib.contextmanager
def marked(folder: Path) -> Iterator[None]:
    """Mark the client as present while the context is open; on a file system without locks it is never marked."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            file = stack.enter_context((folder / _NAME).open("w"))
            fcntl.flock(file, fcntl.LOCK_SH)
        yield


def is_present(folder: Path) -> bool:
    """Return whether the client of this folder has a session. Raises `OSError` when the mark cannot be read."""
    try:
        file = (folder / _NAME).open()
    except FileNotFoundError:
        return False
    with file:
        try:
            # Held for a moment, for which `marked` waits.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
