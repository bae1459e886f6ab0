"""Files of tables, CSV or Parquet, read with pyarrow."""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
from pyarrow import csv, parquet

from client.data.columns import Table
from client.data.fields import reason
from client.data.lines import line_of_record
from client.data.paths import require_file
from models.errors import DataError

_UNEVEN_ROW = re.compile(r"Row #(\d+): Expected (\d+) columns, got (\d+)")


def read_csv(path: Path, verbatim: Iterable[str] = ()) -> Table:
    """Read a CSV file whose first line names the columns.

    Args:
        path: UTF-8, separated by commas; may be compressed.
        verbatim: Columns to keep as the bytes that stand there: "true", "01" and "NA" would be read as other things.

    Raises:
        DataError: The file is no such table; its line is named where there is one.
    """
    require_file("CSV file", path)
    subject = f"CSV file {path}"
    try:
        cells = csv.read_csv(
            str(path),
            read_options=csv.ReadOptions(use_threads=False),  # with threads, errors do not tell the row
            convert_options=csv.ConvertOptions(column_types=dict.fromkeys(verbatim, pa.binary())),
        )
    except (pa.ArrowException, ValueError, OSError) as error:
        if uneven := _UNEVEN_ROW.search(str(error)):
            record, expected, found = map(int, uneven.groups())
            line = line_of_record(path, record - 1)
            raise DataError(
                f"{subject}, line {line}: row must have {expected} values, got {found}. Mend the line."
            ) from error
        raise _unreadable(subject, "a CSV table", error) from error
    _require_different_names(subject, cells)
    return Table(subject, cells, lambda row: f"line {line_of_record(path, row + 1)} (row {row + 1})")


def read_parquet(path: Path) -> Table:
    """Read a Parquet file. Raises `DataError` where it is none."""
    require_file("Parquet file", path)
    subject = f"Parquet file {path}"
    try:
        with parquet.ParquetFile(path) as file:
            cells = file.read()
    except (pa.ArrowException, ValueError, OSError) as error:
        raise _unreadable(subject, "a Parquet table", error) from error
    _require_different_names(subject, cells)
    return Table(subject, cells, lambda row: f"row {row + 1}")


def _unreadable(subject: str, rule: str, error: Exception) -> DataError:
    return DataError(f"{subject}: file must be {rule}, got {reason(error)}. Export it again.")


def _require_different_names(subject: str, cells: pa.Table) -> None:
    try:
        names = tuple(cells.column_names)
    except UnicodeDecodeError as error:
        raise _unreadable(subject, "a table whose column names are UTF-8", error) from error
    for name, count in Counter(names).items():
        if count > 1:
            raise DataError(f"{subject}: columns must have different names, got {name!r} {count} times. Rename them.")
