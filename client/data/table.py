"""Tables: a row an example, one column its class or some its values, other columns its features."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from client.data.columns import Table, read_classes, read_codes, read_keys, read_numbers
from client.data.keys import Keys, require_key
from client.data.options import CsvOptions, ParquetOptions
from client.data.table_files import read_csv, read_parquet
from models.errors import DataError
from models.learner import Examples

TableOptions = CsvOptions | ParquetOptions

# Row numbers that pandas stores beside a table whose rows were chosen from a larger one.
_PANDAS_INDEX = re.compile(r"__index_level_\d+__")


def load_table(path: Path, options: TableOptions) -> Examples:
    """Read a CSV or Parquet file, whichever the options are for.

    Returns:
        Inputs float32 (rows, features), int64 with `codes`; targets int64 (rows,), float32 (rows, values) with `values`, or int64
        (rows, 0) with `unlabelled`.

    Raises:
        DataError: The file is no such table, a column is missing, or a value cannot be used; its line or row is named.
    """
    table = _read(path, options)
    columns = _feature_columns(table, options)
    if table.cells.num_rows == 0:
        raise DataError(f"{table.subject}: table must have at least 1 row, got 0. Add examples.")
    targets = _targets(table, options)
    inputs = _matrix(table, columns, read_codes, np.int64) if options.codes else _numbers(table, columns)
    return Examples(torch.from_numpy(inputs), torch.from_numpy(targets))


def table_keys(path: Path, options: TableOptions) -> Keys:
    """Return the natural key of each row that `load_table` reads. Raises `DataError` as it does."""
    table = _read(path, options)
    _feature_columns(table, options)
    return read_keys(table, require_key(table.subject, options.key))


def _read(path: Path, options: TableOptions) -> Table:
    if isinstance(options, ParquetOptions):
        return read_parquet(path)
    return read_csv(path, options.target if options.classes else ())


def _targets(table: Table, options: TableOptions) -> npt.NDArray[Any]:
    if options.unlabelled:
        return np.empty((table.cells.num_rows, 0), dtype=np.int64)
    if options.values:
        return _numbers(table, options.target)
    return read_classes(table, options.target[0], options.classes)


def _numbers(table: Table, columns: tuple[str, ...]) -> npt.NDArray[Any]:
    return _matrix(table, columns, read_numbers, np.float32)


def _matrix(
    table: Table, columns: tuple[str, ...], read: Callable[[Table, str], npt.NDArray[Any]], kind: type[np.generic]
) -> npt.NDArray[Any]:
    """Return columns beside each other, (rows, columns)."""
    matrix = np.empty((table.cells.num_rows, len(columns)), dtype=kind)
    for position, column in enumerate(columns):
        matrix[:, position] = read(table, column)
    return matrix


def _feature_columns(table: Table, options: TableOptions) -> tuple[str, ...]:
    key = (options.key,) if options.key else ()
    others = tuple(
        name
        for name in table.cells.column_names
        if name not in (*options.target, *key) and not _PANDAS_INDEX.fullmatch(name)
    )
    columns = options.features or others
    for option, names in (("target", options.target), ("features", columns), ("key", key)):
        table.require(option, names)
    for option, names in (("target", options.target), ("key", key)):
        for name in names:
            if name in columns:
                raise DataError(f"{table.subject}: features must not name the {option}, got {name!r}. Leave it out.")
    if "" in columns:
        raise DataError(
            f"{table.subject}: each column must have a name, got ''. Name it, drop it, or list the features."
        )
    if not columns:
        raise DataError(f"{table.subject}: table must have a column beside the target, got none. Add features.")
    return columns
