"""A model as one flat float32 vector and a layout of named tensors.

Aggregation, checkpoints and the wire see only the vector. Floating tensors travel as float32, whatever their own type (bfloat16 and float16
are widened, which is exact; float64 is rounded); integer tensors, such as batch norm's counters, stay where they are.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wire.errors import LayoutError

if TYPE_CHECKING:
    from torch import Tensor

HAS_TORCH = find_spec("torch") is not None
"""Whether torch is installed. A coordinator can do without it; whatever trains, evaluates or draws a model cannot."""

Vector = npt.NDArray[np.float32]
State = Mapping[str, "Tensor"]

_DTYPES = frozenset({"float16", "bfloat16", "float32", "float64"})
"""Types of tensors that travel, as layouts name them."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One named tensor of a layout: its shape, its own dtype, and where it starts in the vector (in coordinates)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """The order, names and shapes in which tensors lie in a flat vector."""

    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, state: State) -> "Layout":
        """Return the layout of the floating tensors of `state`, in its order.

        Raises:
            LayoutError: `state` has no floating tensor, or a complex one.
        """
        entries, offset = [], 0
        for name, tensor in state.items():
            if tensor.is_complex():
                raise LayoutError(f"Tensor {name!r}: dtype must be real, got {tensor.dtype}.")
            if tensor.is_floating_point():
                entry = Entry(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), offset)
                entries.append(entry)
                offset += entry.size
        if offset == 0:
            raise LayoutError("A state must hold at least one floating tensor that is not empty, got none.")
        return cls(tuple(entries))

    @classmethod
    def parse(cls, text: str) -> "Layout":
        """Return the layout whose canonical JSON is `text`, which nobody is trusted for.

        Raises:
            LayoutError: It is none.
        """
        try:
            rows: list[tuple[Any, Any, Any]] = [(name, shape, dtype) for name, shape, dtype in json.loads(text)]
        except (ValueError, TypeError, RecursionError) as error:
            raise LayoutError(f"Layout: must be a list of name, shape and dtype, got: {error}.") from error
        entries, offset = [], 0
        for name, shape, dtype in rows:
            if not isinstance(name, str) or not _is_shape(shape) or str(dtype) not in _DTYPES:
                raise LayoutError(
                    "Layout: a row must have a name, a shape of whole numbers and a floating dtype, "
                    f"got {[name, shape, dtype]!r:.200}."
                )
            entry = Entry(name, tuple(shape), dtype, offset)
            entries.append(entry)
            offset += entry.size
        layout = cls(tuple(entries))
        if offset == 0 or len({entry.name for entry in entries}) < len(entries) or layout.json != text:
            raise LayoutError("Layout: must be canonical JSON with coordinates and no name twice, got another one.")
        return layout

    @cached_property
    def size(self) -> int:
        """Number of coordinates of the vector."""
        return sum(entry.size for entry in self.entries)

    @property
    def byte_count(self) -> int:
        """Length of the vector in bytes on the wire."""
        return 4 * self.size

    @cached_property
    def json(self) -> str:
        """Canonical JSON: what `sha256` covers and what checkpoints carry."""
        rows = [[entry.name, list(entry.shape), entry.dtype] for entry in self.entries]
        return json.dumps(rows, separators=(",", ":"))

    @cached_property
    def sha256(self) -> bytes:
        """SHA-256 of the canonical JSON, 32 bytes."""
        return hashlib.sha256(self.json.encode()).digest()

    def flatten(self, state: State, out: Vector | None = None) -> Vector:
        """Copy the floating tensors of `state` into a float32 vector of shape (size,): `out`, or a new one.

        Raises:
            LayoutError: `state` has another layout.
        """
        if (found := Layout.of(state)) != self:
            raise LayoutError(self._difference(found))
        import torch

        vector = np.empty(self.size, dtype=np.float32) if out is None else out
        target = torch.from_numpy(vector)
        for entry in self.entries:
            target[entry.offset : entry.offset + entry.size].copy_(state[entry.name].detach().reshape(-1))
        return vector

    def views(self, vector: Vector) -> "dict[str, Tensor]":
        """Return the named tensors as float32 views on `vector`: nothing is copied, and a write goes to the vector.

        Raises:
            LayoutError: `vector` is not float32 of shape (size,).
        """
        import torch

        self._check(vector)
        parts = torch.from_numpy(vector).split_with_sizes([entry.size for entry in self.entries])
        return {entry.name: part.view(entry.shape) for entry, part in zip(self.entries, parts, strict=True)}

    def arrays(self, vector: Vector) -> dict[str, Vector]:
        """Return what `views` does as arrays, without torch. Raises as `views`."""
        self._check(vector)
        parts = {entry: vector[entry.offset : entry.offset + entry.size] for entry in self.entries}
        return {entry.name: part.reshape(entry.shape) for entry, part in parts.items()}

    def _check(self, vector: Vector) -> None:
        if vector.shape != (self.size,) or vector.dtype != np.float32:
            raise LayoutError(f"Vector: shape must be ({self.size},) float32, got {vector.shape} {vector.dtype}.")

    def _difference(self, found: "Layout") -> str:
        for ours, theirs in zip(self.entries, found.entries, strict=False):
            if ours != theirs:
                return (
                    f"Tensor {ours.name!r}: shape must be {ours.shape} {ours.dtype}, "
                    f"got {theirs.name!r} {theirs.shape} {theirs.dtype}."
                )
        return f"Layout: must have {len(self.entries)} tensors, got {len(found.entries)}."


def _is_shape(found: object) -> bool:
    return isinstance(found, list) and all(type(length) is int and 0 <= length < 1 << 40 for length in found)


def vector_bytes(vector: Vector) -> memoryview:
    """Return the vector's bytes as they go over the wire (little-endian float32), without a copy on little-endian machines."""
    return np.ascontiguousarray(vector, dtype="<f4").data.cast("B")


def vector_from_bytes(data: bytes | bytearray | memoryview) -> Vector:
    """Return the vector that lies in `data`, without a copy on little-endian machines; read-only if `data` is.

    Raises:
        LayoutError: The length is not a multiple of 4.
    """
    if len(data) % 4:
        raise LayoutError(f"Vector: length must be a multiple of 4 bytes, got {len(data)}.")
    return np.frombuffer(data, dtype="<f4").astype(np.float32, copy=False)
