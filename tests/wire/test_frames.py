"""Slices in bytes: what protobuf writes, and all that protobuf reads."""

from collections.abc import Callable
from typing import TypeVar

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from wire import federation_pb2 as pb
from wire.frames import Part, pack_download, pack_upload, unpack_download, unpack_upload

Kind = TypeVar("Kind", pb.UploadRequest, pb.DownloadResponse)

data = st.binary(min_size=1, max_size=300)
offsets = st.integers(0, (1 << 63) - 1)

VALID = [
    pytest.param(b"", id="nothing"),
    pytest.param(b"\x12\x00", id="empty slice"),
    pytest.param(b"\x12\x02\x12\x00", id="no data"),
    pytest.param(b"\x12\x05\x12\x01x\x08\x07", id="data before offset"),
    pytest.param(b"\x12\x04\x08\x07\x08\x09", id="two offsets"),
    pytest.param(b"\x12\x03\x12\x01x\x12\x02\x08\x07", id="a slice in two pieces"),
    pytest.param(b"\x12\x03\x12\x01x\x12\x03\x12\x01y", id="two slices"),
    pytest.param(b"\x12\x03\x12\x01x\xf8\x3f\x01", id="unknown field"),
    pytest.param(b"\x12\x83\x00\x12\x01x", id="long varint"),
    pytest.param(b"\x12\x03\x12\x01x\x0a\x00", id="header after slice"),
    pytest.param(b"\x12\x0e\x08" + b"\xff" * 9 + b"\x01\x12\x01x", id="offset of 64 bits"),
]
DAMAGED = [b"\x12", b"\x12\x05", b"\x12\x03\x12\x02x", b"\x12\x01\x08", b"\x12\xff\xff", b"\x12\x02\x12\x01x"]


def said(request: pb.UploadRequest | Part) -> pb.UploadRequest:
    """Return a request as a message, as far as this release knows its fields."""
    if isinstance(request, pb.UploadRequest):
        request.DiscardUnknownFields()
        return request
    return pb.UploadRequest(slice=pb.Slice(offset=request.offset, data=bytes(request.data)))


@given(offsets, data)
@example(0, b"x" * 127)
@example(127, b"x" * 128)
@example((1 << 63) - 1, b"x" * ((1 << 20) + 3))
def test_upload_is_what_protobuf_writes_and_comes_back(offset: int, content: bytes) -> None:
    packed = pack_upload(Part(offset, memoryview(content)))
    assert packed == pb.UploadRequest(slice=pb.Slice(offset=offset, data=content)).SerializeToString()
    part = unpack_upload(packed)
    assert isinstance(part, Part)
    assert (part.offset, bytes(part.data)) == (offset, content)


@given(data)
@example(b"x" * (1 << 20))
def test_download_is_what_protobuf_writes_and_comes_back(content: bytes) -> None:
    packed = pack_download(memoryview(content))
    assert packed == pb.DownloadResponse(data=content).SerializeToString()
    assert bytes(unpack_download(packed)) == content


def test_upload_header_is_left_to_protobuf() -> None:
    request = pb.UploadRequest(header=pb.UploadHeader(run_id="run", weight=3))
    assert unpack_upload(pack_upload(request)) == request


@pytest.mark.parametrize("message", VALID)
def test_unpack_upload_of_another_writer_is_what_protobuf_reads(message: bytes) -> None:
    expected = pb.UploadRequest.FromString(message)
    expected.DiscardUnknownFields()
    assert said(unpack_upload(message)) == expected


@pytest.mark.parametrize("message", DAMAGED)
def test_unpack_upload_of_damaged_bytes_is_an_error(message: bytes) -> None:
    with pytest.raises(DecodeError):
        pb.UploadRequest.FromString(message)
    with pytest.raises(DecodeError):
        unpack_upload(message)


@given(
    st.binary(max_size=40) | st.lists(st.sampled_from([0, 1, 2, 3, 8, 10, 0x12, 0x80, 0xFF]), max_size=16).map(bytes)
)
@example(b"\x0a\x00")
@example(b"\x0a\x01x\x0a\x01y")
def test_unpack_of_random_bytes_is_what_protobuf_reads(message: bytes) -> None:
    check_same(message, pb.UploadRequest, lambda: said(unpack_upload(message)))
    check_same(message, pb.DownloadResponse, lambda: pb.DownloadResponse(data=bytes(unpack_download(message))))


def check_same(message: bytes, kind: type[Kind], unpacked: Callable[[], Kind]) -> None:
    """Check that what is unpacked is what protobuf reads, or an error where that is one."""
    try:
        expected = kind.FromString(message)
    except DecodeError:
        with pytest.raises(DecodeError):
            unpacked()
    else:
        expected.DiscardUnknownFields()
        assert unpacked() == expected
