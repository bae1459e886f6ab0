from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from client.data import load, load_keys, parse_source
from client.data.digits import DIGITS_FILE
from models.errors import DataError


def keys_of(text: str) -> list[Any]:
    source = parse_source(text)
    keys = load_keys(source)
    assert keys.shape == (len(load(source)),)
    return list(keys.tolist())


def write(folder: Path, content: str) -> Path:
    path = folder / "a.csv"
    path.write_text(content)
    return path


def test_load_keys_digits_gives_form_blocks() -> None:
    with np.load(DIGITS_FILE) as arrays:
        assert keys_of("digits") == arrays["w"].tolist()
        chosen = [block for block in arrays["w"].tolist() if block in (3, 12)]
    assert keys_of("digits,blocks=12|3") == chosen


@pytest.mark.parametrize(
    ("column", "keys"),
    [
        pytest.param("10,9,10", [10, 9, 10], id="integers"),
        pytest.param("north,south,north", ["north", "south", "north"], id="text"),
        pytest.param("2026-01-02,2026-01-03,2026-01-02", ["2026-01-02", "2026-01-03", "2026-01-02"], id="dates"),
    ],
)
def test_load_keys_table_gives_a_column_that_is_no_feature(tmp_path: Path, column: str, keys: list[Any]) -> None:
    rows = zip([1, 2, 3], column.split(","), [0, 1, 1], strict=True)
    path = write(tmp_path, "a,site,y\n" + "".join(f"{a},{key},{y}\n" for a, key, y in rows))
    text = f"csv:{path},target=y,key=site"
    assert keys_of(text) == keys
    assert load(parse_source(text)).inputs.tolist() == [[1], [2], [3]]

    parquet.write_table(pa.table({"a": [1, 2, 3], "site": keys, "y": [0, 1, 1]}), tmp_path / "a.parquet")
    assert keys_of(f"parquet:{tmp_path / 'a.parquet'},target=y,key=site") == keys


def test_load_keys_parquet_categories_are_their_text(tmp_path: Path) -> None:
    site = pa.array(["b", "a", "b"]).dictionary_encode()
    parquet.write_table(pa.table({"a": [1, 2, 3], "site": site, "y": [0, 1, 1]}), tmp_path / "a.parquet")
    assert keys_of(f"parquet:{tmp_path / 'a.parquet'},target=y,key=site") == ["b", "a", "b"]


@pytest.mark.parametrize("keys", [[5, 3, 5], ["ben", "ana", "ben"]])
def test_load_keys_npz_gives_an_array(tmp_path: Path, keys: list[Any]) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 2)), y=np.arange(3), writer=np.array(keys))
    assert keys_of(f"npz:{tmp_path / 'a.npz'},key=writer") == keys


def test_load_keys_text_gives_the_file_of_each_window(tmp_path: Path) -> None:
    for name, size in (("romeo.txt", 11), ("juliet.txt", 8), ("nobody.txt", 0)):
        (tmp_path / name).write_text("x" * size)
    assert keys_of(f"text:{tmp_path},window=3") == ["juliet.txt"] * 2 + ["romeo.txt"] * 3
    assert keys_of(f"text:{tmp_path / 'juliet.txt'},window=3") == ["juliet.txt"] * 2


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        pytest.param("a,y\n1,0\n", "", ": key must be named for a partition by key, got none. Add ,key=", id="no-key"),
        pytest.param("a,y\n1,0\n", ",key=k", ": key must name columns of the file, got 'k'. They are", id="no-column"),
        pytest.param("a,k,y\n1,,0\n", ",key=k", r", line 2 \(row 1\), column 'k': value must be present", id="missing"),
        pytest.param(
            "a,k,y\n1,b,0\n2,,1\n", ",key=k", r", line 3 \(row 2\), column 'k': value must be", id="empty-text"
        ),
    ],
)
def test_load_keys_table_without_keys_is_refused(tmp_path: Path, content: str, options: str, message: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(DataError, match=f"^CSV file {path}{message}"):
        load_keys(parse_source(f"csv:{path},target=y{options}"))


def test_load_key_among_the_features_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "a,k,y\n1,1,0\n")
    with pytest.raises(DataError, match=r"features must not name the key, got 'k'. Leave it out"):
        load(parse_source(f"csv:{path},target=y,key=k,features=a|k"))


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        pytest.param({}, "", ": key must be named for a partition by key, got none", id="no-key"),
        pytest.param({}, ",key=w", r": arrays must include 'w', got x, y. .* and key=", id="no-array"),
        pytest.param({"w": np.arange(2)}, ",key=w", r", array 'w': key must hold .* of 3 .* got int64 of", id="length"),
        pytest.param({"w": np.zeros((3, 1), int)}, ",key=w", r"one integer or text .* shape \(3, 1\)", id="axes"),
        pytest.param({"w": np.zeros(3)}, ",key=w", r"got float64 of shape \(3,\). Save it so", id="floats"),
        pytest.param(
            {"w": np.full(3, 2**64 - 1, np.uint64)}, ",key=w", "values must be whole numbers within 64 bits", id="large"
        ),
    ],
)
def test_load_keys_npz_without_keys_is_refused(
    tmp_path: Path, arrays: dict[str, Any], options: str, message: str
) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.zeros((3, 2)), y=np.arange(3), **arrays)
    with pytest.raises(DataError, match=f"^NPZ file {path}.*{message}"):
        load_keys(parse_source(f"npz:{path}{options}"))


def test_load_keys_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data must have a natural key for a partition by key, got images and no more"):
        load_keys(parse_source(f"images:{tmp_path}"))
