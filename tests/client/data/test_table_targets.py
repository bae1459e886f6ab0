"""Tables whose targets are numbers or none, and whose features are codes."""

import re
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from client.data import load, load_keys, parse_source
from models.errors import DataError
from models.learner import Examples


def write(folder: Path, content: str) -> Path:
    path = folder / "homes.csv"
    path.write_text(content, encoding="utf-8")
    return path


def load_csv(path: Path, options: str) -> Examples:
    return load(parse_source(f"csv:{path}{options}"))


def test_load_table_values_are_float32_columns_in_the_order_asked(tmp_path: Path) -> None:
    path = write(tmp_path, "a,price,rent\n1,2.5,7\n2,-1e3,8\n")
    one = load_csv(path, ",target=price,values=true,features=a")
    assert (one.inputs.dtype, one.targets.dtype) == (torch.float32, torch.float32)
    assert one.targets.tolist() == [[2.5], [-1000]]
    two = load_csv(path, ",target=rent|price,values=true")
    assert two.inputs.tolist() == [[1], [2]]
    assert two.targets.tolist() == [[7, 2.5], [8, -1000]]
    parquet.write_table(pa.table({"a": [1, 2], "price": [2.5, -1000]}), tmp_path / "homes.parquet")
    again = load(parse_source(f"parquet:{tmp_path / 'homes.parquet'},target=price,values=true"))
    assert torch.equal(again.targets, one.targets)


def test_load_table_unlabelled_takes_every_column_but_the_key(tmp_path: Path) -> None:
    path = write(tmp_path, "a,k,b\n1,x,2\n3,y,4\n")
    source = parse_source(f"csv:{path},unlabelled=true,key=k")
    examples = load(source)
    assert examples.inputs.tolist() == [[1, 2], [3, 4]]
    assert (examples.targets.dtype, examples.targets.shape) == (torch.int64, (2, 0))
    assert load_keys(source).tolist() == ["x", "y"]


def test_load_table_codes_are_int64(tmp_path: Path) -> None:
    path = write(tmp_path, "a,b,y\n0,16777217,1\n1,3.0,0\n")
    examples = load_csv(path, ",target=y,codes=true")
    assert examples.inputs.dtype == torch.int64
    assert examples.inputs.tolist() == [[0, 16777217], [1, 3]]
    assert load_csv(path, ",unlabelled=true,codes=true").inputs.tolist() == [[0, 16777217, 1], [1, 3, 0]]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        pytest.param(
            "a,y\n1,2\n1,x\n",
            ",target=y,values=true",
            r", line 3 \(row 2\), column 'y': value must be a number, got 'x'",
            id="text-value",
        ),
        pytest.param(
            "a,y\n1,2\n1,\n", ",target=y,values=true", r", line 3 .*'y': .* finite .* got a missing", id="missing-value"
        ),
        pytest.param(
            "a,y\n1,2\n", ",target=y|z,values=true", ": target must name columns of the file, got 'z'", id="no-column"
        ),
        pytest.param(
            "a,y,z\n1,2,3\n",
            ",target=y|z,values=true,features=a|z",
            ": features must not name the target, got 'z'",
            id="value-as-feature",
        ),
        pytest.param("k\n1\n", ",unlabelled=true,key=k", ": table must have a column beside the", id="key-alone"),
        pytest.param(
            "a,y\n1,0\n-1,0\n",
            ",target=y,codes=true",
            r", line 3 .*'a': value must be an integer from 0 to 2147483647, got -1",
            id="negative-code",
        ),
        pytest.param("a,y\n0.5,0\n", ",target=y,codes=true", ", line 2 .* an integer from 0 .* got 0.5", id="fraction"),
        pytest.param("a,y\n1,0\n,0\n", ",target=y,codes=true", ", line 3 .*'a': value must be present", id="no-code"),
        pytest.param(
            "a,y\nhigh,0\n",
            ",target=y,codes=true",
            ", line 2 .*'a': value must be an integer, got 'high'. Number its values alike at every site",
            id="text-code",
        ),
    ],
)
def test_load_table_unusable_value_is_refused_with_its_line(
    tmp_path: Path, content: str, options: str, message: str
) -> None:
    path = write(tmp_path, content)
    with pytest.raises(DataError, match=f"^CSV file {re.escape(str(path))}{message}"):
        load_csv(path, options)
