"""What all tests share: repeatable hypothesis runs, one torch thread, and a plain word on skipped tests at the end."""

from collections import Counter

import pytest
import torch
from hypothesis import settings

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
