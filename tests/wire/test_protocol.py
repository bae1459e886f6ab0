import pytest
from google.protobuf.message import Message

from wire import federation_pb2 as contract
from wire.protocol import MESSAGE_LIMIT_BYTES, SLICE_BYTES, is_loopback
from wire.spec import SPEC_BYTES

TOTAL = 2**63


def test_largest_messages_fit_the_limit() -> None:
    text = "x" * 1000
    metrics = {f"{'m' * 60}{index:04}": 1.0 for index in range(64)}
    messages: list[Message] = [
        contract.DownloadResponse(data=bytes(SLICE_BYTES)),
        contract.UploadRequest(slice=contract.Slice(offset=TOTAL, data=bytes(SLICE_BYTES))),
        contract.UploadRequest(
            header=contract.UploadHeader(task_id=text, run_id=text, total_bytes=TOTAL, metrics=metrics)
        ),
        contract.JoinResponse(task=contract.Task(task_id=text, run_id=text, spec_json="x" * SPEC_BYTES)),
        contract.JoinRequest(evaluate_result=contract.EvaluateResult(task_id=text, metrics=metrics)),
    ]
    assert all(message.ByteSize() <= MESSAGE_LIMIT_BYTES for message in messages)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:80", True),
        ("127.8.9.1:80", True),
        ("localhost:80", True),
        ("[::1]:80", True),
        ("127.example.org:80", False),
        ("0.0.0.0:80", False),
        ("10.0.0.1:80", False),
        ("localhost.example.org:80", False),
    ],
)
def test_is_loopback_trusts_addresses_and_no_names(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected
