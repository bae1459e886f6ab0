import re
import string
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.data import load, load_local, parse_source
from client.data.digits import DIGITS_FILE
from client.data.options import OPTIONS, CsvOptions, DigitsOptions, ImagesOptions, NpzOptions, TextOptions
from client.data.source import EMBEDDED
from models.errors import DataError


def test_parse_source_digits_reads_blocks_and_names_the_embedded_file() -> None:
    source = parse_source("digits,blocks=0|3")
    assert (source.kind, source.path, source.options) == ("digits", DIGITS_FILE, DigitsOptions(blocks=(0, 3)))


def test_parse_source_images_reads_numbers() -> None:
    source = parse_source("images:./scans,size=28,channels=3")
    assert source.path == Path("scans")
    assert source.options == ImagesOptions(size=28, channels=3)


def test_parse_source_csv_keeps_the_order_of_classes() -> None:
    source = parse_source("csv:./patients.csv,target=outcome,classes=malignant|benign")
    assert source.options == CsvOptions(target=("outcome",), classes=("malignant", "benign"))


def test_parse_source_npz_reads_switch() -> None:
    assert parse_source("npz:s.npz,codes=true").options == NpzOptions(codes=True)


def test_parse_source_space_before_a_key_is_dropped() -> None:
    assert parse_source("text:./plays, window=9").options == TextOptions(window=9)


def test_parse_source_commas_and_colons_in_a_path_and_a_name_belong_to_them() -> None:
    source = parse_source("csv:C:/a,b/c=d.csv,target=Age, years,classes=x=1|y")
    assert source.path == Path("C:/a,b/c=d.csv")
    assert source.options == CsvOptions(target=("Age, years",), classes=("x=1", "y"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "kind must be one of digits, shakespeare, .*, pairs, series, got ''", id="empty"),
        pytest.param("excel:a.xls", "kind must be one of .*, got 'excel'", id="unknown-kind"),
        pytest.param(
            "digits,blocks", r"text must read KIND\[:PATH\]\[,key=value...\], got 'digits,blocks'", id="no-value"
        ),
        pytest.param("digits:a.npz", "path must be left out for digits, got 'a.npz'", id="path-for-digits"),
        pytest.param("csv,target=y", "path must be given for csv, got none. Write csv:PATH", id="no-path"),
        pytest.param("npz:", "path must be given for npz", id="empty-path"),
        pytest.param(
            "csv:a.csv",
            "target must name a column, got none; or add unlabelled=true. The keys of csv are target, classes",
            id="no-target",
        ),
        pytest.param("csv:a.csv,target=a|b", r"target must be one column of classes, got a\|b; or add v", id="targets"),
        pytest.param(
            "csv:a,unlabelled=true,target=y", "target must be left out beside unlabelled=true, got both", id="no-label"
        ),
        pytest.param(
            "csv:a,target=y,values=true,classes=a", "classes must be left out beside values=true", id="values"
        ),
        pytest.param("npz:a,unlabelled=true,values=true", "values must be left out beside unlabelled", id="npz-values"),
        pytest.param("images:a,unlabelled=true,classes=a", "classes must be left out beside unlab", id="image-classes"),
        pytest.param("sunspots:a.csv", "path must be left out for sunspots, got 'a.csv'", id="path-for-sunspots"),
        pytest.param("pronunciations,letters=A", "letters.0 must match pattern .*, got 'A'", id="no-letter"),
        pytest.param("series:a", "columns is required. The keys of series are columns, window", id="no-columns"),
        pytest.param("series:a,columns=a|k,key=k", "columns must not name the key, got 'k'; leave it", id="column-key"),
        pytest.param("series:a,columns=a|b,mean=1", "mean must be 2 numbers, one a column, got 1", id="one-mean"),
        pytest.param("series:a,columns=a,scale=0", "scale.0 must be greater than 0, got '0'", id="scale"),
        pytest.param("series:a,columns=a,mean=nan", "mean.0 must be a finite number, got 'nan'", id="mean"),
        pytest.param(
            "text:a,size=3", "size is not a key that exists here. The keys of text are window", id="unknown-key"
        ),
        pytest.param("text:a,window=9,window=8", "window must be given once, got '9' and '8'", id="key-twice"),
        pytest.param("text:a,window=ten", "window must be a valid integer, .*got 'ten'", id="not-an-integer"),
        pytest.param("text:a,window=0", "window must be greater than or equal to 1, got '0'", id="too-small"),
        pytest.param("images:a,channels=2", "channels must be 1 or 3, got '2'", id="not-a-choice"),
        pytest.param("npz:a,codes=maybe", "codes must be a valid boolean, .*got 'maybe'", id="not-a-switch"),
        pytest.param("digits,blocks=1|14", "blocks.1 must be less than 14, got '14'", id="no-such-block"),
        pytest.param("digits,blocks=1|1", "blocks: must name each once, got 1 twice", id="block-twice"),
        pytest.param("images:a,classes=cat|cat", "classes: must name each once, got 'cat' twice", id="class-twice"),
        pytest.param("images:a,classes=", "classes.0 must have at least 1 character, got ''", id="empty-name"),
        pytest.param("csv:a,target=y,path=b", "path is not a key that exists here", id="path-as-a-key"),
    ],
)
def test_parse_source_broken_rule_names_text_key_and_value(text: str, message: str) -> None:
    with pytest.raises(DataError, match=f"^Data source {re.escape(repr(text))}: {message}"):
        parse_source(text)


