"""The global model of a run: made from its spec, moved by the mean of a round, and kept as a checkpoint.

A checkpoint is a safetensors file: the model's tensors under their own names, the server optimizer's under `optimizer/`, and a header
with learner, run, round, spec hash and layout, and with the SHA-256 of the model and of whatever lies beside it. It is written to a
temporary name, fsynced and renamed, so that a file with its final name is whole.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from server.errors import StoreError
from wire.errors import LayoutError
from wire.evaluation import Evaluation
from wire.memory import VectorPool
from wire.saved import LAYOUT_KEY, OPTIMIZER_PREFIX
from wire.spec import RunSpec
from wire.tensors import Layout, Vector, vector_bytes

if TYPE_CHECKING:
    from models import Examples, Learner

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Model:
    """A global model: its vector, float32 (parameters,), named by the SHA-256 of its bytes.

    Attributes:
        slots: The server optimizer's own tensors.
        constants: Tensors that do not travel, such as integer buffers.
    """

    vector: Vector = field(repr=False)
    sha256: bytes
    layout: Layout = field(repr=False)
    slots: Mapping[str, Array] = field(default_factory=dict, repr=False)
    constants: Mapping[str, Array] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, vector: Vector, layout: Layout, slots: Mapping[str, Array], constants: Mapping[str, Array]) -> "Model":
        """Make a model of a vector that nobody changes any more."""
        return cls(vector, hashlib.sha256(vector_bytes(vector)).digest(), layout, slots, constants)


class ModelShop:
    """Makes the models of one run, with torch. Synchronous and slow for large models: call it in a thread, one call at a time.

    Attributes:
        vectors: Memory for the run's models and contributions.
    """

    def __init__(self, spec: RunSpec) -> None:
        """Build the learner. Raises `LearnerError` when the spec names something that the zoo does not have."""
        # Here and below, because a coordinator may have no torch, which the zoo imports.
        from models import build_learner

        self.vectors = VectorPool()
        self._spec = spec
        # A learner that never evaluates needs no parameters of its own.
        self._learner: Learner = build_learner(spec.learner, "cpu" if spec.evaluate.on == "coordinator" else "meta")

    def initial(self) -> Model:
        """Return the model before the first round, drawn from the spec's seed."""
        from models import first_state

        state = first_state(self._learner, self._spec)
        layout = Layout.of(state)
        travelling = {entry.name for entry in layout.entries}
        constants = {name: tensor.numpy() for name, tensor in state.items() if name not in travelling}
        return Model.of(layout.flatten(state), layout, {}, constants)

    @property
    def contribution_layout(self) -> Layout:
        """What a contribution to this run holds."""
        return self._learner.contribution_layout

    def next(self, model: Model, mean: Vector, weight_total: int, round_number: int) -> Model:
        """Return the model after the server step on a round's mean, which is used up. `model` is left unchanged."""
        import torch

        from models import ServerOptimizer

        slots = {name: torch.tensor(slot) for name, slot in model.slots.items()}
        optimizer = ServerOptimizer(self._spec.server_in(round_number).optimizer, slots)
        vector = self.vectors.take(model.layout.size)
        np.copyto(vector, model.vector)
        state = model.layout.views(vector)
        result = self._learner.apply(state, self.contribution_layout.views(mean), optimizer, weight_total)
        if any(result[name].data_ptr() != tensor.data_ptr() for name, tensor in state.items() if tensor.numel()):
            vector = model.layout.flatten(result)
        kept = {name: slot.contiguous().numpy() for name, slot in optimizer.slots().items()}
        return Model.of(vector, model.layout, kept, model.constants)

    def evaluate(self, model: Model, data: "Examples") -> Evaluation:
        """Evaluate on the coordinator's own data. Raises `DataError` when it does not suit the learner."""
        self._learner.check(data)
        return self._learner.evaluate(model.layout.views(model.vector), data)


