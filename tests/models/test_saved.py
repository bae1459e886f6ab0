"""Saved models, written by the coordinator's own code and read back."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models import Examples, LearnerError, build_learner
from models.saved import read_saved, restore
from server.checkpoints import Checkpoints, checkpoint_path
from server.model import ModelShop
from server.records import RunRecord, RunState
from wire.saved import LEARNER_KEY
from wire.spec import parse_spec

SPEC = parse_spec(
    "{name: a, learner: {name: mlp, hidden: [8]}, rounds: 1, cohort: {size: 2}, server: {optimizer: {name: adam}}}"
)


def saved(folder: Path) -> Path:
    shop = ModelShop(SPEC)
    model = shop.initial()
    model = shop.next(model, model.vector.copy(), 1, 1)  # Adam leaves tensors of its own in the file
    Checkpoints(folder).write(RunRecord(run_id="a", spec=SPEC, state=RunState.RUNNING, submitted_time=0.0), 1, model)
    return checkpoint_path(folder, 1)


def test_read_saved_gives_the_learner_and_its_state_alone(tmp_path: Path, digits: Examples) -> None:
    found = read_saved(saved(tmp_path))
    assert found.learner == SPEC.learner
    learner = build_learner(found.learner)
    assert found.state.keys() == learner.init(0).keys()
    assert learner.evaluate(found.state, digits).example_count == len(digits)


def test_read_saved_of_another_file_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("no model")
    with pytest.raises(LearnerError, match=r"other\.safetensors: the header must name the learner, got 'none'\."):
        read_saved(tmp_path / "other.safetensors")
    for name in ("text", "absent"):
        with pytest.raises(LearnerError, match=rf"{name}\.safetensors: must be a readable safetensors file"):
            read_saved(tmp_path / f"{name}.safetensors")


def test_restore_gives_the_learner_of_what_is_saved(tmp_path: Path, digits: Examples) -> None:
    learner, found = restore(saved(tmp_path))
    assert found.learner == SPEC.learner
    assert learner.evaluate(found.state, digits).example_count == len(digits)


def test_restore_of_tensors_of_another_model_is_refused(tmp_path: Path) -> None:
    state = dict(build_learner(SPEC.learner).init(0))
    header = {LEARNER_KEY: SPEC.learner.model_dump_json()}
    path = tmp_path / "a.safetensors"
    for change, found in (({}, "none"), ({"1.bias": torch.zeros(9)}, r"\(9,\)")):
        save_file({**{name: tensor for name, tensor in state.items() if name != "1.bias"}, **change}, path, header)
        message = rf"^Saved model .*a\.safetensors: tensor 1\.bias of learner mlp must have shape \(8,\), got {found}\."
        with pytest.raises(LearnerError, match=message):
            restore(path)
