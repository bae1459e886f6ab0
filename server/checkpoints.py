"""The models of a run's last rounds, one file for each in a folder."""

import contextlib
from pathlib import Path

from server.errors import ConflictError, StoreError
from server.model import Model, read_checkpoint, write_checkpoint
from server.records import RoundRecord, RunRecord
from wire.saved import LEARNER_KEY
from wire.tensors import Layout

CHECKPOINTS_KEPT = 2


def checkpoint_path(folder: Path, round_number: int) -> Path:
    """Return where the model after a round lies."""
    return folder / f"round-{round_number:07d}.safetensors"


def last_checkpoint(folder: Path, run: RunRecord) -> Path:
    """Return the model of a run's last committed round, in the folder of all runs.

    Raises:
        ConflictError: No round is committed yet.
        StoreError: The checkpoint is gone.
    """
    if run.round_number == 0:
        raise ConflictError(f"Run {run.run_id}: at least one round must be committed before it has a model, got none.")
    path = checkpoint_path(folder / run.run_id, run.round_number)
    if not path.is_file():
        raise StoreError(f"Checkpoint {path}: must be a file, got none. Restore it from a backup.")
    return path


class Checkpoints:
    """Keeps the last models of a run. Synchronous and slow for large models: call it in a thread."""

    def __init__(self, folder: Path, is_synced: bool = True) -> None:
        """Keep them in `folder`, which is made. Without syncing, a file outlives this process, but perhaps not a crash of the machine."""
        self._folder = folder
        self._is_synced = is_synced

    def write(self, run: RunRecord, round_number: int, model: Model) -> None:
        """Keep the model after a round of `run`. Raises `StoreError`; no other round's file was changed."""
        header = {
            LEARNER_KEY: run.spec.learner.model_dump_json(),
            "run": run.run_id,
            "round": str(round_number),
            "spec_sha256": run.spec.sha256,
        }
        write_checkpoint(checkpoint_path(self._folder, round_number), model, header, self._is_synced)

    def read(self, run: RunRecord, layout: Layout | None) -> Model:
        """Return the model after the last committed round of `run`, of any layout if none is given.

        Raises:
            StoreError: It is missing, damaged or another.
        """
        path = checkpoint_path(self._folder, run.round_number)
        model = read_checkpoint(path, layout)
        if model.sha256.hex() != run.model_sha256:
            raise StoreError(
                f"Checkpoint {path}: SHA-256 must be that of the run's last round, {run.model_sha256[:16]}, "
                f"got {model.sha256.hex()[:16]}."
            )
        return model

    def read_first(self) -> Model | None:
        """Return the model before the first round if a client has drawn one. Raises `StoreError` when it is damaged."""
        path = checkpoint_path(self._folder, 0)
        return read_checkpoint(path, None) if path.is_file() else None

    def read_next(self, run: RunRecord, record: RoundRecord, layout: Layout) -> Model:
        """Return the model of a round that is applied but not committed yet. Raises `StoreError` as `read`."""
        return self.read(run.with_(round_number=record.number, model_sha256=record.model_sha256), layout)

    def prune(self, round_number: int) -> None:
        """Delete what is older than the round, which is committed, and the last one before it."""
        with contextlib.suppress(OSError):  # a file too many is no reason to end a run
            newest = checkpoint_path(self._folder, round_number)
            older = sorted(path for path in self._folder.glob("round-*.safetensors") if path.name < newest.name)
            # Whoever was killed while it wrote has left a file of another name.
            for path in [*older[: 1 - CHECKPOINTS_KEPT], *self._folder.glob("round-*.tmp")]:
                path.unlink()
