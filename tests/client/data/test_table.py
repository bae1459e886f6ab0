import gzip
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from client.data import load, parse_source
from models.errors import DataError
from models.learner import Examples


def write_csv(folder: Path, content: str | bytes) -> Path:
    path = folder / "patients.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_parquet(folder: Path, **columns: Any) -> Path:
    path = folder / "patients.parquet"
    parquet.write_table(pa.table(columns), path)
    return path


def load_table(path: Path, options: str = ",target=y") -> Examples:
    return load(parse_source(f"{path.suffix[1:]}:{path}{options}"))


def test_load_csv_numbers_become_features_in_the_order_of_the_file(tmp_path: Path) -> None:
    examples = load_table(write_csv(tmp_path, "b,y,a,c\n1,0,2.5,true\n-3,12,4e2,false\n"))
    assert (examples.inputs.dtype, examples.targets.dtype) == (torch.float32, torch.int64)
    assert examples.inputs.tolist() == [[1, 2.5, 1], [-3, 400, 0]]
    assert examples.targets.tolist() == [0, 12]


def test_load_csv_listed_features_keep_their_order_and_others_may_be_anything(tmp_path: Path) -> None:
    path = write_csv(tmp_path, '"Age, years",name,y,a\n40,Ana,1,2\n50,,0,3\n')
    assert load_table(path, ",target=y,features=a|Age, years").inputs.tolist() == [[2, 40], [3, 50]]


@pytest.mark.parametrize(
    ("values", "classes", "numbers"),
    [
        pytest.param(("malignant", "benign"), "benign|malignant", [1, 0], id="text"),
        pytest.param(("2", "1"), "1|2", [1, 0], id="integers-listed"),
        pytest.param(("02", "2"), "2|02", [1, 0], id="zeros-in-front"),
        pytest.param(("true", "false"), "false|true", [1, 0], id="booleans-listed"),
        pytest.param(("NA", "x"), "x|NA", [1, 0], id="looks-missing"),
        pytest.param(("true", "false"), None, [1, 0], id="booleans"),
        pytest.param(("3.0", "4"), None, [3, 4], id="whole-floats"),
    ],
)
def test_load_csv_classes_are_numbered(
    tmp_path: Path, values: tuple[str, str], classes: str | None, numbers: list[int]
) -> None:
    path = write_csv(tmp_path, f"a,y\n1,{values[0]}\n2,{values[1]}\n")
    options = f",classes={classes}" if classes else ""
    assert load_table(path, f",target=y{options}").targets.tolist() == numbers


