"""Text files as windows of UTF-8 bytes, each with the bytes that follow one place later."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from client.data.keys import Keys
from client.data.options import TextOptions
from client.data.paths import require_present, visible_entries
from client.data.utf8 import read_utf8
from models.errors import DataError
from models.learner import Examples

Codes = npt.NDArray[np.uint8]
"""The bytes of a text, (bytes,)."""


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
    texts = _read(path)
    if max(map(len, texts.values())) <= options.window:
        raise DataError(
            f"Text {path}: text must be at least {options.window + 1} bytes long for one window, "
            f"got {max(map(len, texts.values()))} in the longest file. Add text, or lower window."
        )
    return cut_text(list(texts.values()), options.window)


def text_keys(path: Path, options: TextOptions) -> Keys:
    """Return the name of the file of each window that `load_text` reads, such as a role's. Raises `DataError` where one is no text."""
    return window_keys(_read(path), options.window)


def cut_text(texts: Sequence[Codes], window: int) -> Examples:
    """Cut texts, of which one is longer than `window`, into examples as `load_text` returns them."""
    inputs = np.concatenate([_windows(text[:-1], window) for text in texts])
    targets = np.concatenate([_windows(text[1:], window) for text in texts])
    return Examples(torch.from_numpy(inputs), torch.from_numpy(targets))


def window_keys(texts: Mapping[str, Codes], window: int) -> Keys:
    """Return the name of the text of each window that `cut_text` cuts, (windows,)."""
    counts = [max(len(text) - 1, 0) // window for text in texts.values()]
    return np.repeat(np.array(list(texts), dtype=np.str_), counts)


def _read(path: Path) -> dict[str, Codes]:
    """Return the bytes of each text by the name of its file."""
    return {file.name: np.frombuffer(read_utf8("Text file", file), dtype=np.uint8) for file in _files(path)}


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


def _windows(codes: Codes, window: int) -> npt.NDArray[np.int64]:
    count = len(codes) // window
    return codes[: count * window].reshape(count, window).astype(np.int64)  # (windows, window)
