"""Law L4 with real processes: the coordinator's peak memory does not grow with the cohort, masked or not."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.journal import Journal
from client.masking import parameters_of
from privacy.enrolment import Enrolment
from privacy.keys import load_identity
from privacy.secagg.client import ClientSession
from privacy.secagg.party import Floor, Identity, Party, Trust
from privacy.secagg.vectors import ring_vector
from tests import hostile
from tests.federation import Federation
from tests.hostile import Session, joined
from tests.privacy.rosters import entry, key_of, public, roster, write_roster
from wire import federation_pb2 as pb
from wire.protocol import SLICE_BYTES
from wire.spec import parse_spec

SPEC: dict[str, Any] = {
    "name": "large",
    "learner": {"name": "mlp", "inputs": [64], "hidden": [4972, 4972]},
    "rounds": 1,
    "evaluate": {"every": 0},
}
MODEL_BYTES = 4 * (64 * 4972 + 4972 + 4972 * 4972 + 4972 + 4972 * 10 + 10)
"""About 100 MB."""

TRANSPORT_BYTES = 64 << 20
"""Slices on their way through gRPC, whatever the model."""

SMALL = {"name": "mlp", "inputs": [64], "hidden": [16]}


async def take_part(session: Session, data: bytes) -> None:
    """Download the model, drop it, and upload a contribution."""
    task = await session.task()
    assert task.base.total_bytes == len(data)
    received = 0
    async for response in session.calls.download(
        pb.DownloadRequest(session_token=session.token, sha256=task.base.sha256)
    ):
        received += len(response.data)
    assert received == len(data)
    upload = session.upload()
    # The grant waits for one of few places: others' whole uploads may go before.
    await upload.begin(session.header(task, data))
    await upload.slices(data, size=SLICE_BYTES)
    verdict = await upload.verdict()
    assert verdict.reason == pb.REFUSAL_REASON_UNSPECIFIED, verdict.detail


async def join_and_take_part_masked(
    federation: Federation, enrolment: Enrolment, keys: list[Ed25519PrivateKey], learner: dict[str, Any]
) -> str:
    """Let enrolled clients of this process join, submit a masked run, and take part in its session."""
    async with asyncio.TaskGroup() as group, asyncio.timeout(250):
        ready = asyncio.Semaphore(0)

        async def client(key: Ed25519PrivateKey) -> None:
            certificate = enrolment.certificate_of(public(key))
            assert certificate is not None
            trust = Trust("lakes", bytes.fromhex(enrolment.coordinator_key), enrolment.problem_with_certificate)
            async with joined(federation.address, key) as session:
                ready.release()
                await take_part_masked(session, Party(Identity(key, certificate), trust, Floor(), Journal()))

        for key in keys:
            group.create_task(client(key))
        for _ in keys:
            await ready.acquire()
        cohort = {"size": len(keys), "deadline_seconds": 250}
        secure = {"corrupt_fraction": 0.0, "dropout_fraction": 0.0, "stage_seconds": 250}
        spec = {**SPEC, "learner": learner, "cohort": cohort, "privacy": {"secure_aggregation": secure}}
        return await asyncio.to_thread(federation.submit, spec)


async def take_part_masked(session: Session, party: Party) -> None:
    """Play a session of secure aggregation with a contribution of zeros."""
    task = await session.task()
    body = np.zeros(task.base.total_bytes // 4, dtype=np.float32)
    parameters = parameters_of(task, parse_spec(task.spec_json), len(body))
    client = ClientSession(parameters, task.offer, party)
    await session.send(pb.JoinRequest(advertise=client.advertisement))
    await session.send(pb.JoinRequest(shares=client.take_roster((await answer(session)).roster)))
    client.take_delivery((await answer(session)).delivery)
    vector = ring_vector(parameters, 1, 1, {}, body)
    client.mask(vector)
    data, changes = vector.tobytes(), {"weight": 0, "example_count": 0, "layout_sha256": client.session_id}
    del vector
    upload = session.upload()
    await upload.begin(session.header(task, data, encoding=pb.VECTOR_ENCODING_MASKED, **changes))
    await upload.slices(data, size=SLICE_BYTES)
    verdict = await upload.verdict()
    assert verdict.reason == pb.REFUSAL_REASON_UNSPECIFIED, verdict.detail
    del data
    await session.send(pb.JoinRequest(survivor_ack=client.take_survivors((await answer(session)).survivors)))
    await session.send(pb.JoinRequest(unmask=client.take_acks((await answer(session)).ack_bundle)))
    await answer(session)


async def answer(session: Session) -> pb.JoinResponse:
    """Return the coordinator's next message."""
    message = await session.receive()
    assert message is not None, "the session ended"
    return message


