"""The calls of the contract, with slices that go to bytes and back in one copy instead of three.

protobuf copies a slice into a message, and from there into the bytes that travel; on a large model that takes a good part of a
round. What is written here is what protobuf writes, byte for byte; what is read and looks different is left to protobuf.

Source: "Encoding", Protocol Buffers documentation. https://protobuf.dev/programming-guides/encoding/
"""

from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from wire import federation_pb2 as pb
from wire.federation_pb2_grpc import FederationServiceStub

SERVICE = pb.DESCRIPTOR.services_by_name["FederationService"].full_name

# Tags: a field's number times 8, and 2 for what has a length, 0 for a number.
_DOWNLOAD_DATA = bytes([pb.DownloadResponse.DATA_FIELD_NUMBER << 3 | 2])
_UPLOAD_SLICE = bytes([pb.UploadRequest.SLICE_FIELD_NUMBER << 3 | 2])
_SLICE_OFFSET = bytes([pb.Slice.OFFSET_FIELD_NUMBER << 3])
_SLICE_DATA = bytes([pb.Slice.DATA_FIELD_NUMBER << 3 | 2])


@dataclass(frozen=True, slots=True)
class Part:
    """A slice of an upload: `pb.Slice`, without a copy of its data."""

    offset: int
    data: memoryview = field(repr=False)


def pack_download(data: memoryview) -> bytes:
    """Return `pb.DownloadResponse(data=data)` as bytes. `data` is not empty."""
    return b"".join((_DOWNLOAD_DATA, _varint(len(data)), data))


def unpack_download(message: bytes) -> memoryview:
    """Return the data of a `pb.DownloadResponse`. Raises `DecodeError`."""
    at = _end_of_head(message, 0, _DOWNLOAD_DATA)
    return memoryview(message)[at:] if at else memoryview(pb.DownloadResponse.FromString(message).data)


def pack_upload(request: pb.UploadRequest | Part) -> bytes:
    """Return an upload's header, or `pb.UploadRequest(slice=...)`, as bytes. The data of a part is not empty."""
    if isinstance(request, pb.UploadRequest):
        return request.SerializeToString()
    # A number that is zero is not written.
    offset = _SLICE_OFFSET + _varint(request.offset) if request.offset else b""
    head = offset + _SLICE_DATA + _varint(len(request.data))
    return b"".join((_UPLOAD_SLICE, _varint(len(head) + len(request.data)), head, request.data))


def unpack_upload(message: bytes) -> pb.UploadRequest | Part:
    """Return a slice as a part, and anything else as the message that it is. Raises `DecodeError`."""
    if at := _end_of_head(message, 0, _UPLOAD_SLICE):
        offset = 0
        if message[at : at + 1] == _SLICE_OFFSET:
            offset, at = _read_varint(message, at + 1)
        if at and (at := _end_of_head(message, at, _SLICE_DATA)):
            return Part(offset, memoryview(message)[at:])
    request = pb.UploadRequest.FromString(message)
    if request.HasField("slice"):
        return Part(request.slice.offset, memoryview(request.slice.data))
    return request


class Stub(FederationServiceStub):
    """A client's side of the contract. Downloads yield the data of their slices; uploads take parts beside the header."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        super().__init__(channel)  # type: ignore[no-untyped-call]
        self.Download: Any = channel.unary_stream(
            f"/{SERVICE}/Download", pb.DownloadRequest.SerializeToString, unpack_download
        )
        self.Upload: Any = channel.stream_stream(f"/{SERVICE}/Upload", pack_upload, pb.UploadResponse.FromString)


def add_to_server(service: Any, server: grpc.aio.Server) -> None:
    """Let a server answer the contract's calls with the methods of `service`; its downloads write the data of their slices."""
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Join": grpc.stream_stream_rpc_method_handler(
            service.Join, pb.JoinRequest.FromString, pb.JoinResponse.SerializeToString
        ),
        "Download": grpc.unary_stream_rpc_method_handler(service.Download, _download_request, pack_download),
        "Upload": grpc.stream_stream_rpc_method_handler(
            service.Upload, unpack_upload, pb.UploadResponse.SerializeToString
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


def _download_request(message: bytes) -> pb.DownloadRequest:
    try:
        return pb.DownloadRequest.FromString(message)
    except DecodeError:
        # gRPC would put a stack trace into the log for every one that a stranger sends. An empty one is refused for its token.
        return pb.DownloadRequest()


def _end_of_head(message: bytes, at: int, tag: bytes) -> int:
    """Return where the content of the field at `at` begins if it has this tag and fills the rest of the message, else 0."""
    if message[at : at + 1] != tag:
        return 0
    length, start = _read_varint(message, at + 1)
    return start if start and length and start + length == len(message) else 0


def _varint(number: int) -> bytes:
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    """Return the number at `at` and where it ends; (0, 0) where none of at most 63 bits stands."""
    number = 0
    for place, byte in enumerate(message[at : at + 9]):
        number |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return number, at + place + 1
    return 0, 0
