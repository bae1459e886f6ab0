"""Sessions of secure aggregation with clients whose messages are false: those are left out or not heard, and the rest go on."""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.connection import Connection
from server.coordinator import Coordinator
from tests.client.masked import NAMES, Federation, joined, masked_spec, mean_of, played
from wire import federation_pb2 as pb

Upload = Callable[[pb.UploadHeader, bytes], bytes]
HONEST = list(NAMES[:4])


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(tmp_path)


@pytest.fixture
async def coordinator(federation: Federation) -> AsyncIterator[Coordinator]:
    async with federation.serving() as coordinator:
        yield coordinator


def too_long(header: pb.UploadHeader, data: bytes) -> bytes:
    header.total_bytes += 4
    return data + bytes(4)


def too_short(header: pb.UploadHeader, data: bytes) -> bytes:
    header.total_bytes -= 4
    return data[:-4]


def with_weight(header: pb.UploadHeader, data: bytes) -> bytes:
    header.weight = 1
    return data


def with_metrics(header: pb.UploadHeader, data: bytes) -> bytes:
    header.metrics["train_loss"] = 0.1
    return data


def in_the_clear(header: pb.UploadHeader, data: bytes) -> bytes:
    header.encoding = pb.VECTOR_ENCODING_FLOAT32
    return data


def of_another_session(header: pb.UploadHeader, data: bytes) -> bytes:
    header.layout_sha256 = bytes(32)
    return data


def corrupted(header: pb.UploadHeader, data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    ("spoil", "reason", "rule"),
    [
        pytest.param(too_long, "wrong_size", "total_bytes must be ", id="too-long"),
        pytest.param(too_short, "wrong_size", "total_bytes must be ", id="too-short"),
        pytest.param(
            with_weight,
            "malformed",
            "weight, examples and metrics must travel inside a masked vector, got them beside it",
            id="weight-in-the-clear",
        ),
        pytest.param(
            with_metrics,
            "malformed",
            "weight, examples and metrics must travel inside a masked vector, got them beside it",
            id="metrics-in-the-clear",
        ),
        pytest.param(in_the_clear, "malformed", "encoding must be MASKED, got 1", id="float32"),
        pytest.param(of_another_session, "wrong_layout", "layout must be ", id="another-session"),
        pytest.param(corrupted, "corrupted", "", id="corrupted"),
    ],
)
async def test_client_with_a_false_upload_is_left_out_of_the_sum(
    federation: Federation,
    coordinator: Coordinator,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Upload,
    reason: str,
    rule: str,
) -> None:
    liar, upload = federation.client_id("eli"), Connection.upload

    async def spoiled(self: Connection, header: pb.UploadHeader, data: memoryview, *rest: Any) -> pb.UploadVerdict:
        if self.client_id == liar:
            data = memoryview(spoil(header, bytes(data)))
        return await upload(self, header, data, *rest)

    monkeypatch.setattr(Connection, "upload", spoiled)
    spec = masked_spec()
    async with joined(coordinator, [federation.agent(name, coordinator.address) for name in NAMES]):
        run_id, [record] = await played(coordinator, spec)
    [refusal] = record.refusals
    assert (refusal.client_id, refusal.reason) == (liar, reason)
    assert refusal.detail.startswith(rule)
    assert (federation.contributors(record), record.session_count) == (HONEST, 1)
    assert np.array_equal(federation.model(coordinator, run_id, spec, 1), mean_of(federation, spec, HONEST))


def with_no_signature(header: pb.UploadHeader, other: pb.UploadHeader, data: bytes) -> bytes:
    header.ClearField("signature")
    return data


def with_the_signature_of_another(header: pb.UploadHeader, other: pb.UploadHeader, data: bytes) -> bytes:
    header.signature = other.signature
    return data


def with_another_vector_than_signed(header: pb.UploadHeader, other: pb.UploadHeader, data: bytes) -> bytes:
    data = corrupted(header, data)
    header.sha256 = hashlib.sha256(data).digest()
    return data


def with_another_digest(header: pb.UploadHeader, other: pb.UploadHeader, data: bytes) -> bytes:
    header.sha256 = other.sha256
    header.signature = other.signature
    return data


@pytest.mark.parametrize(
    ("forge", "reason", "detail"),
    [
        (with_no_signature, "malformed", r"signature must be the client's, over the masked vector .*, got none"),
        (
            with_the_signature_of_another,
            "malformed",
            r"signature must be .* with SHA-256 [0-9a-f]{16} in .* got another",
        ),
        (with_another_vector_than_signed, "malformed", r"signature must be the client's, .*, got another"),
        (with_another_digest, "corrupted", r"Payload: SHA-256 must be .*"),
    ],
)
async def test_upload_that_its_client_has_not_signed_is_left_out_of_the_sum(
    federation: Federation,
    coordinator: Coordinator,
    monkeypatch: pytest.MonkeyPatch,
    forge: Callable[[pb.UploadHeader, pb.UploadHeader, bytes], bytes],
    reason: str,
    detail: str,
) -> None:
    liar, upload = federation.client_id("eli"), Connection.upload
    seen: asyncio.Queue[pb.UploadHeader] = asyncio.Queue()

    async def forged(self: Connection, header: pb.UploadHeader, data: memoryview, *rest: Any) -> pb.UploadVerdict:
        if self.client_id == liar:
            data = memoryview(forge(header, await seen.get(), bytes(data)))
        else:
            seen.put_nowait(header)
        return await upload(self, header, data, *rest)

    monkeypatch.setattr(Connection, "upload", forged)
    spec = masked_spec({"audit": True})
    async with joined(coordinator, [federation.agent(name, coordinator.address) for name in NAMES]):
        run_id, [record] = await played(coordinator, spec)
    [refusal] = record.refusals
    assert (refusal.client_id, refusal.reason) == (liar, reason)
    assert re.fullmatch(detail, refusal.detail)
    assert (federation.contributors(record), record.session_count) == (HONEST, 1)
    assert federation.signers(record) == [HONEST]
    assert np.array_equal(federation.model(coordinator, run_id, spec, 1), mean_of(federation, spec, HONEST))