def masked_peak_rss_bytes(folder: Path, client_count: int) -> tuple[int, int]:
    """Return the coordinator's memory after a masked round of a small model, and its peak after one of the large model."""
    folder.mkdir()
    keys = [key_of(number + 1) for number in range(client_count)]
    coordinator_key = public(load_identity(folder / "coordinator" / "coordinator.pem")).hex()
    clients = [entry(f"site-{number}", key) for number, key in enumerate(keys)]
    enrolment = roster(*clients, coordinator_key=coordinator_key)
    path = write_roster(folder / "roster.json", enrolment)
    with Federation(folder, "--roster", str(path)) as federation:
        federation.start_coordinator()
        for learner in (SMALL, SPEC["learner"]):
            baseline = federation.rest.get("/health")["rss_bytes"]
            run_id = asyncio.run(join_and_take_part_masked(federation, enrolment, keys, learner))
            federation.wait_for_end(run_id)
            assert len(federation.rounds(run_id)[0]["contributions"]) == client_count
        return baseline, federation.rest.get("/health")["peak_rss_bytes"]


async def join_and_take_part(federation: Federation, client_count: int, data: bytes) -> str:
    """Let clients of this process join, submit a run, and take part in its round."""
    async with asyncio.TaskGroup() as group, asyncio.timeout(250):
        ready = asyncio.Semaphore(0)

        async def client() -> None:
            async with joined(federation.address) as session:
                ready.release()
                await take_part(session, data)

        for _ in range(client_count):
            group.create_task(client())
        for _ in range(client_count):
            await ready.acquire()
        spec = {**SPEC, "cohort": {"size": client_count, "deadline_seconds": 250}}
        return await asyncio.to_thread(federation.submit, spec)


def peak_rss_bytes(folder: Path, client_count: int) -> tuple[int, int]:
    """Return the coordinator's memory when idle, and its peak after one round."""
    folder.mkdir()
    with Federation(folder) as federation:
        federation.start_coordinator()
        idle = federation.rest.get("/health")["rss_bytes"]
        run_id = asyncio.run(join_and_take_part(federation, client_count, bytes(MODEL_BYTES)))
        federation.wait_for_end(run_id)
        assert len(federation.rounds(run_id)[0]["contributions"]) == client_count
        return idle, federation.rest.get("/health")["peak_rss_bytes"]


@pytest.mark.timeout(600)
def test_coordinator_memory_is_the_same_for_4_and_for_24_clients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A grant comes when the uploads before it have ended.
    monkeypatch.setattr(hostile, "ANSWER_SECONDS", 250.0)
    idle, few = peak_rss_bytes(tmp_path / "few", 4)
    _, many = peak_rss_bytes(tmp_path / "many", 24)
    figures = f"idle {idle / 1e6:.0f} MB, peak with 4 clients {few / 1e6:.0f} MB, with 24 clients {many / 1e6:.0f} MB"
    assert many <= 1.1 * few, figures
    assert few <= idle + 600e6, figures


@pytest.mark.timeout(600)
def test_coordinator_memory_of_a_masked_round_is_that_of_two_models_and_its_upload_slots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostile, "ANSWER_SECONDS", 250.0)
    baseline, few = masked_peak_rss_bytes(tmp_path / "few", 4)
    _, many = masked_peak_rss_bytes(tmp_path / "many", 8)
    figures = (
        f"baseline {baseline / 1e6:.0f} MB, peak with 4 clients {few / 1e6:.0f} MB, with 8 clients {many / 1e6:.0f} MB"
    )
    # Two upload slots.
    assert few <= baseline + (2 + 2) * MODEL_BYTES + TRANSPORT_BYTES, figures
    assert many <= 1.1 * few, figures
