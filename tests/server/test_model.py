"""Checkpoints: whole or not there at all, readable by anyone who has safetensors, and refused when they are not what they say."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from models import build_learner
from server.checkpoints import checkpoint_path
from server.cohort import Order
from server.errors import StoreError
from server.model import Model, ModelShop, read_checkpoint, write_checkpoint
from tests.federation import finished
from tests.server.cohorts import Act, Bring, Scene, spec
from wire.saved import OPTIMIZER_PREFIX
from wire.spec import RunSpec

HEADER = {"run": "r1", "round": "3", "spec_sha256": "ab" * 32}
ADAM = {"optimizer": {"name": "adam", "learning_rate": 0.01}}


def cnn_spec() -> RunSpec:
    document = json.loads(spec(server=ADAM).canonical_json())
    document["learner"] = {"name": "cnn", "channels": [2], "batch_norm": True}
    return RunSpec.model_validate_json(json.dumps(document))


def stepped(shop: ModelShop, model: Model, seed: int) -> Model:
    """Return the model after a server step on a drawn mean."""
    mean = np.random.default_rng(seed).normal(size=model.layout.size).astype(np.float32)
    return shop.next(model, mean, 1, 1)


def assert_same(found: Model, expected: Model) -> None:
    assert found.sha256 == expected.sha256
    assert np.array_equal(found.vector, expected.vector)
    for ours, theirs in ((found.slots, expected.slots), (found.constants, expected.constants)):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert ours[name].dtype == theirs[name].dtype
            assert np.array_equal(ours[name], theirs[name])


def test_next_leaves_the_model_before_unchanged() -> None:
    shop = ModelShop(cnn_spec())
    first = stepped(shop, shop.initial(), 1)
    vector, slots = first.vector.copy(), {name: slot.copy() for name, slot in first.slots.items()}
    second = stepped(shop, first, 2)
    assert np.array_equal(first.vector, vector)
    assert all(np.array_equal(first.slots[name], slots[name]) for name in slots)
    assert second.sha256 != first.sha256


def test_initial_follows_from_the_seed_alone() -> None:
    one, other = ModelShop(spec(seed=1)), ModelShop(spec(seed=2))
    assert one.initial().sha256 == ModelShop(spec(seed=1, rounds=9)).initial().sha256
    assert one.initial().sha256 != other.initial().sha256


def test_checkpoint_round_trips_with_optimizer_and_counters(tmp_path: Path) -> None:
    shop = ModelShop(cnn_spec())
    model = stepped(shop, stepped(shop, shop.initial(), 1), 2)
    assert {name.partition("/")[0] for name in model.slots} == {"step", "exp_avg", "exp_avg_sq"}
    assert {str(tensor.dtype) for tensor in model.constants.values()} == {"int64"}
    path = tmp_path / "new folder" / "round-3.safetensors"
    write_checkpoint(path, model, HEADER)
    found = read_checkpoint(path, model.layout)
    assert_same(found, model)
    # A model that was read goes on as the one that was written.
    assert_same(stepped(shop, found, 3), stepped(shop, model, 3))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_checkpoint_has_a_header_that_says_whose_it_is(tmp_path: Path) -> None:
    model = ModelShop(spec()).initial()
    write_checkpoint(tmp_path / "x.safetensors", model, HEADER)
    with safe_open(tmp_path / "x.safetensors", framework="np") as file:
        header = file.metadata()
    layout = '[["1.weight",[2,1],"float32"],["1.bias",[2],"float32"]]'
    assert header == {**HEADER, "layout": layout, "sha256": model.sha256.hex()}


def test_checkpoint_of_the_same_model_is_the_same_file(tmp_path: Path) -> None:
    shop = ModelShop(cnn_spec())
    model, path = stepped(shop, shop.initial(), 1), tmp_path / "x.safetensors"
    files = set()
    for _ in range(8):
        write_checkpoint(path, model, {**HEADER, "learner": '{"name": "caf\u00e9\\n"}'})
        files.add(path.read_bytes())
    assert len(files) == 1
    assert_same(read_checkpoint(path, model.layout), model)


async def test_checkpoint_of_a_run_names_run_round_and_spec(scene: Scene) -> None:
    await scene.play(configured := spec(rounds=2))
    with safe_open(checkpoint_path(scene.folder, 2), framework="np") as file:
        header = file.metadata()
    assert (header["run"], header["round"], header["spec_sha256"]) == ("run", "2", configured.sha256)
    assert header["sha256"] == (await scene.store.run("run")).model_sha256


async def test_checkpoint_loads_into_the_learners_module_with_safetensors_alone(scene: Scene) -> None:
    configured = cnn_spec()

    async def bring_ones(order: Order, client_id: str) -> Act:
        return Bring(np.ones(order.model.layout.size, dtype=np.float32))

    scene.scripted.train_script = bring_ones
    await scene.play(configured)
    tensors = load_file(checkpoint_path(scene.folder, 1))
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(OPTIMIZER_PREFIX)}
    assert len(tensors) > len(weights)
    module = build_learner(configured.learner).build()  # type: ignore[attr-defined]
    module.load_state_dict(weights, strict=True)
    assert module(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_checkpoint_replaces_an_older_one_of_its_name(tmp_path: Path) -> None:
    shop, path = ModelShop(spec()), tmp_path / "x.safetensors"
    write_checkpoint(path, shop.initial(), HEADER)
    (tmp_path / "x.tmp").write_text("left by a crash")
    write_checkpoint(path, model := stepped(shop, shop.initial(), 1), HEADER)
    assert_same(read_checkpoint(path, model.layout), model)
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


DIE_BEFORE_RENAME = """
import os, signal, sys
from pathlib import Path
from server.model import ModelShop, write_checkpoint
from tests.server.cohorts import spec

