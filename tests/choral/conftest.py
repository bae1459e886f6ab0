"""The command line, run in this process."""

import logging
import sys
from collections.abc import Iterator

import pytest

from choral import cli
from tests.choral.command_line import WIDTH, Choral, Outcome


@pytest.fixture
def choral(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Choral]:
    """Run the command line in this process, on a terminal of 80 columns that shows no colours."""
    root = logging.getLogger()
    handlers = root.handlers[:]
    levels = {logger: logger.level for logger in (root, *map(logging.getLogger, ("client", "server")))}

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["choral", *arguments])
        monkeypatch.setenv("COLUMNS", str(WIDTH))
        monkeypatch.setenv("NO_COLOR", "1")
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        code = ended.value.code
        return Outcome(code if isinstance(code, int) else 0, printed.out, printed.err)

    yield run
    root.handlers[:] = handlers
    for logger, level in levels.items():
        logger.setLevel(level)
