"""Secure aggregation with real processes: laws L2 and L3 hold for it, whichever client or coordinator is killed at whichever stage."""

import asyncio
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from client.data import load_local
from privacy.keys import load_identity
from server.checkpoints import checkpoint_path
from server.records import AuditRecord, EventRecord
from server.store import open_store
from simulation.serial import run_serially
from tests.client.masked import is_statement
from tests.federation import Federation, tensor_bytes
from tests.privacy.rosters import entry, public, roster, write_roster
from wire.spec import validate_spec

NAMES = ("site-0", "site-1", "site-2", "site-3")
STAGES_BEFORE_OPENING = ("before-roster", "before-deliveries", "before-survivors", "before-opening")
SPEC: dict[str, Any] = {
    "name": "masked",
    "seed": 7,
    "learner": {"name": "mlp", "inputs": [1, 8, 8], "hidden": [32], "dropout": 0.1},
    "rounds": 5,
    "cohort": {"size": 4, "deadline_seconds": 120, "wait_seconds": 120, "return_seconds": 60},
    "local": {"epochs": 2, "batch_size": 16, "optimizer": {"name": "sgd", "learning_rate": 0.2}},
}
MASKED: dict[str, Any] = SPEC | {
    "privacy": {
        "secure_aggregation": {
            "coordinate_bound": 2.0,
            "corrupt_fraction": 0.0,
            "dropout_fraction": 0.25,
            "stage_seconds": 60,
        }
    }
}
"""Of four clients, one may be missing in the end."""


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """Four enrolled clients that stay for the whole module; each test starts coordinators of its own on the same port."""
    folder = tmp_path_factory.mktemp("federation")
    path = folder / "roster.json"
    with Federation(folder, "--roster", str(path)) as federation:
        # A key that outlives the coordinator's folder.
        key = public(load_identity(folder / "coordinator.pem")).hex()
        clients = [entry(name, load_identity(folder / name / "identity.pem")) for name in NAMES]
        write_roster(path, roster(*clients, coordinator_key=key))
        for name in NAMES:
            start_client(federation, name)
        yield federation


@pytest.fixture
def fresh(federation: Federation) -> Iterator[Federation]:
    """The federation with a coordinator folder of its own, and the coordinator's key in it."""
    federation.coordinator_folder.mkdir()
    shutil.copy(federation.folder / "coordinator.pem", federation.coordinator_folder)
    yield federation
    if federation.coordinator is not None and federation.coordinator.is_alive:
        federation.coordinator.kill()
    shutil.rmtree(federation.coordinator_folder)