KEYS = (
    "blocks",
    "size",
    "channels",
    "classes",
    "target",
    "features",
    "inputs",
    "targets",
    "codes",
    "window",
    "x",
    "values",
    "unlabelled",
    "ragged",
    "columns",
    "mean",
    "scale",
    "horizon",
    "roles",
    "letters",
    "spans",
    "key",
)
VALUES = st.one_of(
    st.text(alphabet="0123456789|,=", max_size=8), st.sampled_from(["true", "a|b", "nan", "1e9"]), st.text(max_size=6)
)
LIKELY_TEXTS = st.builds(
    lambda kind, path, pairs: kind + path + "".join(f",{key}={value}" for key, value in pairs),
    st.sampled_from([*OPTIONS, "x"]),
    st.sampled_from(["", ":", ":a", ":a,b", "::"]),
    st.lists(st.tuples(st.sampled_from(KEYS), VALUES), max_size=4),
)


@given(
    st.one_of(
        LIKELY_TEXTS, st.text(), st.text(alphabet=st.characters(categories=["Cs", "L", "P"])), st.text(string.printable)
    )
)
def test_parse_source_any_text_is_parsed_or_refused_with_a_data_error(text: str) -> None:
    try:
        source = parse_source(text)
    except DataError:
        return
    assert isinstance(source.options, OPTIONS[source.kind])


REQUIRED = {"csv": ",target=y", "parquet": ",target=y", "series": ",columns=x"}


@pytest.mark.parametrize("kind", ["images", "csv", "parquet", "npz", "text", "pairs", "series"])
def test_load_path_with_nothing_there_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "none"
    with pytest.raises(DataError, match=f"{re.escape(str(path))}: path must exist, got nothing there"):
        load(parse_source(f"{kind}:{path}{REQUIRED.get(kind, '')}"))


@pytest.mark.parametrize("kind", ["csv", "parquet", "npz", "pairs", "series"])
def test_load_folder_where_a_file_is_wanted_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataError, match=f"{re.escape(str(tmp_path))}: path must be a file, got a folder"):
        load(parse_source(f"{kind}:{tmp_path}{REQUIRED.get(kind, '')}"))


def test_load_file_where_a_folder_is_wanted_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(DataError, match=r"a\.png: path must be a folder, got a file"):
        load(parse_source(f"images:{tmp_path / 'a.png'}"))


@pytest.mark.parametrize("kind", ["images", "npz", "text"])
def test_load_path_that_no_file_can_have_is_refused(kind: str) -> None:
    with pytest.raises(DataError, match=r"path must be readable, got .*File name too long"):
        load(parse_source(f"{kind}:{'a' * 5000}"))


def test_load_local_reads_and_splits() -> None:
    data = load_local("digits,blocks=0", held_out_fraction=0.2, seed=7)
    again = load_local("digits,blocks=0", held_out_fraction=0.2, seed=7)
    assert (data.kind, len(data.training), len(data.held_out)) == ("digits", 104, 26)
    assert torch.equal(data.training.inputs, again.training.inputs)


def test_load_embedded_imports_neither_pillow_nor_pyarrow() -> None:
    code = f"""
import sys
from client.data import load_local
for kind in {[*EMBEDDED]!r}:
    load_local(kind, 0, 0)
    print(kind, {{"PIL", "pyarrow"}} & {{*sys.modules}})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == [f"{kind} set()" for kind in EMBEDDED]


@pytest.mark.parametrize("kind", EMBEDDED)
def test_embedded_file_has_its_notices(kind: str) -> None:
    file = EMBEDDED[kind]
    for notice in (file.with_name("NOTICE"), Path(__file__).parents[3] / "NOTICE"):
        assert f"{file.name}\n" in notice.read_text(encoding="utf-8")


def test_load_without_the_package_that_reads_it_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "client.data.table", None)
    with pytest.raises(DataError, match=r"Data of kind csv: package .* must be installed, got none. Run pip install"):
        load(parse_source(f"csv:{tmp_path},target=y"))