Path.replace = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
write_checkpoint(Path(sys.argv[1]), ModelShop(spec(seed=2)).initial(), {"round": "2"})
"""


def test_checkpoint_killed_before_its_rename_leaves_the_old_one_whole(tmp_path: Path) -> None:
    path, old = tmp_path / "x.safetensors", ModelShop(spec(seed=1)).initial()
    write_checkpoint(path, old, HEADER)
    code, output = finished(["-c", DIE_BEFORE_RENAME, str(path)], tmp_path / "log")
    assert code == -9, output
    assert_same(read_checkpoint(path, old.layout), old)
    new = ModelShop(spec(seed=2)).initial()
    # What the killed process had written was whole already: nothing but the rename was missing.
    assert_same(read_checkpoint(tmp_path / "x.tmp", new.layout), new)


def test_checkpoint_is_synced_before_its_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        done.append("sync " + Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def noted_replace(self: Path, target: Path) -> Path:
        done.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    write_checkpoint(tmp_path / "x.safetensors", ModelShop(spec()).initial(), HEADER)
    assert done == ["sync x.tmp", "rename", f"sync {tmp_path.name}"]


def test_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    shop, path = ModelShop(spec()), tmp_path / "folder" / "x.safetensors"
    write_checkpoint(path, old := shop.initial(), HEADER)
    (tmp_path / "folder" / "x.tmp").mkdir()
    with pytest.raises(StoreError, match=r"x\.safetensors: must be writable, got: "):
        write_checkpoint(path, stepped(shop, old, 1), HEADER)
    assert_same(read_checkpoint(path, old.layout), old)


def test_read_missing_checkpoint_raises(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"x\.safetensors: must be a readable safetensors file, got: .*No such file"):
        read_checkpoint(tmp_path / "x.safetensors", ModelShop(spec()).initial().layout)


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(0, id="empty"),
        pytest.param(100, id="in-the-header"),
        pytest.param(-4, id="in-the-tensors"),
    ],
)
def test_read_checkpoint_that_is_cut_off_raises(tmp_path: Path, end: int) -> None:
    path, model = tmp_path / "x.safetensors", ModelShop(spec()).initial()
    write_checkpoint(path, model, HEADER)
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(StoreError, match="must be a readable safetensors file"):
        read_checkpoint(path, model.layout)


def test_read_checkpoint_with_a_flipped_bit_raises(tmp_path: Path) -> None:
    path, model = tmp_path / "x.safetensors", ModelShop(spec()).initial()
    write_checkpoint(path, model, HEADER)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match=f"SHA-256 must be {model.sha256.hex()}, got [0-9a-f]{{64}}"):
        read_checkpoint(path, model.layout)


def flip_bit(path: Path, tensor: str) -> None:
    """Flip one bit of a tensor in a safetensors file: after 8 bytes of length and a JSON header with the tensors' offsets."""
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    data[start + json.loads(data[8:start])[tensor]["data_offsets"][0]] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("tensor", "key"),
    [
        ("optimizer/exp_avg/0.weight", "slots_sha256"),
        ("optimizer/step/0.weight", "slots_sha256"),
        ("1.num_batches_tracked", "constants_sha256"),
    ],
)
def test_read_checkpoint_with_a_flipped_bit_beside_the_model_raises(tmp_path: Path, tensor: str, key: str) -> None:
    shop, path = ModelShop(cnn_spec()), tmp_path / "x.safetensors"
    write_checkpoint(path, model := stepped(shop, shop.initial(), 1), HEADER)
    flip_bit(path, tensor)
    with pytest.raises(StoreError, match=rf"x\.safetensors: {key} must be [0-9a-f]{{64}}, got [0-9a-f]{{64}}\."):
        read_checkpoint(path, model.layout)


