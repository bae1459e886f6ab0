"""A coordinator's folder: one process at a time has it, whatever became of the one before."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from server.errors import ConfigurationError, LeaseTakenError
from server.folder import held_folder, kept

ROOT = Path(__file__).parents[2]

HOLD = """
import sys
from pathlib import Path
from server.folder import held_folder
with held_folder(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_held_folder_of_another_process_is_refused_until_that_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "folder"
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        message = f"folder: must be used by one process at a time, got another one beside process {process.pid}\\."
        with pytest.raises(LeaseTakenError, match=message), held_folder(folder):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait(20)
        with held_folder(folder):
            assert (folder / "lock").read_text() == str(os.getpid())


def test_held_folder_is_free_after_the_context(tmp_path: Path) -> None:
    for _ in range(2):
        with held_folder(tmp_path), pytest.raises(LeaseTakenError), held_folder(tmp_path):
            pass


def test_held_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(ConfigurationError, match="file: must be writable, got: File exists"),
        held_folder(tmp_path / "file"),
    ):
        pass


def test_kept_makes_a_private_file_once(tmp_path: Path) -> None:
    path = tmp_path / "coordinator-id"
    assert kept(path, "first") == "first"
    assert kept(path, "second") == "first"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_kept_after_a_crash_while_it_was_made_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "coordinator-id"
    (tmp_path / "coordinator-id.tmp").write_text("ha")
    assert kept(path, "whole") == "whole"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_kept_empty_file_is_refused(tmp_path: Path) -> None:
    # An empty token would ask nobody for one.
    (tmp_path / "coordinator-id").write_text("\n")
    with pytest.raises(ConfigurationError, match="coordinator-id: must hold a line of text, got none"):
        kept(tmp_path / "coordinator-id", "new")


def test_kept_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "coordinator-id").mkdir()
    with pytest.raises(ConfigurationError, match="coordinator-id: must be readable and writable, got: Is a directory"):
        kept(tmp_path / "coordinator-id", "new")
