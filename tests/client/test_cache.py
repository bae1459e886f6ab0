import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.cache import ModelCache
from server.coordinator import Coordinator
from server.model import ModelShop
from server.service import FederationService
from tests.client.scripted import ScriptedCoordinator
from tests.client.sites import digits_spec, make_agent, played, running, until_joined, until_true
from tests.loopback import serving
from wire import federation_pb2 as pb
from wire.errors import TransferError
from wire.tensors import vector_bytes

VECTOR = np.arange(1000, dtype="<f4")
DATA = VECTOR.tobytes()
SHA256 = hashlib.sha256(DATA).digest()


def put(folder: Path, data: bytes) -> Path:
    cache = ModelCache(folder)
    with cache.begin(hashlib.sha256(data).digest()) as partial:
        partial.write(data)
        partial.finish(len(data))
    return folder / f"{hashlib.sha256(data).hexdigest()}.f32"


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


# --- The files ---


def test_get_downloaded_model_is_mapped_and_equal(tmp_path: Path) -> None:
    path = put(tmp_path, DATA)
    vector = ModelCache(tmp_path).get(SHA256)
    assert vector is not None
    assert isinstance(vector, np.memmap)
    assert vector.dtype == np.float32
    np.testing.assert_array_equal(vector, VECTOR)
    assert list(tmp_path.iterdir()) == [path]


def test_get_writes_to_a_model_stay_private(tmp_path: Path) -> None:
    path = put(tmp_path, DATA)
    cache = ModelCache(tmp_path)
    vector = cache.get(SHA256)
    assert vector is not None
    vector[:] = -1
    assert path.read_bytes() == DATA
    np.testing.assert_array_equal(cache.get(SHA256), VECTOR)


def test_get_unknown_model_is_none(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path / "models")
    assert cache.get(SHA256) is None
    with cache.begin(SHA256) as partial:
        partial.write(DATA[:500])
    assert cache.get(SHA256) is None


@pytest.mark.parametrize(
    "damaged",
    [
        pytest.param(b"", id="empty"),
        pytest.param(DATA[:-4], id="short"),
        pytest.param(b"\x01" + DATA[1:], id="changed"),
        pytest.param(bytes(len(DATA)), id="zeros"),
    ],
)
def test_get_file_that_a_power_cut_has_damaged_is_deleted(tmp_path: Path, damaged: bytes) -> None:
    put(tmp_path, DATA).write_bytes(damaged)
    assert ModelCache(tmp_path).get(SHA256) is None
    assert list(tmp_path.iterdir()) == []


def test_begin_second_try_goes_on_where_the_first_stopped(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path)
    with cache.begin(SHA256) as partial:
        partial.write(DATA[:600])
        partial.write(DATA[600:1500])
    with ModelCache(tmp_path).begin(SHA256) as partial:
        partial.resume()
        assert partial.received_bytes == 1500
        partial.write(DATA[1500:])
        partial.finish(len(DATA))
    np.testing.assert_array_equal(cache.get(SHA256), VECTOR)


def test_finish_with_everything_there_already_needs_no_more(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path)
    with cache.begin(SHA256) as partial:
        partial.write(DATA)
    with cache.begin(SHA256) as partial:
        partial.resume()
        partial.finish(len(DATA))
    assert cache.get(SHA256) is not None


@pytest.mark.parametrize(
    "arrived",
    [
        pytest.param(DATA[:-1], id="short"),
        pytest.param(DATA + b"x", id="long"),
        pytest.param(b"\x01" + DATA[1:], id="changed"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_finish_another_model_is_refused_and_dropped(tmp_path: Path, arrived: bytes) -> None:
    cache = ModelCache(tmp_path)
    rule = rf"^Model {SHA256[:8].hex()}: must have 4000 bytes of that SHA-256, got {len(arrived)} bytes of "
    with cache.begin(SHA256) as partial:
        partial.write(arrived)
        with pytest.raises(TransferError, match=rule):
            partial.finish(len(DATA))
    assert list(tmp_path.iterdir()) == []
    with cache.begin(SHA256) as partial:
        partial.resume()
        assert partial.received_bytes == 0


def test_prune_keeps_the_two_models_used_last_and_the_newest_part(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path)
    models = [put(tmp_path, np.full(4, number, "<f4").tobytes()) for number in range(4)]
    parts = [tmp_path / f"{number:064x}.part" for number in range(3)]
    for age, path in enumerate([*models, *parts]):
        path.touch()
        os.utime(path, ns=(age * 10**9, age * 10**9))
    # Used again, the oldest is the newest.
    assert cache.get(bytes.fromhex(models[0].stem)) is not None
    cache.prune()
    assert sorted(tmp_path.iterdir()) == sorted([models[0], models[3], parts[2]])


def test_prune_model_in_use_stays_readable(tmp_path: Path) -> None:
    put(tmp_path, DATA)
    cache = ModelCache(tmp_path)
    vector = cache.get(SHA256)
    for number in range(3):
        put(tmp_path, np.full(4, number, "<f4").tobytes())
    cache.prune()
    assert cache.get(SHA256) is None
    np.testing.assert_array_equal(vector, VECTOR)


# --- In a round ---


@pytest.mark.parametrize("kept_bytes", [1, 1000, 4 * 1210 - 1, 4 * 1210])
async def test_download_goes_on_from_what_an_earlier_process_left(
    coordinator: Coordinator, tmp_path: Path, offsets: list[int], kept_bytes: int
) -> None:
    spec = digits_spec()
    model = ModelShop(spec).initial()
    assert model.layout.byte_count == 4 * 1210
    agent = make_agent(tmp_path / "site", coordinator.address)
    part = tmp_path / "site" / "models" / f"{model.sha256.hex()}.part"
    part.write_bytes(vector_bytes(model.vector)[:kept_bytes])
    async with running(agent):
        [record] = await played(coordinator, spec)
    assert offsets == [kept_bytes]
    assert len(record.contributions) == 1
    assert part.with_suffix(".f32").read_bytes() == vector_bytes(model.vector)
    assert not part.exists()


@pytest.mark.parametrize("kept_bytes", [1000, 4 * 1210, 5000])
async def test_download_drops_a_damaged_part_and_begins_anew(
    coordinator: Coordinator, tmp_path: Path, offsets: list[int], kept_bytes: int
) -> None:
    spec = digits_spec()
    model = ModelShop(spec).initial()
    agent = make_agent(tmp_path / "site", coordinator.address)
    part = tmp_path / "site" / "models" / f"{model.sha256.hex()}.part"
    part.write_bytes(b"\xff" * kept_bytes)
    async with running(agent):
        [record] = await played(coordinator, spec)
    assert offsets == [min(kept_bytes, 4 * 1210), 0]
    assert len(record.contributions) == 1
    assert part.with_suffix(".f32").read_bytes() == vector_bytes(model.vector)


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
    kept = sorted(path.stem for path in (tmp_path / "site" / "models").iterdir())
    assert kept == sorted(record.model_sha256 for record in rounds[1:])


async def test_restarted_client_has_its_models_still(
    coordinator: Coordinator, tmp_path: Path, offsets: list[int]
) -> None:
    for _ in range(2):
        async with running(make_agent(tmp_path / "site", coordinator.address)):
            await played(coordinator, digits_spec())
    assert offsets == [0]
