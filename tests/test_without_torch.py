"""A coordinator in an environment without torch, with real clients that have it: its runs end as those of any other (laws L2 and L3).

The environment has the packages that `pip install choral[server]` brings and no others.
"""

import asyncio
import contextlib
import json
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.numpy import load, save

from choral.rest import RestError
from client.data import load_local
from client.training import first_model
from privacy.keys import load_identity
from server.catalogue import PATH, written
from server.checkpoints import checkpoint_path
from server.store import open_store
from simulation.serial import run_serially
from tests import hostile
from tests.federation import HERE, Federation, tensor_bytes, wait_until
from tests.privacy.rosters import entry, public, roster, write_roster
from tests.slim import link_packages
from wire import federation_pb2 as pb
from wire.saved import LAYOUT_KEY
from wire.spec import validate_spec

NAMES = ("site-0", "site-1", "site-2")
LIAR_COUNT = 5
SPEC: dict[str, Any] = {
    "name": "plain",
    "seed": 7,
    # With counters of batch norm, which do not travel but for the first model.
    "learner": {"name": "cnn", "channels": [4], "batch_norm": True},
    "rounds": 3,
    "cohort": {"size": 3, "deadline_seconds": 120, "wait_seconds": 120, "return_seconds": 0.5},
    "local": {"epochs": 2, "batch_size": 16, "optimizer": {"name": "adam", "learning_rate": 0.01}},
}
MASKED: dict[str, Any] = SPEC | {
    "privacy": {"secure_aggregation": {"coordinate_bound": 4.0, "corrupt_fraction": 0.0, "stage_seconds": 60}}
}

Lie = Callable[[hostile.Session, pb.Task], Awaitable[pb.UploadVerdict | None]]


def liar_keys(below: str) -> list[Ed25519PrivateKey]:
    """Return keys of clients that are asked before one, because their identities are lower."""
    keys: list[Ed25519PrivateKey] = []
    while len(keys) < LIAR_COUNT:
        if hostile.client_id(key := Ed25519PrivateKey.generate()) < below:
            keys.append(key)
    return sorted(keys, key=hostile.client_id)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """Three enrolled clients that stay for the whole module, and a coordinator's environment; each test starts coordinators of its own."""
    folder = tmp_path_factory.mktemp("federation")
    path = folder / "roster.json"
    with Federation(folder, "--roster", str(path)) as federation:
        (folder / "packages").mkdir()
        federation.python = link_packages(folder / "packages", "server")
        coordinator_key = public(load_identity(folder / "coordinator.pem")).hex()
        clients = [entry(name, load_identity(folder / name / "identity.pem")) for name in NAMES]
        liars = [entry(f"liar-{place}", key) for place, key in enumerate(keys_of_liars(federation))]
        write_roster(path, roster(*clients, *liars, coordinator_key=coordinator_key))
        for name in NAMES:
            start_client(federation, name)
        yield federation


def keys_of_liars(federation: Federation) -> list[Ed25519PrivateKey]:
    """Return the keys of enrolled clients that lie; they are asked first."""
    path = federation.folder / "liars.json"
    if not path.exists():
        keys = liar_keys(min(map(federation.client_id, NAMES)))
        path.write_text(json.dumps([key.private_bytes_raw().hex() for key in keys]))
    return [Ed25519PrivateKey.from_private_bytes(bytes.fromhex(key)) for key in json.loads(path.read_text())]


def first_asked(federation: Federation) -> str:
    """Return the client that is asked for a first model before the other two."""
    return min(NAMES, key=federation.client_id)


def start_client(federation: Federation, name: str, fault: str = "never") -> Any:
    data, path = f"digits,blocks={name.removeprefix('site-')}", federation.folder / "roster.json"
    return federation.start_client(name, data, "--roster", str(path), fault=fault)


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
    """The model of the undisturbed serial run."""
    return serial_model(federation, SPEC, tmp_path_factory.mktemp("serial"))


def serial_model(federation: Federation, spec: dict[str, Any], folder: Path) -> bytes:
    """Return the model of the undisturbed serial run, with the clients' identities."""
    sites = {
        federation.client_id(name): load_local(f"digits,blocks={name.removeprefix('site-')}", 0.2, 0) for name in NAMES
    }

    async def run() -> None:
        store = await open_store(str(folder / "serial.sqlite"))
        await run_serially(validate_spec(spec), sites, store, folder)
        await store.close()

    asyncio.run(run())
    return tensor_bytes(sorted(folder.glob("*.safetensors"))[-1])


def missing_models(federation: Federation, run_id: str) -> list[dict[str, Any]]:
    """Return the events of clients that did not bring the first model."""
    return [event for event in federation.rest.get("/events", run_id=run_id) if event["kind"] == "first_model_missing"]


