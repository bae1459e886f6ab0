"""The learner of docs/own-learner.md is what the page says: 30 lines or so, and sound."""

import re
from pathlib import Path

import pytest

from tests.choral.command_line import Choral

PAGE = (Path(__file__).parents[2] / "docs" / "own-learner.md").read_text(encoding="utf-8")


def test_learner_of_the_page_passes_every_check(
    choral: Choral, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHORAL_LEARNERS", "")
    (code,) = re.findall(r"<!-- a test runs this -->\n```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(code.splitlines()) <= 35
    (tmp_path / "narrow.py").write_text(code)
    outcome = choral("models", "check", f"{tmp_path}/narrow.py:Narrow", "--data", "digits")
    assert outcome.code == 0, outcome.out + outcome.err
    assert re.search(r"narrow: (\d+) of \1 checks passed\.", outcome.out)
    shown = choral("models", "show", "narrow", "--learner", f"{tmp_path}/narrow.py:Narrow")
    assert "width" in shown.out
