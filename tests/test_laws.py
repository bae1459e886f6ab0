"""Laws L2 and L3 with real processes: a deployed run equals the serial one to the bit, and so does one in which something was killed."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from client.data import load_local
from server.store import open_store
from simulation.serial import run_serially
from tests.federation import Federation, tensor_bytes, wait_until
from wire.spec import validate_spec

CLIENT_COUNT = 3
SPEC: dict[str, Any] = {
    "name": "law",
    "seed": 7,
    # Three slices, so that an upload has a middle.
    "learner": {"name": "mlp", "inputs": [1, 8, 8], "hidden": [8000], "dropout": 0.1},
    "rounds": 3,
    "cohort": {"size": CLIENT_COUNT, "deadline_seconds": 120, "wait_seconds": 120, "return_seconds": 60},
    "local": {"epochs": 4, "batch_size": 16, "optimizer": {"name": "sgd", "learning_rate": 0.05}},
    "server": {"optimizer": {"name": "adam", "learning_rate": 0.001}},
    "evaluate": {"every": 0},
}


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """Three clients that stay for the whole module; each test starts coordinators of its own on the same port."""
    with Federation(tmp_path_factory.mktemp("federation")) as federation:
        federation.start_digits_clients(CLIENT_COUNT)
        yield federation


@pytest.fixture(scope="module")
def reference(federation: Federation, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The model of the undisturbed serial run, with the clients' identities."""
    keys = [federation.folder / name / "identity.pem" for name in federation.clients]
    wait_until(lambda: all(key.exists() for key in keys), "the clients' keys")
    return serial_model(SPEC, federation, tmp_path_factory.mktemp("serial"))


@pytest.fixture
def fresh(federation: Federation) -> Iterator[Federation]:
    """The federation with a coordinator folder of its own."""
    yield federation
    if federation.coordinator is not None and federation.coordinator.is_alive:
        federation.coordinator.kill()
    shutil.rmtree(federation.coordinator_folder)


def serial_model(spec: dict[str, Any], federation: Federation, folder: Path) -> bytes:
    """Run a spec serially on the clients' data and return the model's bytes."""
    sites = {
        federation.client_id(name): load_local(f"digits,blocks={name.removeprefix('site-')}", 0.2, 0)
        for name in federation.clients
    }

    async def run() -> None:
        store = await open_store(str(folder / "serial.sqlite"))
        await run_serially(validate_spec(spec), sites, store, folder)
        await store.close()

    asyncio.run(run())
    return tensor_bytes(sorted(folder.glob("*.safetensors"))[-1])


def test_deployed_run_equals_serial_run_to_the_bit(fresh: Federation, reference: bytes) -> None:
    fresh.start_coordinator()
    run_id = fresh.submit(SPEC)
    run = fresh.wait_for_end(run_id)
    assert run["round_number"] == SPEC["rounds"]
    assert fresh.model_bytes(run_id) == reference


@pytest.mark.parametrize(
    "moment",
    ["before-selection", "while-training", "mid-upload", "after-last-upload", "before-commit", "after-commit"],
)
def test_killed_coordinator_ends_with_the_undisturbed_model(fresh: Federation, reference: bytes, moment: str) -> None:
    coordinator = fresh.start_coordinator(moment, "2")
    run_id = fresh.submit(SPEC)
    assert coordinator.wait() == -9, coordinator.output
    fresh.start_coordinator()
    run = fresh.wait_for_end(run_id)
    assert run["round_number"] == SPEC["rounds"]
    assert fresh.model_bytes(run_id) == reference
    assert all(client.is_alive for client in fresh.clients.values())


def test_coordinator_that_was_asked_to_end_waits_for_its_clients_when_it_is_back(
    fresh: Federation, reference: bytes
) -> None:
    coordinator = fresh.start_coordinator()
    fresh.wait_for_clients(CLIENT_COUNT)
    # With this quorum, a round may close without clients who are not expected back.
    run_id = fresh.submit(SPEC | {"cohort": SPEC["cohort"] | {"quorum": 1}})
    wait_until(lambda: "waiting for" in fresh.run(run_id)["status"], "the clients to train")
    assert coordinator.end() == 0
    fresh.clients["site-2"].pause()
    fresh.start_coordinator()
    wait_until(lambda: "waiting for 1 of 3 updates" in fresh.run(run_id)["status"], "all but one to contribute")
    fresh.clients["site-2"].resume()
    fresh.wait_for_end(run_id)
    assert fresh.model_bytes(run_id) == reference


@pytest.mark.parametrize("moment", ["while-training", "while-uploading"])
def test_killed_client_comes_back_and_ends_with_the_undisturbed_model(
    fresh: Federation, reference: bytes, moment: str
) -> None:
    fresh.clients["site-2"].kill()
    client = fresh.start_client("site-2", "digits,blocks=2", fault=moment)
    fresh.start_coordinator()
    run_id = fresh.submit(SPEC)
    assert client.wait() == -9, client.output
    fresh.start_client("site-2", "digits,blocks=2", fault="never")
    fresh.wait_for_end(run_id)
    assert fresh.model_bytes(run_id) == reference
    records = fresh.rounds(run_id)
    assert [len(record["contributions"]) for record in records] == [CLIENT_COUNT] * 3
    assert [record["refusals"] for record in records] == [[]] * 3


@pytest.mark.parametrize("moment", ["while-training", "while-uploading"])
def test_round_with_a_quorum_closes_without_a_killed_client(fresh: Federation, moment: str) -> None:
    fresh.clients["site-2"].kill()
    client = fresh.start_client("site-2", "digits,blocks=2", fault=moment)
    fresh.start_coordinator()
    cohort = {"size": CLIENT_COUNT, "quorum": 2, "return_seconds": 1, "wait_seconds": 1, "deadline_seconds": 100}
    fresh.wait_for_clients(CLIENT_COUNT)
    run_id = fresh.submit({**SPEC, "cohort": cohort})
    assert client.wait() == -9, client.output
    fresh.wait_for_end(run_id)
    assert [len(record["contributions"]) for record in fresh.rounds(run_id)] == [3, 2, 2]
    fresh.start_client("site-2", "digits,blocks=2", fault="never")


def test_threads_are_those_of_the_clients() -> None:
    # The serial reference must train with as many threads as the clients, or the bits may differ.
    assert torch.get_num_threads() == 1
