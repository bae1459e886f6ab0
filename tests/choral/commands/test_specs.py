"""`choral spec check` and `choral submit` of runs that cannot be masked: one sentence, before anything is asked of a coordinator."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.choral.command_line import Choral, sentence
from tests.privacy.secagg.refusals import REFUSALS, SPEC


@pytest.mark.parametrize("command", [("spec", "check"), ("submit",)], ids=["check", "submit"])
@pytest.mark.parametrize(("document", "said"), REFUSALS.values(), ids=REFUSALS)
def test_spec_that_cannot_be_masked_is_one_sentence(
    choral: Choral, tmp_path: Path, command: tuple[str, ...], document: dict[str, Any], said: str
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(document))
    # What the spec itself refuses is named by its file.
    assert sentence(choral(*command, str(path))).startswith((said, said.replace("Run spec", str(path))))


def test_spec_that_can_be_masked_is_sound(choral: Choral, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(SPEC))
    outcome = choral("spec", "check", str(path))
    assert (outcome.code, outcome.err) == (0, "")
    assert "sound. masked: learner mlp" in " ".join(outcome.lines)


@pytest.mark.parametrize(
    ("secure", "said"),
    [
        (
            "{}",
            "Of 4 clients in secure aggregation, 0 may conspire with the coordinator and 0 may fall out once all are ready.",
        ),
        (
            "{corrupt_fraction: 0.25, dropout_fraction: 0.25}",
            "Of 4 clients in secure aggregation, 1 may conspire with the coordinator and 1 may fall out once all are ready.",
        ),
    ],
)
def test_spec_check_says_what_rounded_fractions_come_to(choral: Choral, tmp_path: Path, secure: str, said: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "name: masked\nlearner: {name: mlp}\nrounds: 1\ncohort: {size: 4}\n"
        f"privacy: {{secure_aggregation: {secure}}}\n"
    )
    outcome = choral("spec", "check", str(path))
    assert outcome.code == 0
    assert said in " ".join(" ".join(outcome.lines).split())
