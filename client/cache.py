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

    def get(self, sha256: bytes) -> Vector | None:
        """Return a model that is here, float32 (parameters,), mapped into memory; writes to it stay private."""
        path = self._path(sha256)
        if not path.exists():
            return None
        path.touch()
        return np.memmap(path, dtype="<f4", mode="c")

    def begin(self, sha256: bytes) -> "PartialModel":
        """Open a model for download, with what an earlier try left of it."""
        return PartialModel(self._path(sha256).with_suffix(".part"), self._path(sha256), sha256)

    def prune(self) -> None:
        """Delete all but the newest models, and all but the newest partial one."""
        for pattern, kept in (("*.f32", MODELS_KEPT), ("*.part", 1)):
            by_age = sorted(self._folder.glob(pattern), key=lambda path: path.stat().st_mtime_ns, reverse=True)
            for path in by_age[kept:]:
                path.unlink(missing_ok=True)

    def _path(self, sha256: bytes) -> Path:
        return self._folder / f"{sha256.hex()}.f32"


class PartialModel:
    """A model that is being downloaded into a file. Use as a context manager."""

    def __init__(self, path: Path, final_path: Path, sha256: bytes) -> None:
        self._path = path
        self._final_path = final_path
        self._sha256 = sha256
        self._digest = hashlib.sha256()
        self.received_bytes = 0

    def __enter__(self) -> "PartialModel":
        self._file: BinaryIO = self._path.open("a+b")
        self._file.seek(0)
        while block := self._file.read(1 << 20):
            self._digest.update(block)
            self.received_bytes += len(block)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

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
