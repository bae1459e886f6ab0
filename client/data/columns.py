"""Columns of a table as arrays: numbers as float32, classes and codes as int64."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import compute, types

from client.data.classes import CLASS_LIMIT, classes_wanted
from client.data.fields import shown
from client.data.keys import Keys
from models.errors import DataError


@dataclass(frozen=True, slots=True)
class Table:
    """Rows read from a file, and what errors call them.

    Attributes:
        subject: The kind of file and its path.
        cells: The columns, by name.
        name_row: Tells where a row, from 0, is found in the file.
    """

    subject: str
    cells: pa.Table
    name_row: Callable[[int], str]

    def refusal(self, row: int, column: str, rule: str, advice: str = "Mend or drop the row.") -> DataError:
        """Return the error for one cell: its value must be `rule`."""
        value = self.cells[column][row].as_py()
        found = shown(value.decode() if isinstance(value, bytes) and _is_utf8(value) else value)
        return DataError(
            f"{self.subject}, {self.name_row(row)}, column {column!r}: value must be {rule}, got {found}. {advice}"
        )

    def require(self, option: str, names: Iterable[str]) -> None:
        """Check that all `names`, which `option` gave, are columns. Raises `DataError`."""
        present = self.cells.column_names
        if absent := set(names).difference(present):
            found = ", ".join(map(repr, present))
            raise DataError(
                f"{self.subject}: {option} must name columns of the file, got {min(absent)!r}. They are {found}."
            )


def read_numbers(table: Table, name: str) -> npt.NDArray[np.float32]:
    """Return a column of finite numbers, float32 (rows,). Raises `DataError`, naming the first row that has none."""
    column = _plain(table, name)
    if not _is_numeric(column.type):
        row = next((row for row, value in enumerate(column) if not _spells_number(value.as_py())), 0)
        raise table.refusal(row, name, "a number", "Mend it, or name the columns to take without this one.")
    values = column.cast(pa.float64(), safe=False).to_numpy()  # missing values become NaN
    with np.errstate(over="ignore"):
        floats: npt.NDArray[np.float32] = values.astype(np.float32)
    _refuse_first(table, name, ~np.isfinite(floats), "a finite number within float32")
    return floats


def read_classes(table: Table, name: str, classes: tuple[str, ...] | None) -> npt.NDArray[np.int64]:
    """Return a column of classes as their numbers, int64 (rows,).

    Args:
        table: At least one row.
        name: A column of integers or text.
        classes: Values in the order of their numbers; None takes integers as they are.

    Raises:
        DataError: A value is missing, is no class number, or is not listed; or text stands there and `classes` is None.
    """
    column = _plain(table, name)
    _refuse_first(table, name, column.is_null().to_numpy(), "present")
    is_text = types.is_string(column.type)
    if classes is not None and (is_text or types.is_integer(column.type) or types.is_boolean(column.type)):
        return _listed_classes(table, name, column, classes)
    if is_text:
        _refuse_first(table, name, column.to_numpy() == "", "present")
        raise classes_wanted(f"{table.subject}, column {name!r}", column.unique().to_pylist())
    if classes is not None or not _is_numeric(column.type):
        raise table.refusal(0, name, "an integer or text", "Choose another target, or export it as text.")
    return _class_numbers(table, name, column)


def read_codes(table: Table, name: str) -> npt.NDArray[np.int64]:
    """Return a column of integers from 0, int64 (rows,). Raises `DataError`, naming the first row that has none."""
    column = _plain(table, name)
    _refuse_first(table, name, column.is_null().to_numpy(), "present")
    if not _is_numeric(column.type):
        raise table.refusal(0, name, "an integer", "Number its values alike at every site, or list other features.")
    return _class_numbers(table, name, column)


def read_keys(table: Table, name: str) -> Keys:
    """Return a column of natural keys, (rows,): int64 of integers, else text. Raises `DataError` where one is missing."""
    column = _plain(table, name)
    is_missing = column.is_null().to_numpy()
    if types.is_string(column.type):
        is_missing |= column.to_numpy() == ""
    _refuse_first(table, name, is_missing, "present")
    if types.is_integer(column.type) and not types.is_uint64(column.type):
        return np.asarray(column, dtype=np.int64)
    return np.asarray(column.cast(pa.string()).to_pylist(), dtype=np.str_)


def _listed_classes(table: Table, name: str, column: Any, classes: tuple[str, ...]) -> npt.NDArray[np.int64]:
    numbers = compute.index_in(column.cast(pa.string()), value_set=pa.array(classes, type=pa.string()))
    _refuse_first(table, name, numbers.is_null().to_numpy(), f"one of {'|'.join(classes)}")
    return np.asarray(numbers, dtype=np.int64)


def _class_numbers(table: Table, name: str, column: Any) -> npt.NDArray[np.int64]:
    values: npt.NDArray[np.float64] = column.cast(pa.float64(), safe=False).to_numpy()
    is_number = (values >= 0) & (values < CLASS_LIMIT) & (values == np.floor(values))
    _refuse_first(table, name, ~is_number, f"an integer from 0 to {CLASS_LIMIT - 1}")
    return values.astype(np.int64)


def _plain(table: Table, name: str) -> Any:
    """Return a column without dictionary encoding, and with any text as strings."""
    column = table.cells[name]
    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not any(test(column.type) for test in (types.is_binary, types.is_large_binary, types.is_large_string)):
        return column
    try:
        return column.cast(pa.string())
    except pa.ArrowInvalid as error:
        row = next((row for row, value in enumerate(column) if not _is_utf8(value.as_py())), 0)
        raise table.refusal(row, name, "text in UTF-8", "Convert the file to UTF-8.") from error


def _refuse_first(table: Table, name: str, is_wrong: npt.NDArray[np.bool_], rule: str) -> None:
    if is_wrong.any():
        raise table.refusal(int(is_wrong.argmax()), name, rule)


def _is_numeric(kind: pa.DataType) -> bool:
    # A column without any value has the type null; its first row is then refused as missing.
    tests = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal, types.is_null)
    return any(test(kind) for test in tests)


def _spells_number(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        float(value)
    except ValueError:
        return False
    return True


def _is_utf8(value: bytes | None) -> bool:
    try:
        (value or b"").decode()
    except UnicodeDecodeError:
        return False
    return True
