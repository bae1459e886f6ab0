"""Options of each kind of data, as `parse_source` reads them from text."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self, get_args

from pydantic import BeforeValidator, Field, model_validator

from client.data.fields import Distinct, Joined, Names, Numbers, Scales, Switch, refuse_beside
from wire.validation import Strict

BLOCK_COUNT = 14

Role = Literal[
    "hamlet/HAMLET",
    "henry-v/KING HENRY V",
    "othello/IAGO",
    "measure-for-measure/DUKE VINCENTIO",
    "othello/OTHELLO",
    "timon-of-athens/TIMON",
    "edward-iii/KING EDWARD",
    "henry-iv-part-2/FALSTAFF",
    "richard-ii/KING RICHARD II",
    "antony-and-cleopatra/MARK ANTONY",
    "titus-andronicus/TITUS ANDRONICUS",
    "king-lear/KING LEAR",
]
"""A role of the embedded Shakespeare: its play and its name."""

Letter = Annotated[str, Field(pattern="^[a-z]$")]
Window = Annotated[int, Field(ge=1, le=1_000_000, strict=False)]

Block = Annotated[int, Field(ge=0, lt=BLOCK_COUNT, strict=False)]


class DigitsOptions(Strict):
    """Options of `digits`: the embedded handwritten digits, which need no path."""

    blocks: Annotated[tuple[Block, ...], Joined, Distinct] = tuple(range(BLOCK_COUNT))
    """Form blocks to take, 0 to 13, joined by `|`. Default: all."""


class ShakespeareOptions(Strict):
    """Options of `shakespeare`: the embedded speeches of 12 roles, about 10,000 bytes each, which need no path."""

    roles: Annotated[tuple[Role, ...], Joined, Distinct] = get_args(Role)
    """Roles to take, such as hamlet/HAMLET, joined by `|`. Default: all."""
    window: Annotated[int, Field(ge=1, lt=10_000, strict=False)] = 80
    """Bytes in one example."""
    speakers: Switch = False
    """Whether targets are classes: who speaks, 0 to 11 in the order of all roles, whichever are taken."""


class PronunciationsOptions(Strict):
    """Options of `pronunciations`: the embedded 3,000 English spellings and how they are pronounced, which need no path."""

    letters: Annotated[tuple[Letter, ...], Joined, Distinct] = tuple("abcdefghijklmnopqrstuvwxyz")
    """First letters of the spellings to take, joined by `|`. Default: all."""


class SunspotsOptions(Strict):
    """Options of `sunspots`: the embedded yearly sunspot numbers of 1700 to 2008, which need no path."""

    window: Window = 24
    """Years that one example looks back."""
    horizon: Window = 1
    """Years after them to forecast."""
    spans: Annotated[int, Field(ge=1, strict=False)] = 5
    """Spans of equal length that the years are cut into, the keys of partitions; no window crosses one."""


def _number(value: object) -> object:
    return int(value) if isinstance(value, str) and value in ("1", "3") else value


class ImagesOptions(Strict):
    """Options of `images`: a folder that holds one folder of images a class."""

    size: int | None = Field(default=None, ge=1, le=8192, strict=False)
    """Height and width that every image is resized to, pixels. Default: none is resized, and all must have one size."""
    channels: Annotated[Literal[1, 3], BeforeValidator(_number)] = 1
    """1 for grey, 3 for red, green and blue. Transparency is dropped."""
    classes: Names | None = None
    """Names of the class folders in the order of their numbers, joined by `|`. Not needed where all are numbers."""
    unlabelled: Switch = False
    """Whether the folder holds the images themselves, which then have no classes."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        return refuse_beside(self, "unlabelled", "classes")