def test_load_csv_byte_order_mark_and_compression_are_read(tmp_path: Path) -> None:
    path = tmp_path / "patients.csv.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbfa,y\n1,0\n\n,1\n"))
    with pytest.raises(DataError, match=r"line 4 \(row 2\), column 'a': value must be a finite number"):
        load(parse_source(f"csv:{path},target=y"))


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        pytest.param(
            "a,y\n1,0\n,1\n",
            "",
            r", line 3 \(row 2\), column 'a': value must be a finite number .*, got a missing value",
            id="missing",
        ),
        pytest.param("a,y\n1,0\n\n\nNA,1\n", "", r", line 5 \(row 2\), .* got a missing value", id="after-empty-lines"),
        pytest.param(
            'a,s,y\n1,"p\nq",0\nnan,r,1\n', ",features=a", r", line 4 \(row 2\)", id="after-a-value-on-two-lines"
        ),
        pytest.param("a,y\n,0\n,1\n", "", r", line 2 \(row 1\), column 'a': .* got a missing value", id="all-missing"),
        pytest.param(
            "a,y\n1,0\nabc,1\n", "", r", line 3 \(row 2\), column 'a': value must be a number, got 'abc'", id="text"
        ),
        pytest.param("a,y\ntrue,0\nno,1\n", "", r", line 2 \(row 1\), column 'a': .* got 'true'", id="mixed"),
        pytest.param("a,y\n1,0\n2024-01-01,1\n", "", r", line 3 .* got '2024-01-01'", id="date"),
        pytest.param("a,y\n2024-01-01,1\n", "", r", line 2 .* must be a number, got 2024-01-01", id="dates"),
        pytest.param("a,y\n1,0\ninf,1\n", "", r", line 3 .* must be a finite number .*, got inf", id="infinite"),
        pytest.param(
            "a,y\n1e39,0\n", "", r", line 2 .* must be a finite number within float32, got 1e\+39", id="too-large"
        ),
        pytest.param(
            "a,y\n1,0\n\xff,1\n".encode("latin-1"),
            "",
            r", line 3 .* must be text in UTF-8, got b'\\xff'",
            id="encoding",
        ),
        pytest.param(
            "a,y\n1,b\n2,\xff\n".encode("latin-1"),
            ",classes=a|b",
            r", line 3 .*column 'y': .* UTF-8, got b'\\xff'",
            id="target-encoding",
        ),
        pytest.param(
            "a,y\xff\n1,1\n".encode("latin-1"),
            "",
            ": file must be a table whose column names are UTF-8",
            id="header-encoding",
        ),
        pytest.param(
            "a,y\n1,0\n2,\n",
            "",
            r", line 3 \(row 2\), column 'y': value must be present, got a missing",
            id="target-missing",
        ),
        pytest.param(
            "a,y\n1,no\n2,\n", "", r", line 3 \(row 2\), column 'y': value must be present, got ''", id="target-empty"
        ),
        pytest.param(
            "a,y\n1,no\n2,\n", ",classes=no", r", line 3 .* must be one of no, got ''. Mend", id="listed-target-empty"
        ),
        pytest.param(
            "a,y\n1,no\n2,yes\n",
            ",classes=no|on",
            r", line 3 .*'y': value must be one of no\|on, got 'yes'",
            id="not-listed",
        ),
        pytest.param(
            "a,y\n1,yes\n2,no\n",
            "",
            r", column 'y': classes must be listed .* Add ,classes=no\|yes to .* alike",
            id="text-target",
        ),
        pytest.param(
            "a,y\n1,0\n2,-1\n",
            "",
            r", line 3 .*'y': value must be an integer from 0 to 2147483647, got -1",
            id="negative",
        ),
        pytest.param("a,y\n1,0.5\n", "", r", line 2 .* must be an integer .*, got 0.5", id="fraction"),
        pytest.param(
            "a,y\n1,9999999999\n", "", r", line 2 .* must be an integer .*, got 9999999999", id="too-large-a-class"
        ),
        pytest.param(
            "a,y\n1,2024-01-01\n", "", r", line 2 .* must be an integer or text, got 2024-01-01", id="date-target"
        ),
        pytest.param(
            "a,z\n1,0\n", "", ": target must name columns of the file, got 'y'. They are 'a', 'z'", id="no-target"
        ),
        pytest.param("a;y\n1;0\n", "", ": target must name .* They are 'a;y'", id="semicolons"),
        pytest.param(
            "a,y\n1,0\n", ",features=a|b|c", ": features must name columns of the file, got 'b'", id="no-feature"
        ),
        pytest.param(
            "a,y\n1,0\n", ",features=a|y", ": features must not name the target, got 'y'", id="target-as-feature"
        ),
        pytest.param("a,a,y\n1,2,0\n", "", ": columns must have different names, got 'a' 2 times", id="same-names"),
        pytest.param(",y\n1,0\n", "", ": each column must have a name, got ''", id="no-name"),
        pytest.param("y\n0\n", "", ": table must have a column beside the target, got none", id="target-alone"),
        pytest.param("a,y\n", "", ": table must have at least 1 row, got 0", id="no-rows"),
        pytest.param("", "", ": file must be a CSV table, got an error: Empty CSV file", id="empty"),
        pytest.param(
            "a,y\n1,0\n2,\xff,1\n".encode("latin-1"),
            "",
            ", line 3: row must have 2 values, got 3",
            id="uneven-and-encoding",
        ),
        pytest.param("a,y\n1,0\n\n1,0,5\n", "", ", line 4: row must have 2 values, got 3. Mend the line", id="uneven"),
    ],
)
def test_load_csv_unusable_table_is_refused_with_its_line(
    tmp_path: Path, content: str | bytes, options: str, message: str
) -> None:
    path = write_csv(tmp_path, content)
    with pytest.raises(DataError, match=f"^CSV file {re.escape(str(path))}{message}"):
        load_table(path, f",target=y{options}")


def test_load_csv_target_of_a_thousand_names_is_refused_as_a_mistake(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "a,y\n" + "".join(f"{row},name{row}\n" for row in range(1001)))
    with pytest.raises(DataError, match="classes must be at most 1000 names, got 1001 such as 'name0'"):
        load_table(path)