def of_somebody_else(entry: pb.Advertise, other: pb.Advertise) -> None:
    entry.CopyFrom(other)


def with_keys_of_another(entry: pb.Advertise, other: pb.Advertise) -> None:
    entry.mask_key = other.mask_key


def under_another_name(entry: pb.Advertise, other: pb.Advertise) -> None:
    entry.client_id = other.client_id


@pytest.mark.parametrize(
    ("forge", "detail"),
    [
        (of_somebody_else, "An advertisement must be for this session and of the client that sends it."),
        (under_another_name, "An advertisement must be for this session and of the client that sends it."),
        (with_keys_of_another, "Advertisement: its advertisement must be signed with its key for this session."),
    ],
)
async def test_client_with_a_false_advertisement_is_left_out(
    federation: Federation,
    coordinator: Coordinator,
    monkeypatch: pytest.MonkeyPatch,
    forge: Callable[[pb.Advertise, pb.Advertise], None],
    detail: str,
) -> None:
    liar, send = federation.client_id("eli"), Connection.send
    seen: asyncio.Queue[pb.Advertise] = asyncio.Queue()

    async def forged(self: Connection, message: pb.JoinRequest) -> None:
        if message.HasField("advertise"):
            if self.client_id == liar:
                forge(message.advertise, await seen.get())
            else:
                seen.put_nowait(pb.Advertise.FromString(message.advertise.SerializeToString()))
        await send(self, message)

    monkeypatch.setattr(Connection, "send", forged)
    spec = masked_spec()
    async with joined(coordinator, [federation.agent(name, coordinator.address) for name in NAMES]):
        run_id, [record] = await played(coordinator, spec)
    assert [(refusal.client_id, refusal.reason, refusal.detail) for refusal in record.refusals] == [
        (liar, "malformed", detail)
    ]
    assert (federation.contributors(record), record.session_count) == (HONEST, 1)
    assert np.array_equal(federation.model(coordinator, run_id, spec, 1), mean_of(federation, spec, HONEST))


def with_replies_of_an_older_session(before: list[pb.JoinRequest], message: pb.JoinRequest) -> list[pb.JoinRequest]:
    old = pb.JoinRequest()
    old.CopyFrom(message)
    getattr(old, message.WhichOneof("message") or "").session_id = bytes(32)
    return [old, message]


def with_each_reply_twice(before: list[pb.JoinRequest], message: pb.JoinRequest) -> list[pb.JoinRequest]:
    return [message, message]


def with_all_replies_before_again(before: list[pb.JoinRequest], message: pb.JoinRequest) -> list[pb.JoinRequest]:
    return [*before, message]


def with_an_evaluation(before: list[pb.JoinRequest], message: pb.JoinRequest) -> list[pb.JoinRequest]:
    session_id: bytes = getattr(message, message.WhichOneof("message") or "").session_id
    return [pb.JoinRequest(evaluate_result=pb.EvaluateResult(task_id=session_id.hex(), example_count=1)), message]


@pytest.mark.parametrize(
    "add",
    [
        with_replies_of_an_older_session,
        with_each_reply_twice,
        with_all_replies_before_again,
        with_an_evaluation,
    ],
)
async def test_replies_that_were_not_asked_for_are_ignored(
    federation: Federation,
    coordinator: Coordinator,
    monkeypatch: pytest.MonkeyPatch,
    add: Callable[[list[pb.JoinRequest], pb.JoinRequest], list[pb.JoinRequest]],
) -> None:
    odd, send = federation.client_id("eli"), Connection.send
    before: list[pb.JoinRequest] = []

    async def adding(self: Connection, message: pb.JoinRequest) -> None:
        is_reply = message.WhichOneof("message") in ("advertise", "shares", "survivor_ack", "unmask")
        for part in add(before, message) if is_reply and self.client_id == odd else [message]:
            await send(self, part)
        if is_reply and self.client_id == odd:
            before.append(message)

    monkeypatch.setattr(Connection, "send", adding)
    spec = masked_spec(cohort={"quorum": 5})
    async with joined(coordinator, [federation.agent(name, coordinator.address) for name in NAMES]) as tasks:
        run_id, [record] = await played(coordinator, spec)
        session = coordinator.sessions.by_client(odd)
        assert session is not None
        assert not tasks[odd].done()
    assert len(before) == 4
    assert (federation.contributors(record), record.refusals, record.session_count) == (list(NAMES), [], 1)
    assert np.array_equal(federation.model(coordinator, run_id, spec, 1), mean_of(federation, spec, NAMES))
