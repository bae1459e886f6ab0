import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.data import load, parse_source
from client.data.options import TextOptions
from client.data.text import load_text
from models.errors import DataError
from models.learner import Examples


def load_windows(path: Path, window: int) -> Examples:
    return load(parse_source(f"text:{path},window={window}"))


def test_load_text_file_gives_windows_and_the_text_one_byte_later(tmp_path: Path) -> None:
    path = tmp_path / "play.txt"
    path.write_text("abcdefgh", encoding="utf-8")
    examples = load_windows(path, 3)
    assert examples.inputs.dtype == examples.targets.dtype == torch.int64
    assert examples.inputs.tolist() == [[97, 98, 99], [100, 101, 102]]
    assert examples.targets.tolist() == [[98, 99, 100], [101, 102, 103]]


def test_load_text_folder_takes_txt_files_by_name_and_windows_do_not_cross_them(tmp_path: Path) -> None:
    for name, text in (("b.txt", "éa"), ("a.TXT", "abcd"), ("c.txt", ""), ("notes.md", "xxxxx"), (".d.txt", "yyyyy")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "e.txt").mkdir()
    examples = load_windows(tmp_path, 2)
    assert examples.inputs.tolist() == [[97, 98], [0xC3, 0xA9]]
    assert examples.targets.tolist() == [[98, 99], [0xA9, 97]]


@given(text=st.text(max_size=200), window=st.integers(1, 20))
def test_load_text_any_text_is_cut_without_loss_up_to_its_last_window(
    tmp_path_factory: pytest.TempPathFactory, text: str, window: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.txt"
    encoded = text.encode()
    path.write_bytes(encoded)
    if len(encoded) <= window:
        with pytest.raises(DataError, match="must be at least"):
            load_text(path, TextOptions(window=window))
        return
    examples = load_text(path, TextOptions(window=window))
    count = (len(encoded) - 1) // window
    assert bytes(examples.inputs.flatten().tolist()) == encoded[: count * window]
    assert bytes(examples.targets.flatten().tolist()) == encoded[1 : count * window + 1]


def test_load_text_too_short_names_what_is_missing(tmp_path: Path) -> None:
    for name, length in (("a.txt", 80), ("b.txt", 9)):
        (tmp_path / name).write_text("x" * length, encoding="utf-8")
    message = f"Text {tmp_path}: text must be at least 81 bytes long for one window, got 80 in the longest file"
    with pytest.raises(DataError, match=re.escape(message)):
        load(parse_source(f"text:{tmp_path}"))


def test_load_text_other_encoding_names_file_and_offset(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("naïve".encode("latin-1"))
    message = f"Text file {path}: text must be UTF-8, got 0xef at byte offset 2."
    with pytest.raises(DataError, match=re.escape(message)):
        load_windows(tmp_path, 2)


def test_load_text_folder_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.md").touch()
    with pytest.raises(DataError, match=re.escape(f"Text folder {tmp_path}: folder must hold .txt files, got none")):
        load_windows(tmp_path, 2)
