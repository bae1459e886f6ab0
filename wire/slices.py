"""Large payloads in slices: cutting them, and putting them together again with a check of order, length and SHA-256."""

import hashlib
from collections.abc import Iterator

import numpy as np

from wire.errors import TransferError
from wire.protocol import SLICE_BYTES


def cut(data: memoryview, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, slice) from `offset` to the end, each slice of at most `SLICE_BYTES`."""
    for start in range(offset, len(data), SLICE_BYTES):
        yield start, bytes(data[start : start + SLICE_BYTES])


class Assembly:
    """A payload that arrives slice by slice into a buffer of its own size. Not safe for concurrent use."""

    def __init__(self, total_bytes: int, sha256: bytes) -> None:
        # Not a bytearray: that is filled with zeros first, which for a large model holds up everything else for a while.
        self.buffer = np.empty(total_bytes, dtype=np.uint8).data
        self.received_bytes = 0
        self._expected = sha256
        self._digest = hashlib.sha256()

    @property
    def is_complete(self) -> bool:
        """Whether every byte has arrived."""
        return self.received_bytes == len(self.buffer)

    def write(self, offset: int, data: bytes) -> None:
        """Put one slice in its place and hash it. `hashlib` lets go of the interpreter lock for slices of this size.

        Raises:
            TransferError: The slice is empty, too large, out of order or goes past the end. Nothing was written.
        """
        if not 0 < len(data) <= SLICE_BYTES:
            raise TransferError(f"Slice at {offset}: length must be 1 to {SLICE_BYTES} bytes, got {len(data)}.")
        if offset != self.received_bytes:
            raise TransferError(f"Slice: offset must be {self.received_bytes}, got {offset}.")
        end = offset + len(data)
        if end > len(self.buffer):
            raise TransferError(f"Slice at {offset}: end must be at most {len(self.buffer)}, got {end}.")
        self.buffer[offset:end] = data
        self._digest.update(data)
        self.received_bytes = end

    def check(self) -> None:
        """Compare the whole with the announced SHA-256.

        Raises:
            TransferError: Bytes are missing or differ.
        """
        if not self.is_complete:
            raise TransferError(f"Payload: must have {len(self.buffer)} bytes, got {self.received_bytes}.")
        if (found := self._digest.digest()) != self._expected:
            raise TransferError(f"Payload: SHA-256 must be {self._expected.hex()}, got {found.hex()}.")
