import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from privacy.files import write_file


@pytest.fixture(params=[0o000, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_write_file_mode_is_the_one_asked_for_whatever_the_mask(tmp_path: Path, umask: None, mode: int) -> None:
    path = tmp_path / "roster.json"
    path.write_text("old")
    write_file(path, b"new", mode)
    assert path.stat().st_mode & 0o777 == mode
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_write_file_on_a_full_disk_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "roster.json"
    path.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_file(path, b"new", 0o644)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
