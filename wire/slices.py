"""Large payloads in slices: cutting them, and putting them together again with a check of order, length and SHA-256."""

import hashlib
from collections.abc import Iterator

from wire.errors import TransferError
from wire.frames import Part
from wire.protocol import SLICE_BYTES


def cut(data: memoryview, offset: int = 0) -> Iterator[Part]:
    """Yield slices from `offset` to the end, each of at most `SLICE_BYTES`, without a copy."""
    for start in range(offset, len(data), SLICE_BYTES):
        yield Part(start, data[start : start + SLICE_BYTES])


class Assembly:
    """A payload that arrives slice by slice into a buffer of its size. Not safe for concurrent use.

    Attributes:
        buffer: Where it goes.
        sha256: What it must be when it is complete, 32 bytes.
        received_bytes: How much of it is there.
        is_checked: Whether it is whole and what it must be.
    """

    def __init__(self, buffer: memoryview, sha256: bytes) -> None:
        self.buffer = buffer
        self.received_bytes = 0
        self.is_checked = False
        self.sha256 = sha256
        self._digest = hashlib.sha256()

    @property
    def is_complete(self) -> bool:
        """Whether every byte has arrived."""
        return self.received_bytes == len(self.buffer)

    def write(self, offset: int, data: bytes | memoryview) -> None:
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
        if (found := self._digest.digest()) != self.sha256:
            raise TransferError(f"Payload: SHA-256 must be {self.sha256.hex()}, got {found.hex()}.")
        self.is_checked = True