def test_run_goes_on_when_the_client_that_draws_is_killed_and_the_coordinator_before_and_after_and_later(
    fresh: Federation, reference: bytes
) -> None:
    doomed = first_asked(fresh)
    fresh.clients[doomed].kill()
    start_client(fresh, doomed, fault="while-drawing")
    coordinator = fresh.start_coordinator("before-first-model", "0")
    fresh.wait_for_clients(3)
    run_id = fresh.submit(SPEC)
    assert fresh.clients[doomed].wait() == -9
    assert coordinator.wait() == -9, coordinator.output
    assert not checkpoint_path(fresh.coordinator_folder / "runs" / run_id, 0).exists()
    start_client(fresh, doomed)
    for moment, number in (("before-selection", "1"), ("before-commit", "2")):
        coordinator = fresh.start_coordinator(moment, number)
        assert coordinator.wait() == -9, coordinator.output
        assert checkpoint_path(fresh.coordinator_folder / "runs" / run_id, 0).exists()
    fresh.start_coordinator()
    fresh.wait_for_end(run_id)
    assert fresh.model_bytes(run_id) == reference
    assert [record["refusals"] for record in fresh.rounds(run_id)] == [[]] * 3
    [missing] = missing_models(fresh, run_id)
    assert (missing["client_id"], missing["detail"]) == (fresh.client_id(doomed), "dropped off or was silent")
    assert all(client.is_alive for client in fresh.clients.values())


def test_masked_run_ends_as_the_serial_run(fresh: Federation, tmp_path: Path) -> None:
    fresh.start_coordinator()
    run_id = fresh.submit(MASKED)
    fresh.wait_for_end(run_id)
    assert fresh.model_bytes(run_id) == serial_model(fresh, MASKED, tmp_path)


def spoilt(**changes: Any) -> bytes:
    """Return the true first model with some tensors changed, under the true layout unless another is given."""
    data = first_model(validate_spec(SPEC))
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    layout = changes.pop(LAYOUT_KEY, header[LAYOUT_KEY])
    return save(load(data) | changes, {LAYOUT_KEY: layout})


def lie(data: bytes, **changes: Any) -> Lie:
    """Return what brings a file as the contract asks, under a header with some fields changed."""

    async def bring(session: hostile.Session, task: pb.Task) -> pb.UploadVerdict | None:
        upload = session.upload()
        right = {"encoding": pb.VECTOR_ENCODING_SAFETENSORS, "weight": 0, "example_count": 0}
        offset = await upload.begin(session.header(task, data, **(right | changes)))
        if offset is not None:
            await upload.slices(data, offset, size=1 << 16)
            await upload.close()
        return await upload.verdict()

    return bring


async def be_silent(session: hostile.Session, task: pb.Task) -> None:
    """Leave without a word."""


def test_first_models_of_liars_are_refused_and_another_client_is_asked(fresh: Federation, reference: bytes) -> None:
    weight = np.full((4, 1, 3, 3), np.nan, dtype=np.float32)
    lies: list[tuple[Lie, str]] = [
        (lie(spoilt(**{"0.weight": weight})), "not finite: every number of a first model must be finite, got others"),
        (
            lie(spoilt(layout='[["0.weight",[3,1],"float32"]]')),
            r"wrong layout: First model: tensor '0.weight' must have",
        ),
        (lie(b"no file at all"), "wrong layout: First model: must be a safetensors file"),
        (lie(b"x", total_bytes=1 << 60), "wrong size: total_bytes must be 1 to "),
        (be_silent, "dropped off or was silent"),
    ]

    async def tell_lies(run_id: str) -> None:
        async with contextlib.AsyncExitStack() as stack:
            capabilities = pb.Capabilities(learners=["cnn"], device="cpu", thread_count=1)
            sessions = [
                await stack.enter_async_context(hostile.joined(fresh.address, key, capabilities=capabilities))
                for key in keys_of_liars(fresh)
            ]
            await asyncio.to_thread(fresh.rest.post, f"/runs/{run_id}/resume")
            for session, (tell, _) in zip(sessions, lies, strict=True):
                task = await session.task()
                assert (task.WhichOneof("kind"), task.round, task.cohort_size) == ("first_model", 0, 1)
                await tell(session, task)
                session.call.cancel()

    fresh.start_coordinator()
    fresh.wait_for_clients(3)
    for name in NAMES:
        fresh.clients[name].pause()
    try:
        run_id = fresh.submit(SPEC)
        fresh.rest.post(f"/runs/{run_id}/pause")
        asyncio.run(tell_lies(run_id))
        wait_until(lambda: len(missing_models(fresh, run_id)) == len(lies), "all liars to be refused")
    finally:
        for name in NAMES:
            fresh.clients[name].resume()
    fresh.wait_for_end(run_id)
    assert fresh.model_bytes(run_id) == reference
    for event, (_, sentence) in zip(missing_models(fresh, run_id), lies, strict=True):
        assert event["detail"].startswith(sentence)


def test_parameters_that_clients_refuse_end_the_run_with_their_sentence(fresh: Federation) -> None:
    fresh.start_coordinator()
    run_id = fresh.submit(SPEC | {"learner": {"name": "cnn", "chanels": [4]}})
    run = fresh.wait_for_end(run_id, "failed")
    assert run["reason"] == (
        "First model: a client must be able to draw it, got: Learner cnn: chanels is not a key that exists here."
    )
    assert {event["client_id"] for event in missing_models(fresh, run_id)} == set(map(fresh.client_id, NAMES))


