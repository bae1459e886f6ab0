"""Options of each kind of data, as `parse_source` reads them from text."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from client.data.fields import Distinct, Joined, Names, Switch, refuse_beside
from wire.validation import Strict

BLOCK_COUNT = 14

Window = Annotated[int, Field(ge=1, le=1_000_000, strict=False)]

Block = Annotated[int, Field(ge=0, lt=BLOCK_COUNT, strict=False)]


class DigitsOptions(Strict):
    """Options of `digits`: the embedded handwritten digits, which need no path."""

    blocks: Annotated[tuple[Block, ...], Joined, Distinct] = tuple(range(BLOCK_COUNT))
    """Form blocks to take, 0 to 13, joined by `|`. Default: all."""


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


Options = DigitsOptions | ImagesOptions | CsvOptions | ParquetOptions | NpzOptions | TextOptions

OPTIONS: Mapping[str, type[Options]] = {
    "digits": DigitsOptions,
    "images": ImagesOptions,
    "csv": CsvOptions,
    "parquet": ParquetOptions,
    "npz": NpzOptions,
    "text": TextOptions,
}
"""The options of each kind of data."""
