"""Law L4 with real processes: the coordinator's peak memory does not grow with the cohort, masked or not."""

import asyncio
from collections.abc import Callable
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

UPLOAD_SLOTS = 2
"""What a coordinator has unless it is told otherwise."""

TRANSPORT_BYTES = UPLOAD_SLOTS * (8 << 20) + (16 << 20)
"""What does not grow with the model: of each upload under way, the 4 MiB that gRPC reads ahead, and four copies of a slice on their way
through gRPC and Python; once, the 8 MiB of freed slices that the C library keeps, and as much in gaps between those in use."""

DOWNLOAD_BYTES = 4 * (4 << 20)
"""As much of each download under way, of which there are four: the clients of a masked round here take no model."""

SMALL = {"name": "mlp", "inputs": [64], "hidden": [16]}
SMALL_BYTES = 4 * (64 * 16 + 16 + 16 * 10 + 10)


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


def rss_bytes(federation: Federation, field: str) -> int:
    """Return the coordinator's resident memory, "VmRSS", or its peak, "VmHWM", as the kernel has it: /health is half a second late."""
    assert federation.coordinator is not None
    lines = Path(f"/proc/{federation.coordinator.pid}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def masked_round(folder: Path, client_count: int) -> tuple[int, int]:
    """Return the coordinator's memory after a masked round of a small model, and its peak after one of the large model."""
    keys = [key_of(number + 1) for number in range(client_count)]
    coordinator_key = public(load_identity(folder / "coordinator" / "coordinator.pem")).hex()
    clients = [entry(f"site-{number}", key) for number, key in enumerate(keys)]
    enrolment = roster(*clients, coordinator_key=coordinator_key)
    path = write_roster(folder / "roster.json", enrolment)
    with Federation(folder, "--roster", str(path)) as federation:
        federation.start_coordinator()
        for learner in (SMALL, SPEC["learner"]):
            baseline = rss_bytes(federation, "VmRSS")
            run_id = asyncio.run(join_and_take_part_masked(federation, enrolment, keys, learner))
            federation.wait_for_end(run_id)
            assert len(federation.rounds(run_id)[0]["contributions"]) == client_count
        return baseline, rss_bytes(federation, "VmHWM")


async def join_and_take_part(
    federation: Federation, client_count: int, learner: dict[str, Any], byte_count: int
) -> str:
    """Let clients of this process join, submit a run, and take part in its round."""
    data = bytes(byte_count)
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
        spec = {**SPEC, "learner": learner, "cohort": {"size": client_count, "deadline_seconds": 250}}
        return await asyncio.to_thread(federation.submit, spec)


def clear_round(folder: Path, client_count: int) -> tuple[int, int]:
    """Return the coordinator's memory after a round of a small model, and its peak after one of the large model."""
    with Federation(folder) as federation:
        federation.start_coordinator()
        for learner, byte_count in ((SMALL, SMALL_BYTES), (SPEC["learner"], MODEL_BYTES)):
            baseline = rss_bytes(federation, "VmRSS")
            run_id = asyncio.run(join_and_take_part(federation, client_count, learner, byte_count))
            federation.wait_for_end(run_id)
            assert len(federation.rounds(run_id)[0]["contributions"]) == client_count
        return baseline, rss_bytes(federation, "VmHWM")


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("measure", "client_count", "vector_count", "constant"),
    [
        # The model, and the sum: float64 in the clear. Many more clients than slots: with fewer there is less of everything.
        pytest.param(clear_round, 24, 3 + UPLOAD_SLOTS, TRANSPORT_BYTES + DOWNLOAD_BYTES, id="clear-24"),
        pytest.param(masked_round, 8, 2 + UPLOAD_SLOTS, TRANSPORT_BYTES, id="masked-8"),
    ],
)
def test_coordinator_memory_is_that_of_model_sum_and_upload_slots_whatever_the_cohort(
    measure: Callable[[Path, int], tuple[int, int]],
    client_count: int,
    vector_count: int,
    constant: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A grant comes when the uploads before it have ended.
    monkeypatch.setattr(hostile, "ANSWER_SECONDS", 250.0)
    baseline, peak = measure(tmp_path, client_count)
    beside = (peak - baseline - vector_count * MODEL_BYTES) / 1e6
    assert peak <= baseline + vector_count * MODEL_BYTES + constant, f"{beside:.1f} MB beside {vector_count} vectors"