REFUSALS = [
    pytest.param({"server": {"optimizer": {"name": "adam"}}}, "server.optimizer must be sgd with", id="optimizer"),
    pytest.param(
        {"server": {"optimizer": {"name": "sgd", "learning_rate": 1.0, "momentum": 0.9}}},
        "server.optimizer must be sgd with learning_rate 1 alone on a coordinator without torch, got ",
        id="momentum",
    ),
    pytest.param(
        {"server": {"schedule": {"kind": "exponential", "decay": 0.5}}},
        "server.schedule must be left out on",
        id="schedule",
    ),
    pytest.param({"evaluate": {"on": "coordinator"}}, "evaluate.on must be 'clients' on", id="evaluate"),
    pytest.param({"learner": {"name": "evolution"}}, "learner.name must be that of a learner without", id="step"),
    pytest.param({"learner": {"name": "mine"}}, "learner.name must be one of autoencoder, ", id="unknown"),
    pytest.param(
        {"learner": {"name": "cnn", "initialize_from": "trained"}}, "learner must start from no base, ", id="base"
    ),
    pytest.param({"learner": {"name": "hf_causal_lm", "base": "gpt2"}}, "learner must start from no base, ", id="hf"),
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A coordinator without torch and without clients, for those who only ask it something."""
    with Federation(tmp_path_factory.mktemp("served")) as federation:
        (federation.folder / "packages").mkdir()
        federation.python = link_packages(federation.folder / "packages", "server")
        federation.start_coordinator()
        yield federation


@pytest.mark.parametrize(("changes", "rule"), REFUSALS)
def test_run_that_needs_torch_here_is_refused_by_name(served: Federation, changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(RestError) as refusal:
        served.submit(SPEC | changes)
    assert str(refusal.value).startswith(f"Run spec: {rule}")
    assert "on a coordinator without torch, got " in str(refusal.value)
    assert "pip install 'choral[torch]'" in str(refusal.value)
    assert served.rest.get("/runs") == []


def test_learners_are_those_of_the_zoo_and_say_where_torch_is_needed(served: Federation) -> None:
    found = {learner["name"]: learner for learner in served.rest.get("/learners")}
    kept = json.loads(PATH.read_text(encoding="utf-8"))
    assert list(found) == list(kept)
    assert found["cnn"]["needs"] == ""
    assert found["genetic"]["needs"] == "torch on the coordinator: pip install 'choral[torch]'"
    assert served.rest.get("/learners/cnn")["parameters_schema"] == kept["cnn"]["parameters_schema"]


def test_file_of_learners_is_up_to_date() -> None:
    assert PATH.read_text(encoding="utf-8") == written(), "run make learners"


CALL_EACH = """
import contextlib, io, json, sys
from choral.cli import main

outcomes = []
for sys.argv in json.loads(sys.argv[1]):
    code, out = 0, io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            main()
        except SystemExit as end:
            code = end.code
    outcomes.append((code, " ".join(out.getvalue().split())))
print(json.dumps(outcomes))
"""


def test_commands_of_an_operator_need_no_torch_and_others_say_so_in_one_sentence(
    served: Federation, tmp_path: Path
) -> None:
    spec, script, url = tmp_path / "run.yaml", tmp_path / "call_each.py", f"http://{served.http_address}"
    spec.write_text(json.dumps(SPEC | {"evaluate": {"on": "coordinator"}}))
    script.write_text(CALL_EACH)
    missing = (1, "Error: Package torch: must be installed, got none. Run pip install 'choral[torch]'.")
    refused = "Error: Run spec: evaluate.on must be 'clients' on a coordinator without torch, got 'coordinator'."
    expected = {
        ("runs", "list", "--url", url): (0, "run"),
        ("submit", str(spec), "--url", url): (1, refused),
        ("token", "create", "ana", "--role", "viewer", "--folder", str(tmp_path / "state")): (0, ""),
        ("certificates", str(tmp_path / "certificates"), "--host", "localhost"): (0, ""),
        ("spec", "schema"): (0, "{"),
        ("api", "--store", str(tmp_path / "state.sqlite")): (1, "Error: Store"),
        ("join", "127.0.0.1:1", "--data", "digits"): missing,
        ("simulate", str(spec)): missing,
        ("models", "--help"): missing,
        ("spec", "check", str(spec)): missing,
        ("serve", "--data", "digits", "--folder", str(tmp_path / "state")): missing,
    }
    lines = json.dumps([["choral", *command] for command in expected])
    python = [*served.python, str(script), lines]
    done = subprocess.run(
        python, cwd=HERE.parent, env={"PYTHONPATH": "."}, capture_output=True, text=True, check=True, timeout=100
    )
    found = dict(zip(expected, json.loads(done.stdout), strict=True))
    for command, (code, words) in expected.items():
        assert found[command][0] == code, (command, found[command])
        assert found[command][1].startswith(words), (command, found[command])


def test_threads_are_those_of_the_clients() -> None:
    # The serial reference must train with as many threads as the clients, or the bits may differ.
    assert torch.get_num_threads() == 1
