"""Reading local data says so before it begins: on a terminal in a line that goes away, elsewhere in the log."""

import io
import logging
from pathlib import Path

import pytest
from rich.console import Console

from choral.loading import load_visibly
from client.data import load_local
from models.errors import DataError
from tests.choral.command_line import Choral

SOURCE = "digits,blocks=0|3"


@pytest.fixture
def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_load_visibly_on_a_terminal_shows_a_line_with_the_time_and_logs_nothing(
    terminal: Console, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    data = load_visibly(SOURCE, 0.2, 0, terminal)
    assert f"reading data: {SOURCE} 0:00:00" in printed(terminal)
    assert caplog.messages == []
    expected = load_local(SOURCE, 0.2, 0)
    assert data.kind == expected.kind
    assert data.training.inputs.equal(expected.training.inputs)
    assert data.held_out.inputs.equal(expected.held_out.inputs)


def test_load_visibly_elsewhere_logs_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    console = Console(file=io.StringIO(), width=80)
    load_visibly(SOURCE, 0.2, 0, console)
    assert caplog.messages == [f"reading data: {SOURCE}"]
    assert printed(console) == ""


def test_load_visibly_keeps_brackets_that_look_like_markup(terminal: Console) -> None:
    with pytest.raises(DataError, match="path must exist"):
        load_visibly("npz:[red]x[/red].npz", 0.2, 0, terminal)
    assert "reading data: npz:[red]x[/red].npz" in printed(terminal)


@pytest.mark.parametrize("command", [("join", "127.0.0.1:1"), ("serve",)], ids=" ".join)
def test_command_says_what_it_reads_before_it_has_read_it(
    choral: Choral, tmp_path: Path, command: tuple[str, ...]
) -> None:
    path = tmp_path / "none.npz"
    outcome = choral(*command, "--folder", str(tmp_path / "state"), "--data", f"npz:{path}")
    assert outcome.code == 1
    said, error = outcome.err.splitlines()
    assert said.endswith(f" INFO reading data: npz:{path}")
    assert error.startswith(f"Error: NPZ file {path}: path must exist")
