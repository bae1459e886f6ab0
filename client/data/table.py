"""Tables, CSV or Parquet: a row an example, one column its class, other columns its features. Read with pyarrow."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from pyarrow import csv, parquet

from client.data.columns import Table, read_classes, read_feature, read_keys
from client.data.fields import reason
from client.data.keys import Keys, require_key
from client.data.lines import line_of_record
from client.data.options import CsvOptions, ParquetOptions, TableOptions
from client.data.paths import require_file
from models.errors import DataError
from models.learner import Examples

_UNEVEN_ROW = re.compile(r"Row #(\d+): Expected (\d+) columns, got (\d+)")
# Row numbers that pandas stores beside a table whose rows were chosen from a larger one.
_PANDAS_INDEX = re.compile(r"__index_level_\d+__")


def load_csv(path: Path, options: CsvOptions) -> Examples:
    """Read a CSV file whose first line names the columns.

    Returns:
        Inputs float32 (rows, features), targets int64 (rows,).

    Raises:
        DataError: The file is no such table, a column is missing, or a value cannot be used; its line is named.
    """
    return _to_examples(_read_csv(path, options), options)


def load_parquet(path: Path, options: ParquetOptions) -> Examples:
    """Read a Parquet file. Returns and raises as `load_csv`, naming rows from 1."""
    return _to_examples(_read_parquet(path), options)


def csv_keys(path: Path, options: CsvOptions) -> Keys:
    """Return the natural key of each row that `load_csv` reads. Raises `DataError` as it does."""
    return _to_keys(_read_csv(path, options), options)


def parquet_keys(path: Path, options: ParquetOptions) -> Keys:
    """Return the natural key of each row that `load_parquet` reads. Raises `DataError` as it does."""
    return _to_keys(_read_parquet(path), options)


def _read_csv(path: Path, options: CsvOptions) -> Table:
    require_file("CSV file", path)
    subject = f"CSV file {path}"
    try:
        cells = csv.read_csv(
            str(path),
            read_options=csv.ReadOptions(use_threads=False),  # with threads, errors do not tell the row
            # As bytes, the target keeps what `classes` lists: "true", "01" and "NA" would be read as other things.
            convert_options=csv.ConvertOptions(column_types={options.target: pa.binary()} if options.classes else {}),
        )
    except (pa.ArrowException, ValueError, OSError) as error:
        if uneven := _UNEVEN_ROW.search(str(error)):
            record, expected, found = map(int, uneven.groups())
            line = line_of_record(path, record - 1)
            raise DataError(
                f"{subject}, line {line}: row must have {expected} values, got {found}. Mend the line."
            ) from error
        raise _unreadable(subject, "a CSV table", error) from error
    return Table(subject, cells, lambda row: f"line {line_of_record(path, row + 1)} (row {row + 1})")


def _read_parquet(path: Path) -> Table:
    require_file("Parquet file", path)
    subject = f"Parquet file {path}"
    try:
        with parquet.ParquetFile(path) as file:
            cells = file.read()
    except (pa.ArrowException, ValueError, OSError) as error:
        raise _unreadable(subject, "a Parquet table", error) from error
    return Table(subject, cells, lambda row: f"row {row + 1}")


def _unreadable(subject: str, rule: str, error: Exception) -> DataError:
    return DataError(f"{subject}: file must be {rule}, got {reason(error)}. Export it again.")


def _to_examples(table: Table, options: TableOptions) -> Examples:
    columns = _feature_columns(table, options)
    if table.cells.num_rows == 0:
        raise DataError(f"{table.subject}: table must have at least 1 row, got 0. Add examples.")
    targets = read_classes(table, options.target, options.classes)
    inputs = np.empty((table.cells.num_rows, len(columns)), dtype=np.float32)
    for position, column in enumerate(columns):
        inputs[:, position] = read_feature(table, column)
    return Examples(torch.from_numpy(inputs), torch.from_numpy(targets))


def _to_keys(table: Table, options: TableOptions) -> Keys:
    _feature_columns(table, options)
    return read_keys(table, require_key(table.subject, options.key))


def _feature_columns(table: Table, options: TableOptions) -> tuple[str, ...]:
    present = _column_names(table)
    others = tuple(
        name for name in present if name not in (options.target, options.key) and not _PANDAS_INDEX.fullmatch(name)
    )
    columns = options.features or others
    named = {"target": (options.target,), "features": columns, "key": (options.key,) if options.key else ()}
    for option, names in named.items():
        if absent := set(names).difference(present):
            found = ", ".join(map(repr, present))
            raise DataError(
                f"{table.subject}: {option} must name columns of the file, got {min(absent)!r}. They are {found}."
            )
    for option, name in (("target", options.target), ("key", options.key)):
        if name in columns:
            raise DataError(f"{table.subject}: features must not name the {option}, got {name!r}. Leave it out.")
    if "" in columns:
        raise DataError(
            f"{table.subject}: each column must have a name, got ''. Name it, drop it, or list the features."
        )
    if not columns:
        raise DataError(f"{table.subject}: table must have a column beside the target, got none. Add features.")
    return columns


def _column_names(table: Table) -> tuple[str, ...]:
    try:
        names = tuple(table.cells.column_names)
    except UnicodeDecodeError as error:
        raise _unreadable(table.subject, "a table whose column names are UTF-8", error) from error
    for name, count in Counter(names).items():
        if count > 1:
            raise DataError(
                f"{table.subject}: columns must have different names, got {name!r} {count} times. Rename them."
            )
    return names
