"""Lines of CSV files, for errors: pyarrow counts records, people look for lines."""

import csv
import io
from pathlib import Path

import pyarrow as pa


def line_of_record(path: Path, index: int) -> int:
    """Return the line, from 1, where a record starts.

    Lines are more than records where some are empty or a quoted value goes over several. Where the lines cannot be
    told, the result takes them to be equal.

    Args:
        path: A CSV file, which may be compressed.
        index: The record, from 0, which is the header.
    """
    record_count = 0
    last_line = 0
    with io.TextIOWrapper(pa.input_stream(str(path)), encoding="utf-8", errors="replace", newline="") as file:
        reader = csv.reader(file)
        try:
            for record in reader:
                if record and record_count == index:
                    return last_line + 1
                record_count += bool(record)
                last_line = reader.line_num
        except csv.Error:  # a value longer than the limit of that module
            pass
    return index + 1
