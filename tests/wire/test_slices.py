import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.errors import TransferError
from wire.protocol import SLICE_BYTES
from wire.slices import Assembly, cut


def payload(size: int) -> bytes:
    return hashlib.shake_128(b"payload").digest(size)


def assembly_of(data: bytes) -> Assembly:
    return Assembly(memoryview(bytearray(len(data))), hashlib.sha256(data).digest())


@pytest.mark.parametrize("size", [1, SLICE_BYTES - 1, SLICE_BYTES, SLICE_BYTES + 1, 3 * SLICE_BYTES])
def test_cut_slices_follow_each_other_and_none_is_too_large(size: int) -> None:
    data = payload(size)
    slices = list(cut(memoryview(data)))
    assert [part.offset for part in slices] == list(range(0, size, SLICE_BYTES))
    assert all(0 < len(part.data) <= SLICE_BYTES for part in slices)
    assert b"".join(part.data for part in slices) == data


def test_cut_from_the_end_yields_nothing() -> None:
    assert list(cut(memoryview(b"abc"), 3)) == []


@given(st.data())
def test_assembly_that_breaks_off_anywhere_and_resumes_is_whole(data: st.DataObject) -> None:
    sent = payload(data.draw(st.integers(1, 3 * SLICE_BYTES + 2), label="size"))
    assembly = assembly_of(sent)
    for _ in range(data.draw(st.integers(0, 3), label="breaks")):
        for part in cut(memoryview(sent), assembly.received_bytes):
            arrived = data.draw(st.integers(0, len(part.data)), label="bytes")
            if arrived:
                assembly.write(part.offset, part.data[:arrived])
            if arrived < len(part.data):
                break
    for part in cut(memoryview(sent), assembly.received_bytes):
        assert not assembly.is_complete
        assembly.write(part.offset, part.data)
    assert assembly.is_complete
    assembly.check()
    assert bytes(assembly.buffer) == sent


@pytest.mark.parametrize(
    ("offset", "data", "message"),
    [
        pytest.param(0, b"ab", "offset must be 3, got 0", id="again"),
        pytest.param(4, b"ab", "offset must be 3, got 4", id="gap"),
        pytest.param(3, b"", f"Slice at 3: length must be 1 to {SLICE_BYTES} bytes, got 0", id="empty"),
        pytest.param(3, bytes(SLICE_BYTES + 1), f"got {SLICE_BYTES + 1}", id="oversize"),
        pytest.param(3, b"abcdefgh", "Slice at 3: end must be at most 10, got 11", id="past-the-end"),
    ],
)
def test_write_slice_that_breaks_a_rule_writes_nothing(offset: int, data: bytes, message: str) -> None:
    sent = payload(10)
    assembly = assembly_of(sent)
    assembly.write(0, sent[:3])
    with pytest.raises(TransferError, match=message):
        assembly.write(offset, data)
    assert bytes(assembly.buffer[:3]) == sent[:3]
    assert assembly.received_bytes == 3
    assembly.write(3, sent[3:])
    assembly.check()


def test_check_before_the_end_tells_how_much_is_missing() -> None:
    assembly = assembly_of(b"abc")
    assembly.write(0, b"ab")
    with pytest.raises(TransferError, match="must have 3 bytes, got 2"):
        assembly.check()


def test_check_other_content_names_both_hashes() -> None:
    assembly = assembly_of(b"abc")
    assembly.write(0, b"abd")
    expected, found = (hashlib.sha256(data).hexdigest() for data in (b"abc", b"abd"))
    with pytest.raises(TransferError, match=f"SHA-256 must be {expected}, got {found}"):
        assembly.check()