def test_read_checkpoint_that_has_lost_its_slots_raises(tmp_path: Path) -> None:
    shop, path = ModelShop(cnn_spec()), tmp_path / "x.safetensors"
    write_checkpoint(path, model := stepped(shop, shop.initial(), 1), HEADER)
    with safe_open(path, framework="np") as file:
        header = file.metadata()
    kept = {name: tensor for name, tensor in load_file(path).items() if not name.startswith(OPTIMIZER_PREFIX)}
    save_file(kept, path, header)
    with pytest.raises(StoreError, match=r"x\.safetensors: slots_sha256 must be [0-9a-f]{64}, got none\."):
        read_checkpoint(path, model.layout)


def test_read_checkpoint_of_another_layout_raises(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_checkpoint(path, ModelShop(cnn_spec()).initial(), HEADER)
    with pytest.raises(StoreError, match="layout must be that of the run's learner, got another one"):
        read_checkpoint(path, ModelShop(spec()).initial().layout)


def test_read_file_of_another_program_raises(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"1.weight": torch.zeros(2, 1)}, path)
    with pytest.raises(StoreError, match="layout must be that of the run's learner"):
        read_checkpoint(path, ModelShop(spec()).initial().layout)


@pytest.mark.parametrize("tensors", [{}, {"1.weight": torch.zeros(3, 1), "1.bias": torch.zeros(2)}])
def test_read_checkpoint_whose_tensors_are_not_those_of_its_header_raises(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    path, layout = tmp_path / "x.safetensors", ModelShop(spec()).initial().layout
    save_file(tensors, path, {"layout": layout.json})
    with pytest.raises(StoreError, match=r"tensor '1\.weight' must have shape \(2, 1\) float32, got another or none"):
        read_checkpoint(path, layout)


def test_next_takes_the_learning_rate_of_the_round() -> None:
    halving = {"kind": "exponential", "decay": 0.5}
    shop = ModelShop(spec(server={"optimizer": {"name": "sgd", "learning_rate": 1.0}, "schedule": halving}))
    first = shop.initial()
    mean = np.ones(first.layout.size, dtype=np.float32)
    for number, rate in ((1, 1.0), (2, 0.5), (3, 0.25)):
        found = shop.next(first, mean.copy(), 1, number)
        np.testing.assert_allclose(found.vector - first.vector, rate, rtol=1e-5)
