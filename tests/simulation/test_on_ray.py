"""The Ray engine on a real cluster of two nodes: to the bit the serial one, whatever happens to its actors, and a guest on the cluster."""

import asyncio
import dataclasses
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from client.data import split
from models import Examples
from models.own import VARIABLE
from simulation import on_ray
from simulation.errors import SimulationError
from simulation.on_ray import RayCohort, RaySeat
from simulation.resources import Resources
from simulation.serial import SerialCohort
from tests.server.cohorts import when
from tests.simulation.federations import CNN, MLP, federation, play, sites

CPU = Resources(device="cpu")
"""Where all compute alike, whether or not the nodes of the cluster have a GPU that this process sees."""

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own, of its sockets and its settings


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


@pytest.fixture
def connected(cluster: Cluster) -> Iterator[None]:
    """Connect this process, as a user's script may have done before it simulates."""
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


async def test_actors_on_two_nodes_equal_serial_to_the_bit(cluster: Cluster, tmp_path: Path) -> None:
    configured = federation(CNN | {"dropout": 0.5}, rounds=3, epochs=2)
    expected, serial = await play(SerialCohort(configured, sites(), CPU), configured, tmp_path / "serial")
    cohort = RayCohort(configured, sites(), Resources(device="cpu", ray_address=cluster.address))
    assert len(cohort._seats) == 2
    found, records = await play(cohort, configured, tmp_path / "ray")
    assert np.array_equal(found, expected)
    assert [record.metrics for record in records] == [record.metrics for record in serial]
    # It had connected by itself, so it has parted from the cluster, which goes on.
    assert not ray.is_initialized()
    assert all(node.all_processes["raylet"][0].process.poll() is None for node in cluster.list_all_nodes())


@pytest.mark.usefixtures("connected")
async def test_actor_that_is_killed_is_replaced_and_its_client_trained_again(tmp_path: Path) -> None:
    # Each client takes a good while, so that the signal comes in the middle of one.
    configured = federation({"name": "mlp", "inputs": [64], "hidden": [1500]}, rounds=2, size=4, batch_size=500)
    generator = torch.Generator().manual_seed(1)
    whole = Examples(torch.rand(2000, 64, generator=generator), torch.randint(10, (2000,), generator=generator))
    data = {f"site-{number}": split(whole, 0.1, number) for number in range(4)}
    expected, _ = await play(SerialCohort(configured, data, CPU), configured, tmp_path / "serial")
    cohort = RayCohort(configured, data, CPU)
    seat = cohort._seats[0]
    assert isinstance(seat, RaySeat)
    process_id: int = ray.get(seat.actor.process_id.remote())
    victim = psutil.Process(process_id)
    playing = asyncio.create_task(play(cohort, configured, tmp_path / "ray"))
    await when(lambda: bool(cohort._model) and victim.status() == psutil.STATUS_RUNNING, "the actor trains")
    victim.kill()
    found, records = await playing
    assert np.array_equal(found, expected)
    assert [len(record.contributions) for record in records] == [4, 4]
    assert records[0].refusals == []
    # This process was connected before, and still is.
    assert ray.is_initialized()


@pytest.mark.usefixtures("connected")
def test_more_actors_than_the_cluster_has_room_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray, "READY_SECONDS", 5.0)
    with pytest.raises(SimulationError, match=r"every actor must get 1 CPUs and 0 GPUs within 5 s, got none; free are"):
        RayCohort(federation(), sites(), Resources(workers=3))
    assert ray.is_initialized()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nobody.invalid:6379", "127.0.0.1:word"])
def test_cluster_that_is_not_there_is_refused(address: str) -> None:
    with pytest.raises(SimulationError, match=rf"^Ray cluster {address}: must be reachable, got: "):
        RayCohort(federation(), sites(), Resources(ray_address=address))
    assert not ray.is_initialized()


OWN = '''
from models.mlp import MLP
class Mine(MLP):
    """A learner of a user's own."""
'''


@pytest.mark.usefixtures("connected")
async def test_learner_of_the_users_own_is_known_to_actors_of_a_cluster_that_was_there_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.setenv(VARIABLE, f"{tmp_path}/mine.py:Mine")
    configured = federation(MLP | {"name": "mine"}, rounds=1)
    expected, _ = await play(SerialCohort(configured, sites(), CPU), configured, tmp_path / "serial")
    found, _ = await play(RayCohort(configured, sites(), CPU), configured, tmp_path / "ray")
    assert np.array_equal(found, expected)


@pytest.mark.usefixtures("connected")
def test_actor_that_cannot_start_says_why_in_a_line() -> None:
    cohort = RayCohort(federation(), sites(), Resources(device="cpu", workers=1))
    seat = cohort._seats[0]
    assert isinstance(seat, RaySeat)
    seat._plan = dataclasses.replace(seat._plan, device="nonsense")
    with pytest.raises(
        SimulationError, match=r"^Ray: actors must start, got: .*Device: must be auto or .*'nonsense'[^\n]*$"
    ):
        seat.replace()
    cohort.close()


CTRL_C = """
import signal, sys
import ray
import choral
from tests.simulation.test_simulate import SETTING, SPEC
def start(**_):
    signal.raise_signal(signal.SIGINT)
    print("went on")
ray.init = start
choral.simulate(SPEC, sys.argv[1], engine="ray", **SETTING)
"""


def test_ctrl_c_while_ray_starts_ends_at_once(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", CTRL_C, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (-signal.SIGINT, b""), ended.stderr
