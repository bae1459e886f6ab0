"""The model that a client received last, by the SHA-256 of its bytes, and what has arrived of the next one.

In memory alone: a round's model is of use only in that round, and no weights stay on a client's disk.
"""

from wire.memory import VectorPool
from wire.slices import Assembly
from wire.tensors import Vector, vector_bytes, vector_from_bytes


class ModelCache:
    """One model, whole or arriving. Not safe for concurrent use."""

    def __init__(self) -> None:
        self._vectors = VectorPool()
        self._size = 0
        self._incoming: Assembly | None = None

    def get(self, sha256: bytes) -> Vector | None:
        """Return a model that is here whole, float32 (parameters,), not to be written to."""
        incoming = self._incoming
        if incoming is None or incoming.sha256 != sha256 or not incoming.is_checked:
            return None
        return vector_from_bytes(incoming.buffer)

    def begin(self, sha256: bytes, size: int) -> Assembly:
        """Return where a model of `size` parameters is to be written, with what an earlier try has left there.

        Any other model makes room for it.
        """
        if self._incoming is None or self._incoming.sha256 != sha256:
            self._incoming = None
            if size != self._size:
                # A pool keeps memory of every size that it was asked for, and a client lives through many runs.
                self._vectors, self._size = VectorPool(), size
            self._incoming = Assembly(vector_bytes(self._vectors.take(size)), sha256)
        return self._incoming

    def drop(self) -> None:
        """Forget the model: what has arrived is not what its hash says."""
        self._incoming = None
