"""Where local data comes from, as one text: KIND[:PATH][,key=value...].

Such as `digits,blocks=0|3`, `images:./scans,size=28`, `csv:./patients.csv,target=outcome,classes=benign|malignant`,
`parquet:./patients.parquet,target=outcome`, `npz:./site.npz`, `text:./plays,window=80`, `pairs:./english-german.txt` and
`series:./load.csv,columns=power|temperature,horizon=24`. Part of Choral are `digits`, `shakespeare`, `pronunciations` and `sunspots`.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from client.data.digits import DIGITS_FILE, digit_keys, load_digits
from client.data.fields import OPTION_START, read_pairs, shown
from client.data.keys import Keys
from client.data.npz import load_npz, npz_keys
from client.data.options import (
    OPTIONS,
    CsvOptions,
    DigitsOptions,
    ImagesOptions,
    NpzOptions,
    Options,
    PairsOptions,
    ParquetOptions,
    PronunciationsOptions,
    SeriesOptions,
    ShakespeareOptions,
    SunspotsOptions,
    TextOptions,
)
from client.data.pairs import load_pairs, pair_keys
from client.data.pronunciations import PRONUNCIATIONS_FILE, load_pronunciations, pronunciation_keys
from client.data.shakespeare import SHAKESPEARE_FILE, load_shakespeare, shakespeare_keys
from client.data.split import LocalData, split
from client.data.sunspots import SUNSPOTS_FILE, load_sunspots, sunspot_keys
from client.data.text import load_text, text_keys
from models.errors import DataError
from models.learner import Examples
from wire.validation import explain

EMBEDDED: Mapping[str, Path] = {
    "digits": DIGITS_FILE,
    "shakespeare": SHAKESPEARE_FILE,
    "pronunciations": PRONUNCIATIONS_FILE,
    "sunspots": SUNSPOTS_FILE,
}
"""The file of each kind that is part of Choral and takes no path."""

_HEAD = re.compile(r"(?P<kind>[^:,]*)(?::(?P<path>.*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class DataSource:
    """Where local data comes from.

    Attributes:
        kind: A key of `OPTIONS`.
        path: The file or folder to read.
        options: How to read it.
    """

    kind: str
    path: Path
    options: Options

    @property
    def name(self) -> str:
        """What people call the data: the name of its file, or its kind where it is part of Choral."""
        return self.kind if self.kind in EMBEDDED else self.path.name


def parse_source(text: str) -> DataSource:
    """Read KIND[:PATH][,key=value...]. Touches no file.

    Raises:
        DataError: The kind or a key is unknown, a value breaks a rule, or the path is missing or not wanted.
    """
    subject = f"Data source {text!r}"
    head, *pairs = OPTION_START.split(text)
    parts = _HEAD.fullmatch(head)
    if parts is None:
        raise DataError(
            f"{subject}: text must read KIND[:PATH][,key=value...], got {shown(head)}. Give each option a value."
        )
    kind, path = parts["kind"], parts["path"]
    if kind not in OPTIONS:
        raise DataError(
            f"{subject}: kind must be one of {', '.join(OPTIONS)}, got {shown(kind)}. Write KIND[:PATH][,key=value...]."
        )
    return DataSource(kind, _path(subject, kind, path), _options(subject, kind, pairs))


def load(source: DataSource) -> Examples:
    """Read and check all of the data.

    Raises:
        DataError: Something cannot be used; the message names the file, and the row where there is one.
    """
    # Pillow and pyarrow are imported only for the kinds that need them: a small client may do without.
    with _packages_of(source.kind):
        match source.options:
            case DigitsOptions():
                return load_digits(source.options)
            case ShakespeareOptions():
                return load_shakespeare(source.options)
            case PronunciationsOptions():
                return load_pronunciations(source.options)
            case SunspotsOptions():
                return load_sunspots(source.options)
            case ImagesOptions():
                from client.data.images import load_images

                return load_images(source.path, source.options)
            case CsvOptions() | ParquetOptions():
                from client.data.table import load_table

                return load_table(source.path, source.options)
            case SeriesOptions():
                from client.data.series import load_series

                return load_series(source.path, source.options)
            case NpzOptions():
                return load_npz(source.path, source.options)
            case TextOptions():
                return load_text(source.path, source.options)
            case PairsOptions():
                return load_pairs(source.path, source.options)


@contextlib.contextmanager
def _packages_of(kind: str) -> Iterator[None]:
    """Turn the lack of a package that reads data of this kind into a `DataError`."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise DataError(
            f"Data of kind {kind}: package {error.name} must be installed, got none. Run pip install 'choral[client]'."
        ) from error


def load_keys(source: DataSource) -> Keys:
    """Read the natural key of each example of `load`, in its order.

    It is a form block of digits, a role, a first letter, a span of years; else what the source names, or the file of a text.

    Raises:
        DataError: The data has no natural key, the source names none, or it cannot be used.
    """
    with _packages_of(source.kind):
        match source.options:
            case DigitsOptions():
                return digit_keys(source.options)
            case ShakespeareOptions():
                return shakespeare_keys(source.options)
            case PronunciationsOptions():
                return pronunciation_keys(source.options)
            case SunspotsOptions():
                return sunspot_keys(source.options)
            case ImagesOptions():
                raise DataError(
                    f"Image folder {source.path}: data must have a natural key for a partition by key, got images and no "
                    "more. Save the images as NPZ with an array of keys, or choose another partition."
                )
            case CsvOptions() | ParquetOptions():
                from client.data.table import table_keys

                return table_keys(source.path, source.options)
            case SeriesOptions():
                from client.data.series import series_keys

                return series_keys(source.path, source.options)
            case NpzOptions():
                return npz_keys(source.path, source.options)
            case TextOptions():
                return text_keys(source.path, source.options)
            case PairsOptions():
                return pair_keys(source.path, source.options)


def load_local(text: str, held_out_fraction: float, seed: int) -> LocalData:
    """Parse `text`, read the data and split it. Arguments as `split`; raises as `parse_source`, `load` and `split`."""
    source = parse_source(text)
    return split(load(source), held_out_fraction, seed, source.kind)


def _path(subject: str, kind: str, path: str | None) -> Path:
    if kind in EMBEDDED:
        if path is not None:
            raise DataError(
                f"{subject}: path must be left out for {kind}, got {shown(path)}. The data is part of Choral."
            )
        return EMBEDDED[kind]
    if not path:
        raise DataError(f"{subject}: path must be given for {kind}, got none. Write {kind}:PATH.")
    return Path(path)


def _options(subject: str, kind: str, pairs: list[str]) -> Options:
    values = read_pairs(subject, pairs, DataError)
    try:
        return OPTIONS[kind].model_validate(values)
    except ValidationError as error:
        keys = ", ".join(OPTIONS[kind].model_fields)
        raise DataError(f"{explain(error, subject)} The keys of {kind} are {keys}.") from error