class TableOptions(Strict):
    """Options of every kind of table."""

    target: Names = ()
    """Column of the classes: integers from 0, or text that `classes` lists. With `values`, columns of numbers, joined by `|`."""
    classes: Names | None = None
    """Values of the target in the order of their numbers, joined by `|`. Not needed where all are integers."""
    features: Names | None = None
    """Columns of the inputs in order, joined by `|`. Default: all but target and key, in the order of the file."""
    values: Switch = False
    """Whether targets are numbers to estimate. If not, they are classes."""
    unlabelled: Switch = False
    """Whether there is no target."""
    codes: Switch = False
    """Whether features are integers from 0, such as states of discrete variables. If not, they become float32."""
    key: str | None = Field(default=None, min_length=1)
    """Column that says whose a row is, such as a hospital: for partitions by key, and no feature."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        refuse_beside(self, "unlabelled", "target", "classes", "values")
        refuse_beside(self, "values", "classes")
        if not self.target and not self.unlabelled:
            raise ValueError("target must name a column, got none; or add unlabelled=true")
        if len(self.target) > 1 and not self.values:
            raise ValueError(f"target must be one column of classes, got {'|'.join(self.target)}; or add values=true")
        return self


class CsvOptions(TableOptions):
    """Options of `csv`: a UTF-8 file separated by commas, with a header."""


class ParquetOptions(TableOptions):
    """Options of `parquet`: one Parquet file."""


class NpzOptions(Strict):
    """Options of `npz`: a NumPy archive."""

    inputs: str = Field(default="x", min_length=1)
    """Name of the array of inputs, (examples, ...)."""
    targets: str = Field(default="y", min_length=1)
    """Name of the array of targets, (examples,) or (examples, ...), integers."""
    codes: Switch = False
    """Whether inputs are integer codes, such as those of text. If not, they become float32."""
    values: Switch = False
    """Whether targets are numbers to estimate, which become float32. If not, they are integers."""
    unlabelled: Switch = False
    """Whether there are no targets."""
    ragged: Switch = False
    """Whether sequences, along axis 1, may end in padding: integers in -1, others in NaN."""
    key: str | None = Field(default=None, min_length=1)
    """Name of an array (examples,) that says whose an example is, such as a writer: for partitions by key."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        return refuse_beside(self, "unlabelled", "targets", "values")


class TextOptions(Strict):
    """Options of `text`: one file, or a folder of .txt files."""

    window: Window = 80
    """Bytes in one example."""


class PairsOptions(Strict):
    """Options of `pairs`: a UTF-8 file, a source and its target on each line with a tab between."""

    source_symbols: Names | None = None
    """Symbols in the order of their numbers, joined by `|`, that spaces separate in a source. Default: it is read as bytes."""
    target_symbols: Names | None = None
    """The same for targets."""
    key: Switch = False
    """Whether a third part of each line says whose the pair is: for partitions by key."""


class SeriesOptions(Strict):
    """Options of `series`: a CSV file as of `csv`, with a row for each step in the order of time."""

    columns: Names
    """Columns of numbers to look back on and to forecast, joined by `|`."""
    window: Window = 24
    """Steps that one example looks back."""
    horizon: Window = 1
    """Steps after them to forecast."""
    key: str | None = Field(default=None, min_length=1)
    """Column that says whose a row is, such as a station: no window crosses from one to another, and partitions go by it."""
    mean: Numbers | None = None
    """Subtracted from each column, joined by `|`; the same at every site. Default: nothing."""
    scale: Scales | None = None
    """What each column is then divided by, joined by `|`; the same at every site. Default: 1."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        for name, numbers in (("mean", self.mean), ("scale", self.scale)):
            if numbers is not None and len(numbers) != len(self.columns):
                raise ValueError(f"{name} must be {len(self.columns)} numbers, one a column, got {len(numbers)}")
        if self.key in self.columns:
            raise ValueError(f"columns must not name the key, got {self.key!r}; leave it out")
        return self


EmbeddedOptions = DigitsOptions | ShakespeareOptions | PronunciationsOptions | SunspotsOptions
Options = (
    EmbeddedOptions
    | ImagesOptions
    | CsvOptions
    | ParquetOptions
    | NpzOptions
    | TextOptions
    | PairsOptions
    | SeriesOptions
)

OPTIONS: Mapping[str, type[Options]] = {
    "digits": DigitsOptions,
    "shakespeare": ShakespeareOptions,
    "pronunciations": PronunciationsOptions,
    "sunspots": SunspotsOptions,
    "images": ImagesOptions,
    "csv": CsvOptions,
    "parquet": ParquetOptions,
    "npz": NpzOptions,
    "text": TextOptions,
    "pairs": PairsOptions,
    "series": SeriesOptions,
}
"""The options of each kind of data."""
