"""Models on the client's disk, by the SHA-256 of their bytes: downloaded once, resumed after a break, and mapped instead of read."""

import hashlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from wire.errors import TransferError
from wire.tensors import Vector

MODELS_KEPT = 2


class ModelCache:
    """The newest models that a client has received."""

    def __init__(self, folder: Path) -> None:
        """Use `folder`, which is made if it does not exist."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._checked: set[bytes] = set()

    def get(self, sha256: bytes) -> Vector | None:
        """Return a model that is here, float32 (parameters,), mapped into memory; writes to it stay private.

        A file of an earlier process is read whole the first time, and deleted if it is not what its name says: a power cut may have cost
        its bytes, and training from another model than the round's would spoil the round.
        """
        path = self._path(sha256)
        if not path.exists():
            return None
        if sha256 not in self._checked:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").digest()
            if found != sha256:
                path.unlink(missing_ok=True)
                return None
            self._checked.add(sha256)
        path.touch()
        return np.memmap(path, dtype="<f4", mode="c")

    def begin(self, sha256: bytes) -> "PartialModel":
        """Open a model for download. Call `resume` to go on from what an earlier try left of it."""
        return PartialModel(self._path(sha256), sha256, self._checked)

    def prune(self) -> None:
        """Delete all but the newest models, and all but the newest partial one."""
        for pattern, kept in (("*.f32", MODELS_KEPT), ("*.part", 1)):
            by_age = sorted(self._folder.glob(pattern), key=lambda path: path.stat().st_mtime_ns, reverse=True)
            for path in by_age[kept:]:
                path.unlink(missing_ok=True)
        self._checked -= {sha256 for sha256 in self._checked if not self._path(sha256).exists()}

    def _path(self, sha256: bytes) -> Path:
        return self._folder / f"{sha256.hex()}.f32"


class PartialModel:
    """A model that is being downloaded into a file. Use as a context manager."""

    def __init__(self, final_path: Path, sha256: bytes, checked: set[bytes]) -> None:
        self._path = final_path.with_suffix(".part")
        self._final_path = final_path
        self._sha256 = sha256
        self._checked = checked
        self._digest = hashlib.sha256()
        self.received_bytes = 0

    def __enter__(self) -> "PartialModel":
        self._file: BinaryIO = self._path.open("a+b")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def resume(self) -> None:
        """Read what an earlier try left. Takes a while for a large model, so it is for a thread."""
        self._file.seek(0)
        while block := self._file.read(1 << 20):
            self._digest.update(block)
            self.received_bytes += len(block)

    def write(self, data: bytes) -> None:
        """Append one slice."""
        self._file.write(data)
        self._digest.update(data)
        self.received_bytes += len(data)

    def finish(self, total_bytes: int) -> None:
        """Give the file its final name.

        Raises:
            TransferError: It is not the model that was asked for. What had arrived is deleted, so that the next try starts anew.
        """
        self._file.flush()
        if self.received_bytes != total_bytes or self._digest.digest() != self._sha256:
            self._path.unlink(missing_ok=True)
            raise TransferError(
                f"Model {self._sha256[:8].hex()}: must have {total_bytes} bytes of that SHA-256, got {self.received_bytes} bytes "
                f"of {self._digest.hexdigest()[:16]}."
            )
        self._path.replace(self._final_path)
        self._checked.add(self._sha256)
