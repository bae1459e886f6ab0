"""The learner of docs/own-learner.md is what the page says: 30 lines or so, and sound; and so are the commands about it."""

import re
from pathlib import Path

import pytest

from tests.choral.command_line import Choral

PAGE = (Path(__file__).parents[2] / "docs" / "own-learner.md").read_text(encoding="utf-8")


def test_learner_of_the_page_passes_every_check_and_is_trained_by_its_commands(
    choral: Choral, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHORAL_LEARNERS", "")
    (code,) = re.findall(r"<!-- a test runs this -->\n```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(code.splitlines()) <= 35
    monkeypatch.chdir(tmp_path)
    Path("narrow.py").write_text(code)
    commands = re.findall(r"^    choral (.+)$", PAGE, flags=re.MULTILINE)
    assert [command.split()[1] for command in commands] == ["check", "show", "spec", "run.yaml"]
    printed = []
    for command in commands:
        words, _, target = command.partition(" > ")
        outcome = choral(*words.split())
        assert outcome.code == 0, outcome.out + outcome.err
        printed.append(outcome.out)
        if target:
            Path(target).write_text(outcome.out)
    assert re.search(r"narrow: (\d+) of \1 checks passed\.", printed[0])
    assert "width" in printed[1]
    assert "2 of 2 rounds" in printed[3]
    assert Path("simulated/model.safetensors").is_file()
