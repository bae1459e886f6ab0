"""The engine of processes: to the bit the serial one, whatever happens to its workers, and nothing is left of it."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from client.data import LocalData, split
from models import DataError, Examples
from server.cohort import Order
from server.inbox import Arrival, Binding
from server.model import ModelShop
from simulation.pool import PooledSites
from simulation.processes import SLOTS, ProcessesCohort
from simulation.resources import Resources
from simulation.serial import SerialCohort
from tests.server.cohorts import when
from tests.simulation.federations import CNN, MLP, SIZES, federation, play, sites
from wire.spec import RunSpec
from wire.tensors import Vector

SCRIPT = """
import sys
import choral
spec = {"name": "tiny", "learner": {"name": "mlp", "inputs": [1, 8, 8], "hidden": [8]}, "rounds": 2, "cohort": {"size": 3}}
print(len(choral.simulate(spec, sys.argv[1], engine="processes", workers=2, clients=4).rounds))
"""


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    """Return the processes that multiprocessing has started for one."""
    return [child for server in process.children() for child in server.children()]


@pytest.fixture
def no_workers_before() -> Iterator[None]:
    assert workers_of(psutil.Process()) == []
    yield
    assert workers_of(psutil.Process()) == []


def made(configured: RunSpec, data: dict[str, LocalData] | None = None) -> ProcessesCohort:
    return ProcessesCohort(configured, data or sites(), Resources(workers=2))


@pytest.mark.parametrize(
    ("learner", "local"),
    [
        pytest.param(CNN | {"dropout": 0.5}, {"epochs": 2}, id="cnn-dropout"),
        pytest.param(MLP | {"batch_norm": True}, {"optimizer": {"name": "adam", "learning_rate": 0.01}}, id="adam"),
        pytest.param(MLP, {"proximal_mu": 0.1, "clip_norm": 0.3}, id="fedprox-clip"),
    ],
)
@pytest.mark.usefixtures("no_workers_before")
async def test_processes_equal_serial_to_the_bit(
    tmp_path: Path, learner: dict[str, Any], local: dict[str, Any]
) -> None:
    configured = federation(learner, rounds=3, **local)
    data = sites(tuple(max(2, size) for size in SIZES))
    expected, serial = await play(SerialCohort(configured, data), configured, tmp_path / "serial")
    found, processes = await play(made(configured, data), configured, tmp_path / "processes")
    assert np.array_equal(found, expected)
    assert [record.metrics for record in processes] == [record.metrics for record in serial]


@pytest.mark.usefixtures("no_workers_before")
async def test_contributions_that_are_held_stay_as_they_are() -> None:
    configured, names = federation(MLP), sorted(sites())
    model = ModelShop(configured).initial()
    order = Order("run", 1, 0, configured, model, len(names))
    found: list[list[Vector]] = []
    for cohort in (SerialCohort(configured, sites()), ProcessesCohort(configured, sites(), Resources(workers=1))):
        binding = Binding("run", 1, model.sha256, model.layout.sha256)
        outcomes = [outcome async for outcome in cohort._outcomes(order, names, binding)]
        found.append([outcome.vector for outcome in outcomes if isinstance(outcome, Arrival)])
        cohort.close()
    expected, held = found
    assert len(held) == len(expected) > SLOTS + 1
    for own, other in zip(held, expected, strict=True):
        assert np.array_equal(own, other)


@pytest.mark.usefixtures("no_workers_before")
async def test_worker_that_is_killed_is_replaced_and_its_client_trained_again(tmp_path: Path) -> None:
    # Each client takes a good while, so that the signal comes in the middle of one.
    learner = {"name": "mlp", "inputs": [64], "hidden": [1500], "classes": 10}
    configured = federation(learner, rounds=2, size=4, batch_size=500)
    generator = torch.Generator().manual_seed(1)
    whole = Examples(torch.rand(2000, 64, generator=generator), torch.randint(10, (2000,), generator=generator))
    data = {f"site-{number}": split(whole, 0.1, number) for number in range(4)}
    expected, _ = await play(SerialCohort(configured, data), configured, tmp_path / "serial")
    cohort = made(configured, data)
    victim = workers_of(psutil.Process())[0]
    playing = asyncio.create_task(play(cohort, configured, tmp_path / "processes"))
    model = cohort._common.model.tensor
    await when(lambda: bool(model.any()) and victim.status() == psutil.STATUS_RUNNING, "it trains")
    victim.kill()
    found, records = await playing
    assert np.array_equal(found, expected)
    assert [len(record.contributions) for record in records] == [4, 4]
    assert records[0].refusals == []


@pytest.mark.usefixtures("no_workers_before")
async def test_client_without_held_out_data_is_refused_as_its_own_worker_says(tmp_path: Path) -> None:
    configured = federation(rounds=1, size=3)
    cohort = configured.cohort.model_copy(update={"quorum": 2})
    configured = configured.model_copy(update={"cohort": cohort, "weight_by": "quality"})
    data = sites((8, 12, 8))
    data["site-2"] = LocalData("memory", data["site-2"].training, data["site-2"].held_out.select(torch.arange(0)))
    _, (record,) = await play(made(configured, data), configured, tmp_path / "run")
    assert [part.client_id for part in record.contributions] == ["site-0", "site-1"]
    (refusal,) = record.refusals
    assert (refusal.client_id, refusal.reason) == ("site-2", "client_data")
    assert refusal.detail.startswith("Weight by quality: at least 1 example must be held out, got 0.")


@pytest.mark.usefixtures("no_workers_before")
def test_clients_whose_data_does_not_suit_the_learner_are_refused_before_a_worker_starts() -> None:
    with pytest.raises(DataError, match=r"Learner mlp: examples must have shape \(64,\) float32"):
        made(federation(MLP | {"inputs": [64]}))


def test_clients_with_examples_of_several_shapes_are_refused() -> None:
    odd = Examples(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(DataError, match=r"must have one shape, \(1, 8, 8\), got \(3,\) at odd\. Take the serial"):
        PooledSites.copied(
            sites() | {"odd": LocalData("memory", odd, odd)}, lambda shape, dtype: torch.empty(shape, dtype=dtype)
        )


@pytest.mark.usefixtures("no_workers_before")
def test_closed_cohort_leaves_no_shared_memory() -> None:
    def shared() -> int:
        # The folder itself is among them while it is read.
        return sum("memfd:choral" in str(path.resolve()) for path in Path("/proc/self/fd").iterdir())

    before = shared()
    cohort = made(federation())
    assert shared() > before
    cohort.close()
    # A tensor keeps the memory that it lies in.
    del cohort
    gc.collect()
    assert shared() == before


def test_ctrl_c_during_training_ends_quietly_and_leaves_no_process(tmp_path: Path) -> None:
    slow = SCRIPT.replace('"hidden": [8]', '"hidden": [8], "dropout": 0.1').replace(
        '"rounds": 2', '"local": {"epochs": 10000}, "rounds": 2'
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-c", slow, str(tmp_path / "out")],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    parent = psutil.Process(process.pid)
    while len(workers := workers_of(parent)) < 2 or not all(worker.cpu_times().user > 1 for worker in workers):
        assert process.poll() is None
        psutil.wait_procs([parent], timeout=0.1)
    # As a terminal does it: to all of them.
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    # The script's own KeyboardInterrupt, and no word of a worker's.
    assert errors.endswith("KeyboardInterrupt\n")
    assert "simulation/processes.py" not in errors, errors
    assert psutil.wait_procs(workers, timeout=10)[1] == []


def test_simulate_from_a_script_without_a_guard_ends_and_leaves_no_process(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "script.py", "out"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    endless = SCRIPT.replace('"rounds": 2', '"rounds": 1000000')
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", endless, str(tmp_path / "out")], env=environment)
    parent = psutil.Process(process.pid)
    while len(workers := workers_of(parent)) < 2:
        assert process.poll() is None
        psutil.wait_procs([parent], timeout=0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert alive == []
