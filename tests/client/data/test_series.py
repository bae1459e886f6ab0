import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.data import load, load_keys, parse_source
from models.errors import DataError


def write(folder: Path, content: str) -> Path:
    path = folder / "load.csv"
    path.write_text(content, encoding="utf-8")
    return path


def test_load_series_gives_windows_of_the_columns_in_the_order_asked(tmp_path: Path) -> None:
    path = write(tmp_path, "day,a,b\nmon,0,10\ntue,1,11\nwed,2,12\nthu,3,13\n")
    examples = load(parse_source(f"series:{path},columns=b|a,window=2"))
    assert examples.inputs.dtype == examples.targets.dtype == torch.float32
    assert examples.inputs.tolist() == [[[10, 0], [11, 1]], [[11, 1], [12, 2]]]
    assert examples.targets.tolist() == [[12, 2], [13, 3]]


def test_load_series_standardises_by_constants(tmp_path: Path) -> None:
    path = write(tmp_path, "a,b\n1,16777217\n3,16777219\n")
    examples = load(parse_source(f"series:{path},columns=a|b,window=1,mean=1|0,scale=0.5|2"))
    assert examples.inputs.flatten().tolist() == [0, 8388608]
    assert examples.targets.flatten().tolist() == [4, 8388610]
    examples = load(parse_source(f"series:{path},columns=a,window=1,mean=-1"))
    assert examples.inputs.item() == 2


def test_load_series_rows_of_keys_may_be_mixed_and_no_window_crosses_them(tmp_path: Path) -> None:
    path = write(tmp_path, "site,x\nb,10\na,0\nb,11\na,1\nc,20\nb,12\na,2\nb,13\n")
    source = parse_source(f"series:{path},columns=x,window=2,key=site")
    examples = load(source)
    assert examples.inputs[:, :, 0].tolist() == [[0, 1], [10, 11], [11, 12]]
    assert examples.targets[:, 0].tolist() == [2, 12, 13]
    assert load_keys(source).tolist() == ["a", "b", "b"]
    assert examples.timeline is not None
    assert examples.timeline.series.tolist() == [0, 1, 1]


@given(sites=st.lists(st.integers(-3, 3), min_size=1, max_size=40), window=st.integers(1, 4), horizon=st.integers(1, 3))
def test_load_series_every_stretch_of_one_key_is_a_window_once(
    tmp_path_factory: pytest.TempPathFactory, sites: list[int], window: int, horizon: int
) -> None:
    # The value of a row tells its place in the file.
    path = write(tmp_path_factory.getbasetemp(), "x,k\n" + "".join(f"{row},{k}\n" for row, k in enumerate(sites)))
    source = parse_source(f"series:{path},columns=x,window={window},horizon={horizon},key=k")
    expected = []
    for site in sorted(set(sites)):
        rows = [row for row, k in enumerate(sites) if k == site]
        width = window + horizon
        expected += [(site, rows[first : first + width]) for first in range(len(rows) - width + 1)]
    if not expected:
        with pytest.raises(DataError, match="series must have at least"):
            load(source)
        return
    examples = load(source)
    assert load_keys(source).tolist() == [site for site, _ in expected]
    found = np.concatenate([examples.inputs[:, :, 0].numpy(), examples.targets.numpy()], axis=1)
    assert found.tolist() == [rows for _, rows in expected]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        pytest.param(
            "a\n1\n2\n3\n", ",window=3", ": series must have at least 4 rows .*, got 3 in the long", id="short"
        ),
        pytest.param(
            "a,k\n1,x\n2,y\n3,x\n", ",window=2,key=k", ": .* at least 3 rows .*, got 2 in the", id="short-keys"
        ),
        pytest.param("a,k\n", ",window=2,key=k", ": .* at least 3 rows .*, got 0 in the", id="no-rows"),
        pytest.param("b\n1\n", "", ": columns must name columns of the file, got 'a'. They are 'b'", id="column"),
        pytest.param("a\n1\n", ",key=k", ": key must name columns of the file, got 'k'", id="key"),
        pytest.param("a,k\n1,x\n2,\n", ",key=k", r", line 3 \(row 2\), column 'k': value must be present", id="no-key"),
        pytest.param("a\n1\nx\n", "", r", line 3 \(row 2\), column 'a': value must be a number, got 'x'", id="text"),
        pytest.param("a\n1\nNA\n", "", r", line 3 .* must be a finite number .*, got a missing value", id="missing"),
        pytest.param(
            "a\n1\n3e38\n",
            ",scale=0.1",
            r", line 3 .* within float32 after mean=0 and scale=0.1, got 3e\+38",
            id="scale",
        ),
    ],
)
def test_load_series_unusable_file_is_refused(tmp_path: Path, content: str, options: str, message: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(DataError, match=f"^CSV file {re.escape(str(path))}{message}"):
        load(parse_source(f"series:{path},columns=a{options}"))


def test_load_keys_series_without_a_key_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "a\n1\n2\n")
    with pytest.raises(DataError, match=r"key must be named for a partition by key, got none\. Add ,key="):
        load_keys(parse_source(f"series:{path},columns=a,window=1"))
