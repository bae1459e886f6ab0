"""The coordinator's pulse: a loop that is busy with one thing is noticed, and memory is that of this process."""

import asyncio
import time
from pathlib import Path

import pytest

from server.monitoring import pulse as pulse_module
from server.monitoring.pulse import BEAT_SECONDS, Pulse
from tests.server.cohorts import when


async def test_beat_notices_a_stalled_loop_and_forgets_it_when_told() -> None:
    pulse = Pulse()
    beating = asyncio.create_task(pulse.beat())
    await asyncio.sleep(0)
    time.sleep(0.2)  # noqa: ASYNC251 - this is the stall
    await when(lambda: pulse.longest_stall_seconds > 0, "the next beat")
    assert pulse.longest_stall_seconds >= 0.2 - BEAT_SECONDS - 0.01
    pulse.reset()
    assert pulse.longest_stall_seconds < 0.2
    beating.cancel()


async def test_memory_is_looked_at_again_while_it_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse_module, "BEATS_A_WEIGHING", 1)
    pulse = Pulse()
    beating = asyncio.create_task(pulse.beat())
    await asyncio.sleep(0)
    pulse.rss_bytes = pulse.peak_rss_bytes = 0
    await when(lambda: pulse.rss_bytes > 0, "the next look at the memory")
    assert pulse.peak_rss_bytes > pulse.rss_bytes / 2
    beating.cancel()


def test_memory_is_that_of_this_process() -> None:
    pulse = Pulse()
    status = Path("/proc/self/status").read_text()
    now = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))
    assert abs(pulse.rss_bytes - now) < 32 << 20
    assert pulse.peak_rss_bytes >= now - (32 << 20)