@pytest.fixture(scope="module")
def reference(federation: Federation, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The model of the undisturbed serial run, with the clients' identities, which sums masked vectors too."""
    folder = tmp_path_factory.mktemp("serial")
    sites = {
        federation.client_id(name): load_local(f"digits,blocks={name.removeprefix('site-')}", 0.2, 0) for name in NAMES
    }

    async def run() -> None:
        store = await open_store(str(folder / "serial.sqlite"))
        await run_serially(validate_spec(MASKED), sites, store, folder)
        await store.close()

    asyncio.run(run())
    return tensor_bytes(sorted(folder.glob("*.safetensors"))[-1])


def start_client(federation: Federation, name: str, fault: str = "") -> Any:
    data, path = f"digits,blocks={name.removeprefix('site-')}", federation.folder / "roster.json"
    return federation.start_client(name, data, "--roster", str(path), fault=fault)


def events(federation: Federation, run_id: str) -> list[EventRecord]:
    """Return what happened in a run, from the store of a coordinator that is not running."""
    assert federation.coordinator is not None
    federation.coordinator.end()

    async def read() -> list[EventRecord]:
        store = await open_store(str(federation.coordinator_folder / "choral.sqlite"))
        try:
            return [event for event in await store.events() if event.run_id == run_id]
        finally:
            await store.close()

    return asyncio.run(read())


def test_masked_run_reaches_the_accuracy_of_the_plain_one(fresh: Federation, reference: bytes) -> None:
    fresh.start_coordinator()
    plain, masked = fresh.submit(SPEC), fresh.submit(MASKED)
    fresh.wait_for_end(plain)
    fresh.wait_for_end(masked)
    assert fresh.model_bytes(masked) == reference
    found, expected = (fresh.rounds(run_id)[-1]["metrics"] for run_id in (masked, plain))
    assert found["accuracy"] == pytest.approx(expected["accuracy"], abs=0.01)
    assert found["accuracy"] > 0.7
    assert all(client.is_alive for client in fresh.clients.values())


def test_coordinator_killed_at_each_stage_before_opening_ends_with_the_undisturbed_model(
    fresh: Federation, reference: bytes
) -> None:
    run_id = ""
    for number, stage in enumerate(STAGES_BEFORE_OPENING, start=1):
        coordinator = fresh.start_coordinator(stage, str(number))
        run_id = run_id or fresh.submit(MASKED)
        assert coordinator.wait() == -9, coordinator.output
    fresh.start_coordinator()
    fresh.wait_for_end(run_id)
    assert fresh.model_bytes(run_id) == reference
    rounds = fresh.rounds(run_id)
    # A session for what was cut off, one for the round, one for its evaluation.
    assert [record["session_count"] for record in rounds] == [3, 3, 3, 3, 2]
    assert [len(record["contributions"]) for record in rounds] == [4] * 5
    assert [record["refusals"] for record in rounds] == [[]] * 5


def test_coordinator_killed_while_it_evaluates_goes_on_with_the_model_that_was_opened(
    fresh: Federation, reference: bytes
) -> None:
    coordinator = fresh.start_coordinator("while-evaluating", "1")
    run_id = fresh.submit(MASKED)
    assert coordinator.wait() == -9, coordinator.output
    coordinator = fresh.start_coordinator("while-opening-evaluation", "3")
    assert coordinator.wait() == -9, coordinator.output
    fresh.start_coordinator()
    fresh.wait_for_end(run_id)
    assert fresh.model_bytes(run_id) == reference
    # An evaluation that was opened and lost is not held again.
    assert ["accuracy" in record["metrics"] for record in fresh.rounds(run_id)] == [True, True, False, True, True]
    [lost] = [event.detail for event in events(fresh, run_id) if event.kind == "evaluation_lost"]
    assert lost.startswith("Round 3: not evaluated. ")


def test_coordinator_killed_while_a_sum_is_opened_loses_the_round_and_the_run_goes_on(fresh: Federation) -> None:
    coordinator = fresh.start_coordinator("while-opening", "2")
    secure = MASKED["privacy"]["secure_aggregation"] | {"audit": True}
    run_id = fresh.submit(MASKED | {"rounds": 3, "privacy": {"secure_aggregation": secure}})
    assert coordinator.wait() == -9, coordinator.output
    fresh.start_coordinator()
    fresh.wait_for_end(run_id)
    rounds = fresh.rounds(run_id)
    assert [len(record["contributions"]) for record in rounds] == [4, 0, 4]
    assert rounds[1]["model_sha256"] == rounds[0]["model_sha256"] != rounds[2]["model_sha256"]
    # What clients signed in the session whose sum was lost is there all the same: it was stored before they were asked to open it.
    audits = [[AuditRecord.model_validate(audit) for audit in record["audits"]] for record in rounds]
    assert [[audit.kind for audit in found] for found in audits] == [
        ["train", "evaluate"],
        ["train"],
        ["train", "evaluate"],
    ]
    assert all(len(audit.uploads) == 4 for found in audits for audit in found)
    assert all(is_statement(audit, upload) for found in audits for audit in found for upload in audit.uploads)
    [lost] = [event.detail for event in events(fresh, run_id) if event.kind == "round_lost"]
    assert lost == (
        "Round 2: its sum was lost while it was being opened, and no client opens another one of the same round. "
        "The model stays as it was."
    )
    assert checkpoint_path(fresh.coordinator_folder / "runs" / run_id, 3).is_file()


def test_client_killed_after_it_shared_is_left_out_and_comes_back(fresh: Federation) -> None:
    fresh.clients["site-2"].kill()
    fresh.start_coordinator()
    client = start_client(fresh, "site-2", fault="after-sharing")
    fresh.wait_for_clients(4)
    cohort = {"size": 4, "quorum": 3, "return_seconds": 1, "wait_seconds": 60, "deadline_seconds": 100}
    run_id = fresh.submit(MASKED | {"rounds": 3, "cohort": cohort})
    assert client.wait() == -9, client.output
    start_client(fresh, "site-2")
    fresh.wait_for_end(run_id)
    rounds = fresh.rounds(run_id)
    assert len(rounds[0]["contributions"]) == 4
    left_out = fresh.client_id("site-2")
    assert left_out not in [part["client_id"] for part in rounds[1]["contributions"]]
    assert [len(record["contributions"]) for record in rounds][1:] == [3, 4]
    assert [record["session_count"] for record in rounds] == [2, 2, 2]
