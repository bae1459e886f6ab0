import hashlib
import itertools
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.cache import ModelCache
from server.clients.service import FederationService
from server.coordinator import Coordinator
from server.model import ModelShop
from tests.client.relay import relaying
from tests.client.scripted import ScriptedCoordinator
from tests.client.sites import digits_spec, make_agent, played, running, until_joined, until_true
from tests.loopback import serving
from wire import federation_pb2 as pb
from wire.protocol import SLICE_BYTES

VECTOR = np.arange(1000, dtype="<f4")
DATA = VECTOR.tobytes()
SHA256 = hashlib.sha256(DATA).digest()


@pytest.fixture
def offsets(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Where each download from a real coordinator began."""
    begun: list[int] = []
    download = FederationService.Download

    async def remember(service: FederationService, request: pb.DownloadRequest, context: Any) -> None:
        begun.append(request.offset)
        await download(service, request, context)

    monkeypatch.setattr(FederationService, "Download", remember)
    return begun


@pytest.fixture
async def coordinator(offsets: list[int], tmp_path: Path) -> AsyncIterator[Coordinator]:
    """Serve a real coordinator whose downloads are remembered."""
    async with serving(tmp_path / "coordinator") as coordinator:
        yield coordinator


# --- In memory ---


def test_get_gives_a_model_only_once_it_is_checked() -> None:
    cache = ModelCache()
    incoming = cache.begin(SHA256, VECTOR.size)
    incoming.write(0, DATA)
    # Its last slice is here, but nobody has looked whether it is the model.
    assert incoming.is_complete
    assert cache.get(SHA256) is None
    incoming.check()
    np.testing.assert_array_equal(cache.get(SHA256), VECTOR)
    assert cache.get(bytes(32)) is None


def test_begin_second_try_goes_on_where_the_first_stopped() -> None:
    cache = ModelCache()
    cache.begin(SHA256, VECTOR.size).write(0, DATA[:1500])
    assert cache.get(SHA256) is None
    incoming = cache.begin(SHA256, VECTOR.size)
    assert incoming.received_bytes == 1500
    incoming.write(1500, DATA[1500:])
    incoming.check()
    np.testing.assert_array_equal(cache.get(SHA256), VECTOR)


def test_begin_of_another_model_makes_room_for_it() -> None:
    cache = ModelCache()
    cache.begin(SHA256, VECTOR.size).write(0, DATA)
    cache.begin(SHA256, VECTOR.size).check()
    assert cache.begin(bytes(32), VECTOR.size).received_bytes == 0
    assert cache.get(SHA256) is None


def test_begin_of_another_model_leaves_alone_what_is_still_trained_on() -> None:
    cache = ModelCache()
    cache.begin(SHA256, VECTOR.size).write(0, DATA)
    cache.begin(SHA256, VECTOR.size).check()
    vector = cache.get(SHA256)
    cache.begin(bytes(32), VECTOR.size).write(0, bytes(len(DATA)))
    np.testing.assert_array_equal(vector, VECTOR)


def test_drop_makes_the_next_try_begin_anew() -> None:
    cache = ModelCache()
    cache.begin(SHA256, VECTOR.size).write(0, DATA[:1500])
    cache.drop()
    assert cache.begin(SHA256, VECTOR.size).received_bytes == 0


def test_begin_of_models_of_many_sizes_keeps_the_memory_of_one() -> None:
    cache = ModelCache()
    tracemalloc.start()
    try:
        for size in range(1_000_000, 1_000_008):
            cache.begin(size.to_bytes(32, "big"), size)
        held_bytes, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held_bytes < 6_000_000
    assert peak_bytes < 10_000_000


def test_begin_of_models_of_one_size_uses_the_same_memory() -> None:
    cache = ModelCache()
    places = {np.frombuffer(cache.begin(bytes([number]) * 32, 1000).buffer).ctypes.data for number in range(4)}
    assert len(places) == 1


# --- In a round ---


async def test_download_goes_on_from_what_an_earlier_session_left(
    coordinator: Coordinator, tmp_path: Path, offsets: list[int]
) -> None:
    spec = digits_spec(learner={"name": "mlp", "inputs": [1, 8, 8], "hidden": [18000]})
    byte_count = ModelShop(spec).initial().layout.byte_count
    assert byte_count > 5 * SLICE_BYTES
    async with relaying(coordinator.address) as relay:
        agent = make_agent(tmp_path / "site", relay.address)
        async with running(agent):
            await until_joined(coordinator, agent)
            # What is on its way in that moment is lost, so that it is not known how many of the first three slices arrive.
            relay.bytes_until_cut = itertools.chain([7 * SLICE_BYTES // 2], itertools.repeat(1 << 40))
            [record] = await played(coordinator, spec)
    assert offsets in [[0, count * SLICE_BYTES] for count in (1, 2, 3)]
    assert len(record.contributions) == 1


async def test_download_that_is_another_model_is_asked_for_again(script: ScriptedCoordinator, tmp_path: Path) -> None:
    task = script.task()
    right = script.models[task.base.sha256]
    script.models[task.base.sha256] = bytes(len(right))
    async with running(make_agent(tmp_path, script.address)):
        session = await script.session()
        await session.push(task)

        def mend() -> bool:
            if len(script.downloads) >= 2:
                script.models[task.base.sha256] = right
            return len(script.downloads) >= 2

        await until_true(mend, "a second download")
        assert len(await (await script.upload()).accept()) == task.base.total_bytes
    assert {request.offset for request in script.downloads} == {0}


async def test_evaluated_model_is_not_downloaded_again_to_train_on_it(
    coordinator: Coordinator, tmp_path: Path, offsets: list[int]
) -> None:
    agent = make_agent(tmp_path / "site", coordinator.address)
    async with running(agent):
        await until_joined(coordinator, agent)
        rounds = await played(coordinator, digits_spec(rounds=3, evaluate={"every": 1}))
    assert all("accuracy" in record.metrics for record in rounds)
    # The first model, and after each round the new one, which the next round starts from.
    assert offsets == [0] * 4