def write_checkpoint(path: Path, model: Model, header: Mapping[str, str], is_synced: bool = True) -> None:
    """Write a checkpoint so that it outlives this process from the moment this returns, and if it is synced, a crash of the machine.

    Raises:
        StoreError: The disk is full or the folder cannot be written. No file of the name `path` was changed.
    """
    tensors: dict[str, Array] = dict(model.layout.arrays(model.vector))
    tensors |= {OPTIMIZER_PREFIX + name: slot for name, slot in model.slots.items()}
    tensors |= model.constants
    own = {LAYOUT_KEY: model.layout.json, "sha256": model.sha256.hex(), **_digests(model)}
    temporary = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, {**header, **own})
        _sort_header(temporary)
        if is_synced:
            _sync(temporary)
        temporary.replace(path)
        if is_synced:
            _sync(path.parent)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StoreError(f"Checkpoint {path}: must be writable, got: {error}") from error


def read_checkpoint(path: Path, layout: Layout | None) -> Model:
    """Read a checkpoint of a model with this layout, or with whatever layout it names.

    Raises:
        StoreError: The file is missing, damaged, or of another layout.
    """
    header, tensors = read_tensors(path)
    try:
        layout = Layout.parse(header.get(LAYOUT_KEY, "")) if layout is None else layout
    except LayoutError as error:
        raise StoreError(f"Checkpoint {path}: {error}") from error
    if header.get(LAYOUT_KEY) != layout.json:
        raise StoreError(f"Checkpoint {path}: layout must be that of the run's learner, got another one.")
    model = model_of(tensors, layout, f"Checkpoint {path}")
    if model.sha256.hex() != header.get("sha256"):
        raise StoreError(f"Checkpoint {path}: SHA-256 must be {header.get('sha256')}, got {model.sha256.hex()}.")
    digests = _digests(model)
    for key in ("slots_sha256", "constants_sha256"):
        expected, found = header.get(key, "none"), digests.get(key, "none")
        if found != expected:
            raise StoreError(f"Checkpoint {path}: {key} must be {expected}, got {found}.")
    return model


def read_tensors(path: Path) -> tuple[Mapping[str, str], dict[str, Array]]:
    """Return the header and the tensors of a safetensors file. Raises `StoreError` when it cannot be read or is none."""
    try:
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
            return file.metadata() or {}, {name: file.get_tensor(name) for name in names}
    # The last two come of types that numpy does not have, such as bfloat16.
    except (OSError, SafetensorError, TypeError, AttributeError) as error:
        raise StoreError(f"Checkpoint {path}: must be a readable safetensors file, got: {error}") from error


def model_of(tensors: dict[str, Array], layout: Layout, subject: str) -> Model:
    """Make a model of the tensors of a file, which are used up.

    Raises:
        StoreError: One that the layout names is missing, or another. The sentence begins with `subject`.
    """
    vector = np.empty(layout.size, dtype=np.float32)
    for name, view in layout.arrays(vector).items():
        if name not in tensors or tensors[name].shape != view.shape or tensors[name].dtype != np.float32:
            raise StoreError(f"{subject}: tensor {name!r} must have shape {view.shape} float32, got another or none.")
        np.copyto(view, tensors.pop(name))
    slots = {
        name.removeprefix(OPTIMIZER_PREFIX): value
        for name, value in tensors.items()
        if name.startswith(OPTIMIZER_PREFIX)
    }
    constants = {name: value for name, value in tensors.items() if not name.startswith(OPTIMIZER_PREFIX)}
    return Model.of(vector, layout, slots, constants)


def _sort_header(path: Path) -> None:
    """Put the header's keys in order: safetensors writes them in another one each time, and equal models shall be equal files."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
        assert len(text) == size, "only the order changes"
        file.seek(8)
        file.write(text)


def _digests(model: Model) -> dict[str, str]:
    """Return the SHA-256 of what is not in the vector, by the header's key; none for what a model does not have."""
    parts = {"slots_sha256": model.slots, "constants_sha256": model.constants}
    return {key: _digest(tensors) for key, tensors in parts.items() if tensors}


def _digest(tensors: Mapping[str, Array]) -> str:
    """Return the SHA-256 of tensors with their names, types and shapes, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        # Types by torch's names, as ever.
        digest.update(f"{name} torch.{tensor.dtype} {tensor.shape}\n".encode())
        digest.update(tensor.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
