"""Text files as windows of UTF-8 bytes, each with the bytes that follow one place later."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from client.data.fields import reason
from client.data.keys import Keys
from client.data.options import TextOptions
from client.data.paths import require_present, visible_entries
from models.errors import DataError
from models.learner import Examples


def load_text(path: Path, options: TextOptions) -> Examples:
    """Cut UTF-8 text into windows that neither overlap nor cross files; what is left at the end of a file is dropped.

    Args:
        path: A file, or a folder whose .txt files are taken in the order of their names.
        options: The window.

    Returns:
        Inputs int64 (windows, window), bytes 0 to 255; targets alike, the same text one byte later.

    Raises:
        DataError: Nothing to read is there, a file is not UTF-8, or all files are too short for one window.
    """
    texts = [_read(file) for file in _files(path)]
    inputs = [_windows(text[:-1], options.window) for text in texts]
    targets = [_windows(text[1:], options.window) for text in texts]
    if not any(len(part) for part in inputs):
        raise DataError(
            f"Text {path}: text must be at least {options.window + 1} bytes long for one window, "
            f"got {max(map(len, texts))} in the longest file. Add text, or lower window."
        )
    return Examples(torch.from_numpy(np.concatenate(inputs)), torch.from_numpy(np.concatenate(targets)))


def text_keys(path: Path, options: TextOptions) -> Keys:
    """Return the name of the file of each window that `load_text` reads, such as a role's. Raises `DataError` where one is no text."""
    files = _files(path)
    counts = [(len(_read(file)) - 1) // options.window for file in files]
    return np.repeat(np.array([file.name for file in files], dtype=np.str_), np.maximum(counts, 0))


def _files(path: Path) -> list[Path]:
    require_present("Text", path)
    if not path.is_dir():
        return [path]
    files = [entry for entry in visible_entries(path) if entry.suffix.lower() == ".txt" and entry.is_file()]
    if not files:
        raise DataError(
            f"Text folder {path}: folder must hold .txt files, got none. Add one, or give the path of a file."
        )
    return files


def _read(file: Path) -> npt.NDArray[np.uint8]:
    try:
        content = file.read_bytes()
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"0x{error.object[error.start]:02x} at byte offset {error.start}"
        raise DataError(f"Text file {file}: text must be UTF-8, got {byte}. Convert the file to UTF-8.") from error
    except OSError as error:
        raise DataError(
            f"Text file {file}: file must be readable, got {reason(error)}. Check its permissions."
        ) from error
    return np.frombuffer(content, dtype=np.uint8)


def _windows(codes: npt.NDArray[np.uint8], window: int) -> npt.NDArray[np.int64]:
    count = len(codes) // window
    return codes[: count * window].reshape(count, window).astype(np.int64)  # (windows, window)
