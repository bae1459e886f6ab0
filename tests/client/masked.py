"""Federations of this process whose runs are masked: a coordinator and clients over real sockets, with a roster that names them all."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client.agent import Agent, AgentConfig
from client.connection import Endpoint
from client.data import LocalData, load_local
from client.policy import Policy
from client.training import Assignment, Trainer
from privacy.enrolment import EnrolmentFile
from privacy.keys import load_identity
from privacy.secagg.audit import UploadTerms
from server.aggregation import WeightedMean
from server.checkpoints import checkpoint_path
from server.cohort import Order
from server.coordinator import Coordinator
from server.model import ModelShop, read_checkpoint
from server.records import AuditRecord, RoundRecord, RunState, SignedUploadRecord
from simulation.serial import run_serially
from tests.client.sites import CPU, until_joined
from tests.loopback import run_in_state, serving
from tests.privacy.rosters import entry, public, roster, write_roster
from tests.server.cohorts import opened
from wire.identity import client_id_of
from wire.spec import RunSpec, validate_spec
from wire.tensors import Vector

NAMES = ("ana", "ben", "cai", "dee", "eli")
SECURE: dict[str, Any] = {
    "corrupt_fraction": 0.0,
    "dropout_fraction": 0.2,
    "coordinate_bound": 1.0,
    "stage_seconds": 25,
}
"""Of five clients, one may be missing in the end, and three can open a sum."""


def masked_spec(secure: Mapping[str, Any] | None = None, **changes: Any) -> RunSpec:
    """Return a masked spec for five clients with digits, four of whom are enough at the deadline; one round; parts of it changed."""
    document: dict[str, Any] = {
        "name": "masked",
        "seed": 5,
        "learner": {"name": "mlp", "inputs": [1, 8, 8], "hidden": [16]},
        "rounds": 1,
        "cohort": {
            "size": 5,
            "quorum": 4,
            "deadline_seconds": 25,
            "wait_seconds": 25,
            "return_seconds": 0.5,
            "retries": 0,
        },
        "local": {"batch_size": 16},
        "evaluate": {"every": 0},
        "privacy": {"secure_aggregation": {**SECURE, **(secure or {})}},
    }
    for key, value in changes.items():
        document[key] = document[key] | value if isinstance(document.get(key), dict) else value
    return validate_spec(document)


@dataclass
class Federation:
    """A folder with an officer's roster, a coordinator, and clients by name."""

    folder: Path
    names: Sequence[str] = NAMES
    epoch: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.enrol(*self.names)

    @property
    def roster(self) -> Path:
        return self.folder / "roster.json"

    def enrol(self, *names: str, revoked: Sequence[str] = ()) -> None:
        """Put the next roster in place."""
        self.epoch += 1
        key = public(load_identity(self.folder / "coordinator" / "coordinator.pem")).hex()
        clients = [
            entry(name, load_identity(self.folder / name / "identity.pem"), revoked=name in revoked) for name in names
        ]
        write_roster(self.roster, roster(*clients, epoch=self.epoch, coordinator_key=key))

    def serving(self, **changes: Any) -> contextlib.AbstractAsyncContextManager[Coordinator]:
        return serving(self.folder / "coordinator", **({"roster": self.roster} | changes))

    def client_id(self, name: str) -> str:
        return client_id_of(public(load_identity(self.folder / name / "identity.pem")))

    def data(self, name: str) -> LocalData:
        return load_local(f"digits,blocks={NAMES.index(name)}", 0.2, 0)

    def agent(self, name: str, address: str, policy: Policy | None = None, has_roster: bool = True) -> Agent:
        enrolment = EnrolmentFile(self.roster, self.folder / name / "enrolment.json") if has_roster else None
        config = AgentConfig(Endpoint(address), self.folder / name, name, CPU, 1, policy or Policy(), enrolment)
        return Agent(config, self.data(name))

    def sites(self, *left_out: str) -> dict[str, LocalData]:
        return {self.client_id(name): self.data(name) for name in self.names if name not in left_out}

    def names_of(self, client_ids: Sequence[str]) -> list[str]:
        by_id = {self.client_id(name): name for name in self.names}
        return sorted(by_id[client_id] for client_id in client_ids)

    def contributors(self, record: RoundRecord) -> list[str]:
        """Return the names of those in a round's sum."""
        return self.names_of([part.client_id for part in record.contributions])

    def signers(self, record: RoundRecord) -> list[list[str]]:
        """Return who has signed a vector in each audited session of a round, once each signature and each client's copy is checked."""
        for audit in record.audits:
            for upload in audit.uploads:
                assert is_statement(audit, upload)
                assert upload.client_id == client_id_of(bytes.fromhex(upload.public_key))
                [name] = self.names_of([upload.client_id])
                assert kept_by_client(self.folder / name, audit.session_id) == statement(audit, upload)
        return [self.names_of([upload.client_id for upload in audit.uploads]) for audit in record.audits]

    def model(self, coordinator: Coordinator, run_id: str, spec: RunSpec, number: int) -> Vector:
        path = checkpoint_path(coordinator.runs.folder(run_id), number)
        return read_checkpoint(path, ModelShop(spec).initial().layout).vector