def test_load_csv_line_of_a_value_too_long_for_the_line_counter_is_the_row(tmp_path: Path) -> None:
    path = write_csv(tmp_path, f"a,s,y\n1,{'x' * 200_000},0\n,x,1\n")
    with pytest.raises(DataError, match=r"line 3 \(row 2\), column 'a'"):
        load_table(path, ",target=y,features=a")


@given(
    st.lists(
        st.tuples(
            st.floats(allow_nan=False, allow_infinity=False, width=32),
            st.integers(-(2**63), 2**64 - 1),
            st.integers(0, 9),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_load_csv_any_numbers_are_read_as_numpy_reads_them(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[float, int, int]]
) -> None:
    lines = "".join(f"{first!r},{second},{number}\n" for first, second, number in rows)
    examples = load_table(write_csv(tmp_path_factory.getbasetemp(), f"a,b,y\n{lines}"))
    np.testing.assert_allclose(
        examples.inputs.numpy(), np.array([row[:2] for row in rows], dtype=np.float64), rtol=1e-6
    )
    assert examples.targets.tolist() == [row[2] for row in rows]


def test_load_parquet_every_kind_of_number_is_a_feature(tmp_path: Path) -> None:
    path = write_parquet(
        tmp_path,
        a=pa.array([1, 2], pa.uint8()),
        b=pa.array([0.5, 1.5], pa.float16()),
        c=pa.array([True, False]),
        d=pa.array([1, 2], pa.decimal128(5, 2)),
        e=pa.array([2**60, 0], pa.int64()),
        f=pa.array([7, 7]).dictionary_encode(),
        y=pa.array([1, 0], pa.int8()),
    )
    examples = load_table(path)
    assert examples.inputs.tolist() == [[1, 0.5, 1, 1, 2.0**60, 7], [2, 1.5, 0, 2, 0, 7]]
    assert examples.targets.tolist() == [1, 0]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())])
def test_load_parquet_every_kind_of_text_is_a_target(tmp_path: Path, kind: pa.DataType) -> None:
    path = write_parquet(tmp_path, a=[1, 2, 3], y=pa.array(["b", "a", "b"]).cast(kind))
    assert load_table(path, ",target=y,classes=a|b").targets.tolist() == [1, 0, 1]
    with pytest.raises(DataError, match=r"Add ,classes=a\|b to"):
        load_table(path)


def test_load_parquet_index_of_pandas_is_no_feature(tmp_path: Path) -> None:
    path = write_parquet(tmp_path, a=[1, 2], y=[0, 1], __index_level_0__=[17, 4])
    assert load_table(path).inputs.tolist() == [[1], [2]]


def test_load_parquet_folder_names_add_no_columns(tmp_path: Path) -> None:
    folder = tmp_path / "site=3"
    folder.mkdir()
    assert load_table(write_parquet(folder, a=[1], y=[0])).inputs.tolist() == [[1]]


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        pytest.param(
            {"a": [1, None]},
            "",
            "row 2, column 'a': value must be a finite number .*, got a missing value",
            id="missing",
        ),
        pytest.param(
            {"a": [1.0, float("nan")]}, "", "row 2, column 'a': value must be a finite number .*, got nan", id="nan"
        ),
        pytest.param({"a": ["1", "x"]}, "", "row 2, column 'a': value must be a number, got 'x'", id="text"),
        pytest.param({"a": ["1", "2"]}, "", "row 1, column 'a': value must be a number, got '1'", id="numbers-as-text"),
        pytest.param({"a": [[1], [2]]}, "", r"row 1, column 'a': value must be a number, got \[1\]", id="lists"),
        pytest.param(
            {"a": [1, 2], "y": [0, None]}, "", "row 2, column 'y': value must be present", id="target-missing"
        ),
        pytest.param(
            {"a": [1, 2], "y": [0.0, 1.0]},
            ",classes=0|1",
            "row 1, .* must be an integer or text, got 0.0",
            id="listed-floats",
        ),
    ],
)
def test_load_parquet_unusable_table_is_refused_with_its_row(
    tmp_path: Path, columns: dict[str, Any], options: str, message: str
) -> None:
    path = write_parquet(tmp_path, **{"y": [0, 1], **columns})
    with pytest.raises(DataError, match=f"^Parquet file {re.escape(str(path))}, {message}"):
        load_table(path, f",target=y{options}")


@pytest.mark.parametrize("content", [b"", b"a,y\n1,0\n", b"PAR1" + bytes(40) + b"PAR1"])
def test_load_parquet_other_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "patients.parquet"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"Parquet file {re.escape(str(path))}: file must be a Parquet table, got"):
        load_table(path)
