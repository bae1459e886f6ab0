"""Pairs of sequences, such as a sentence and its translation: one a line, with a tab between."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from client.data.fields import shown
from client.data.keys import Keys
from client.data.options import PairsOptions
from client.data.paths import require_file
from client.data.sequences import padded
from client.data.utf8 import read_utf8
from models.errors import DataError
from models.learner import Examples


@dataclass(frozen=True, slots=True)
class Line:
    """One pair, and its key where there is one.

    Attributes:
        subject: The file and the number of the line, from 1.
        parts: Source, target, and the key if the file has keys.
    """

    subject: str
    parts: tuple[str, ...]


def load_pairs(path: Path, options: PairsOptions) -> Examples:
    """Read every pair. Empty lines are passed over.

    Returns:
        Inputs int64 (pairs, longest source) and targets int64 (pairs, longest target), UTF-8 bytes or numbers of symbols, that
        end in `PADDING`.

    Raises:
        DataError: The file is not UTF-8 or has no pair, or a line is no pair or has an unknown symbol; it is named.
    """
    lines = list(_read(path, options))
    inputs = padded(_codes(lines, 0, "source", options.source_symbols))
    targets = padded(_codes(lines, 1, "target", options.target_symbols))
    return Examples(torch.from_numpy(inputs), torch.from_numpy(targets))


def pair_keys(path: Path, options: PairsOptions) -> Keys:
    """Return the third part of each line, (pairs,): the natural key. Raises `DataError` where lines have none."""
    if not options.key:
        raise DataError(
            f"Pairs file {path}: data must have a natural key for a partition by key, got none. Add ,key=true to the data "
            "source and a third part, such as a name, to each line."
        )
    return np.array([line.parts[2] for line in _read(path, options)], dtype=np.str_)


def as_bytes(text: str) -> npt.NDArray[np.int64]:
    """Return text as its bytes in UTF-8, int64 (bytes,)."""
    return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)


def _read(path: Path, options: PairsOptions) -> Iterator[Line]:
    require_file("Pairs file", path)
    text = read_utf8("Pairs file", path).decode().removeprefix("\ufeff")
    names = ("source", "target", "key")[: 2 + options.key]
    is_empty = True
    for number, content in enumerate(text.split("\n"), start=1):
        content = content.removesuffix("\r")
        if not content:
            continue
        is_empty = False
        line = Line(f"Pairs file {path}, line {number}", tuple(content.split("\t")))
        if len(line.parts) != len(names) or not all(part.strip() for part in line.parts):
            raise DataError(
                f"{line.subject}: line must be {', '.join(names)} with a tab between, got {shown(content)}. Mend the line."
            )
        yield line
    if is_empty:
        raise DataError(f"Pairs file {path}: file must have at least 1 pair, got none. Add pairs.")


def _codes(
    lines: Sequence[Line], position: int, name: str, symbols: tuple[str, ...] | None
) -> list[npt.NDArray[np.int64]]:
    """Return one part of each line as codes; `name` is what errors call it."""
    if symbols is None:
        return [as_bytes(line.parts[position]) for line in lines]
    numbers = {symbol: number for number, symbol in enumerate(symbols)}
    found = [line.parts[position].split() for line in lines]
    for line, part in zip(lines, found, strict=True):
        if unknown := set(part).difference(numbers):
            raise DataError(
                f"{line.subject}: {name} must have symbols of {name}_symbols, got {shown(min(unknown))}. Add it there, at "
                "every site alike, or mend the line."
            )
    return [np.array([numbers[symbol] for symbol in part], dtype=np.int64) for part in found]