def is_statement(audit: AuditRecord, upload: SignedUploadRecord) -> bool:
    """Tell, from a round's record alone, whether a client has signed what the record says."""
    parts = map(bytes.fromhex, (audit.parameters, audit.nonce, audit.roster_hash, audit.sharers))
    parameters, nonce, roster_hash, sharers = parts
    terms = UploadTerms(parameters, nonce, roster_hash, sharers, audit.byte_count)
    public_key, sha256, signature = map(bytes.fromhex, (upload.public_key, upload.sha256, upload.signature))
    return terms.session_id.hex() == audit.session_id and terms.is_signed(public_key, sha256, signature)


def statement(audit: AuditRecord, upload: SignedUploadRecord) -> tuple[object, ...]:
    """Return what a client has signed, with its signature, as the client keeps it."""
    terms = (audit.parameters, audit.nonce, audit.roster_hash, audit.sharers, audit.byte_count)
    return (*terms, upload.sha256, upload.signature)


def kept_by_client(folder: Path, session_id: str) -> tuple[object, ...]:
    """Return what a client has kept of what it signed in a session."""
    query = (
        "SELECT parameters, nonce, roster_hash, sharers, byte_count, sha256, signature FROM uploads WHERE session = ?"
    )
    with contextlib.closing(sqlite3.connect(folder / "sessions.sqlite")) as journal:
        [row] = journal.execute(query, [session_id])
    return tuple(row)


@contextlib.asynccontextmanager
async def joined(coordinator: Coordinator, agents: Sequence[Agent]) -> AsyncIterator[dict[str, "asyncio.Task[None]"]]:
    """Run clients while the context is open, from when they can be selected."""
    tasks = {agent.client_id: asyncio.create_task(agent.run()) for agent in agents}
    try:
        await until_joined(coordinator, *agents)
        yield tasks
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.wait(tasks.values())


async def played(
    coordinator: Coordinator, spec: RunSpec, state: RunState = RunState.FINISHED
) -> tuple[str, list[RoundRecord]]:
    """Submit a run, wait until it has come to a state, and return its identity and rounds."""
    run = await coordinator.runs.submit(spec)
    await run_in_state(coordinator, run.run_id, state)
    return run.run_id, list(await coordinator.store.rounds(run.run_id))


async def serial_model(spec: RunSpec, sites: Mapping[str, LocalData], folder: Path) -> Vector:
    """Play a run with the serial engine in a folder that there is, and return its last model."""
    async with opened(folder) as store:
        run = await run_serially(spec, sites, store, folder)
    return read_checkpoint(checkpoint_path(folder, run.round_number), ModelShop(spec).initial().layout).vector


def mean_of(federation: Federation, spec: RunSpec, names: Sequence[str]) -> Vector:
    """Return the model of a first round of five whose sum is of these clients alone: the mean in the clear on the same grid."""
    shop = ModelShop(spec)
    base = shop.initial()
    mean = WeightedMean(Order("run", 1, 0, spec, base, len(NAMES)).grid, base.layout.size)
    for name in names:
        assignment = Assignment(spec, 1, federation.client_id(name), base.vector)
        result = Trainer(spec.learner, CPU).train(assignment, federation.data(name), lambda _: None)
        mean.add(result.vector, result.weight)
    return shop.next(base, mean.mean(), mean.weight_total, 1).vector
