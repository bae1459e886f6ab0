import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.data import load, load_keys, parse_source
from models.errors import DataError
from models.learner import PADDING


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "pairs.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_load_pairs_gives_bytes_that_end_in_padding(tmp_path: Path) -> None:
    path = write(tmp_path, "go\té\n\nhi!\tab c\n")
    examples = load(parse_source(f"pairs:{path}"))
    assert examples.inputs.dtype == examples.targets.dtype == torch.int64
    assert examples.inputs.tolist() == [[103, 111, PADDING], [104, 105, 33]]
    assert examples.targets.tolist() == [[0xC3, 0xA9, PADDING, PADDING], [97, 98, 32, 99]]


def test_load_pairs_symbols_are_numbered_in_the_order_given(tmp_path: Path) -> None:
    path = write(tmp_path, "a b a\tAH  B\r\nb\tB\r\n")
    examples = load(parse_source(f"pairs:{path},source_symbols=b|a,target_symbols=AH|B"))
    assert examples.inputs.tolist() == [[1, 0, 1], [0, PADDING, PADDING]]
    assert examples.targets.tolist() == [[0, 1], [1, PADDING]]
    mixed = load(parse_source(f"pairs:{path},target_symbols=B|AH"))
    assert mixed.inputs.tolist() == [[97, 32, 98, 32, 97], [98, *[PADDING] * 4]]
    assert mixed.targets.tolist() == [[1, 0], [0, PADDING]]


def test_load_pairs_third_part_is_the_key(tmp_path: Path) -> None:
    path = write(tmp_path, "\ufeffa\tb\tana\nc\td\tben\n")
    source = parse_source(f"pairs:{path},key=true")
    assert load(source).inputs.tolist() == [[97], [99]]
    assert load_keys(source).tolist() == ["ana", "ben"]


PART = st.text(
    st.characters(exclude_characters="\t\n\r\ufeff", exclude_categories=["Cs"]), min_size=1, max_size=9
).filter(str.strip)


@given(st.lists(st.tuples(PART, PART), min_size=1, max_size=9))
def test_load_pairs_codes_give_back_every_pair(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]
) -> None:
    path = write(tmp_path_factory.getbasetemp(), "".join(f"{source}\t{target}\n" for source, target in pairs))
    examples = load(parse_source(f"pairs:{path}"))
    for side, position in ((examples.inputs, 0), (examples.targets, 1)):
        found = [bytes(code for code in row if code != PADDING).decode() for row in side.tolist()]
        assert found == [pair[position] for pair in pairs]
        assert side.shape[1] == max(len(pair[position].encode()) for pair in pairs)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        pytest.param(
            "a\tb\na b\n", "", ", line 2: line must be source, target with a tab between, got 'a b'", id="tab"
        ),
        pytest.param("a\tb\tc\n", "", r", line 1: .* got 'a\\tb\\tc'. Mend the line", id="three"),
        pytest.param("a\tb\n", ",key=true", ", line 1: line must be source, target, key with a tab", id="no-key"),
        pytest.param("a\tb\n\n\n\tb\n", "", r", line 4: .* got '\\tb'", id="no-source"),
        pytest.param("a\t \n", "", r", line 1: .* got 'a\\t '", id="blank-target"),
        pytest.param(
            "a\tb\na q\tb\n",
            ",source_symbols=a|b",
            ", line 2: source must have symbols of source_symbols, got 'q'. Add it there, at every site alike",
            id="source-symbol",
        ),
        pytest.param(
            "a\tb\n", ",target_symbols=a", ", line 1: target must have symbols of target_sy", id="target-symbol"
        ),
        pytest.param("", "", ": file must have at least 1 pair, got none", id="empty"),
        pytest.param("\n\r\n", "", ": file must have at least 1 pair, got none", id="empty-lines"),
        pytest.param(b"a\tb\n\xff\tc\n", "", ": text must be UTF-8, got 0xff at byte offset 4", id="encoding"),
    ],
)
def test_load_pairs_unusable_file_is_refused(tmp_path: Path, content: str | bytes, options: str, message: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(DataError, match=f"^Pairs file {re.escape(str(path))}{message}"):
        load(parse_source(f"pairs:{path}{options}"))


def test_load_keys_pairs_without_keys_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "a\tb\n")
    with pytest.raises(DataError, match=r"must have a natural key for a partition by key, got none\. Add ,key=true"):
        load_keys(parse_source(f"pairs:{path}"))
