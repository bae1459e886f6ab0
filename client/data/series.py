"""Series to forecast: a CSV file of numbers in the order of time, read with pyarrow."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from client.data.columns import Table, read_keys, read_numbers
from client.data.keys import Keys, require_key
from client.data.options import SeriesOptions
from client.data.table_files import read_csv
from client.data.windows import cut_windows
from models.errors import DataError
from models.learner import Examples


def load_series(path: Path, options: SeriesOptions) -> Examples:
    """Cut a CSV file into the windows of each key, in the order of the keys. A key with too few rows for one gives none.

    Returns:
        Inputs float32 (windows, window, columns), targets float32 (windows, horizon * columns), the nearest step first, and
        their timeline.

    Raises:
        DataError: The file is no such table, a column is missing, a value cannot be used, or all keys are too short.
    """
    return _cut(path, options)[0]


def series_keys(path: Path, options: SeriesOptions) -> Keys:
    """Return the natural key of each window that `load_series` cuts, (windows,). Raises `DataError` as it does."""
    require_key(f"CSV file {path}", options.key)
    return _cut(path, options)[1]


def _cut(path: Path, options: SeriesOptions) -> tuple[Examples, Keys]:
    table = read_csv(path)
    table.require("columns", options.columns)
    table.require("key", (options.key,) if options.key else ())
    row_count = table.cells.num_rows
    keys = read_keys(table, options.key) if options.key and row_count else np.zeros(row_count, dtype=np.int64)
    names, series = np.unique(keys, return_inverse=True)
    order = np.argsort(series, kind="stable")
    examples = cut_windows(_values(table, options)[order], series[order], options.window, options.horizon)
    if examples is None or examples.timeline is None:
        longest = max(np.bincount(series), default=0)
        raise DataError(
            f"{table.subject}: series must have at least {options.window + options.horizon} rows for a window and its "
            f"horizon, got {longest} in the longest. Add rows, or lower window or horizon."
        )
    return examples, names[examples.timeline.series.numpy()]


def _values(table: Table, options: SeriesOptions) -> npt.NDArray[np.float32]:
    """Return the columns less their mean in units of their scale, (rows, columns)."""
    values = np.empty((table.cells.num_rows, len(options.columns)), dtype=np.float32)
    means, scales = options.mean or (0.0,) * len(options.columns), options.scale or (1.0,) * len(options.columns)
    for position, (name, mean, scale) in enumerate(zip(options.columns, means, scales, strict=True)):
        with np.errstate(over="ignore"):
            values[:, position] = (read_numbers(table, name).astype(np.float64) - mean) / scale
        is_wrong = ~np.isfinite(values[:, position])
        if is_wrong.any():
            raise table.refusal(int(is_wrong.argmax()), name, f"within float32 after mean={mean:g} and scale={scale:g}")
    return values
