"""What all tests share: repeatable hypothesis runs, one torch thread, and a plain word on skipped tests; tiny bases and a Redis server."""

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from models.bases import FOLDER_VARIABLE
from tests.models.foundation import save_bert, save_gpt2, save_t5
from tests.server.store.redis_server import RedisServer

settings.register_profile("choral", deadline=None, derandomize=True, database=None)
settings.load_profile("choral")
torch.set_num_threads(1)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which tests were skipped and what brings them. A reason reads "PROGRAM is not installed: COMMAND"."""
    reports = terminalreporter.stats.get("skipped", [])
    reasons = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in reports)
    for reason, count in sorted(reasons.items()):
        program, _, command = reason.partition(" is not installed: ")
        tests = f"{count} test{'s' * (count > 1)}"
        line = f"that need {program}. To run them: {command}" if command else f"for this reason: {reason}"
        terminalreporter.write_line(f"Skipped: {tests} {line}", yellow=True)


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed: apt-get install redis-server")
    server = RedisServer(tmp_path)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the bases that tests and examples of the zoo name, tiny and with random weights."""
    folder = tmp_path_factory.mktemp("bases")
    save_gpt2(folder / "gpt2")
    save_gpt2(folder / "gpt2-comedies")
    save_bert(folder / "all-minilm-l6-v2")
    save_t5(folder / "t5")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER_VARIABLE, str(folder))
        yield folder
