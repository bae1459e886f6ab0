"""Saved models: a checkpoint or the model of a finished run, read back as a learner's name and its tensors.

A saved model is a safetensors file. Its header names the learner with its parameters, so that the file alone tells what it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from models.learner import Learner
from models.zoo import build_learner
from wire.errors import LearnerError
from wire.saved import LEARNER_KEY, OPTIMIZER_PREFIX
from wire.spec import Named
from wire.tensors import Layout


@dataclass(frozen=True, slots=True)
class SavedModel:
    """What a saved model holds.

    Attributes:
        learner: Name and parameters of its learner.
        state: The learner's state, on the CPU.
    """

    learner: Named
    state: Mapping[str, Tensor] = field(repr=False)


def read_saved(path: Path) -> SavedModel:
    """Read a saved model. Nothing in the file can run.

    Raises:
        LearnerError: The file is no safetensors file, or does not name its learner.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            names = [name for name in file.keys() if not name.startswith(OPTIMIZER_PREFIX)]  # noqa: SIM118 - it is no mapping
            state = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise LearnerError(f"Saved model {path}: must be a readable safetensors file, got: {error}.") from error
    try:
        return SavedModel(Named.model_validate_json(header.get(LEARNER_KEY, "")), state)
    except ValidationError as error:
        raise LearnerError(
            f"Saved model {path}: the header must name the learner, got {header.get(LEARNER_KEY, 'none')!r:.200}. "
            "Take a model that a run of this release has saved."
        ) from error


def restore(path: Path) -> tuple[Learner, SavedModel]:
    """Read a saved model and build its learner.

    Raises:
        LearnerError: As `read_saved` and `build_learner`, or the file lacks a tensor of the learner's, or has one of another shape.
    """
    saved = read_saved(path)
    learner = build_learner(saved.learner)
    for entry in Layout.of(learner.init(0)).entries:
        tensor = saved.state.get(entry.name)
        if tensor is None or tuple(tensor.shape) != entry.shape:
            found = "none" if tensor is None else f"{tuple(tensor.shape)}"
            raise LearnerError(
                f"Saved model {path}: tensor {entry.name} of learner {saved.learner.name} must have shape {entry.shape}, "
                f"got {found}. Take a model that a run of this release has saved."
            )
    return learner, saved
