"""Law L4 with real processes: the coordinator's peak memory does not grow with the cohort."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests import hostile
from tests.federation import Federation
from tests.hostile import Session, joined
from wire import federation_pb2 as pb
from wire.protocol import SLICE_BYTES

SPEC: dict[str, Any] = {
    "name": "large",
    "learner": {"name": "mlp", "inputs": [64], "hidden": [4972, 4972]},
    "rounds": 1,
    "evaluate": {"every": 0},
}
MODEL_BYTES = 4 * (64 * 4972 + 4972 + 4972 * 4972 + 4972 + 4972 * 10 + 10)
"""About 100 MB."""


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
