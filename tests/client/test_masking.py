"""What clients of masked runs insist on: their site's policy, their roster, what they have seen before; and that nothing secret is told."""

import json
import logging
import resource
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.journal import Journal
from client.policy import Policy, SecureAggregationPolicy, read_policy
from privacy.errors import AbortCode, SecureAggregationError, SessionAbortedError
from privacy.keys import load_identity
from privacy.secagg import client as clients
from privacy.secagg import hybrid, labels, masks, packets, shamir
from privacy.secagg.client import ClientSession
from privacy.secagg.coordinator import CoordinatorSession
from privacy.secagg.keys import ClientSecrets
from privacy.secagg.labels import is_signed, sign
from privacy.secagg.members import Members, packet_parts
from privacy.secagg.parameters import parameters_for
from privacy.secagg.session import SUITES, Purpose, SessionParameters, session_id_of
from server.coordinator import Coordinator
from server.masking.session import SecureSession
from server.records import RefusalRecord, RunState
from tests.client.masked import NAMES, Federation, joined, masked_spec, mean_of, played
from tests.client.sites import digits_spec
from tests.loopback import run_in_state
from wire import federation_pb2 as pb
from wire.secure import SecureAggregationSpec
from wire.spec import RunSpec


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(tmp_path)


@pytest.fixture
async def coordinator(federation: Federation) -> AsyncIterator[Coordinator]:
    async with federation.serving() as coordinator:
        yield coordinator


async def refusals(
    federation: Federation,
    coordinator: Coordinator,
    spec: RunSpec,
    policy: Policy | None = None,
    has_roster: bool = True,
) -> Sequence[RefusalRecord]:
    """Let five clients be asked for a round that pauses the run, and return why they refused."""
    agents = [federation.agent(name, coordinator.address, policy, has_roster) for name in NAMES]
    async with joined(coordinator, agents):
        run = await coordinator.runs.submit(spec)
        await run_in_state(coordinator, run.run_id, RunState.PAUSED)
        [record] = await coordinator.store.rounds(run.run_id)
    assert (record.contributions, record.model_sha256) == ([], "")
    return record.refusals


# --- Who has a roster ---


async def test_run_on_a_coordinator_without_a_roster_fails_with_the_reason(federation: Federation) -> None:
    async with federation.serving(roster=None) as coordinator:
        run = await coordinator.runs.submit(masked_spec())
        reason = (await run_in_state(coordinator, run.run_id, RunState.FAILED)).reason
    assert reason == (
        "Run spec: privacy.secure_aggregation must have a coordinator with a roster, this one has none. Start it with --roster."
    )


async def test_client_without_a_roster_refuses(federation: Federation, coordinator: Coordinator) -> None:
    found = await refusals(federation, coordinator, masked_spec(), has_roster=False)
    assert {(refusal.reason, refusal.detail) for refusal in found} == {
        (
            "client_policy",
            "Secure aggregation: a client must have a roster, this one has none. Join with --roster.",
        )
    }


# --- The site's floor ---


@pytest.mark.parametrize(
    ("policy", "spec", "sentence"),
    [
        pytest.param(
            {"required": True},
            digits_spec(cohort={"size": 5}),
            "This site's policy: privacy.secure_aggregation must be in the run spec, because secure_aggregation is required, "
            "got a run without it.",
            id="required",
        ),
        pytest.param(
            {"minimum_cohort": 4},
            masked_spec(),
            "This site's policy: privacy.secure_aggregation.minimum_cohort must be at least secure_aggregation.minimum_cohort (4), got 3.",
            id="minimum-cohort",
        ),
        pytest.param(
            {"corrupt_fraction": 0.2},
            masked_spec(),
            "This site's policy: privacy.secure_aggregation.corrupt_fraction must be at least "
            "secure_aggregation.corrupt_fraction (0.2), got 0.",
            id="corrupt-fraction",
        ),
        pytest.param(
            {},
            masked_spec({"minimum_cohort": 2}),
            "This site's policy: privacy.secure_aggregation.minimum_cohort must be at least secure_aggregation.minimum_cohort (3), got 2.",
            id="small-cohort",
        ),
    ],
)
async def test_run_below_the_floor_of_a_site_is_refused_with_the_rule(
    federation: Federation, coordinator: Coordinator, policy: dict[str, Any], spec: RunSpec, sentence: str
) -> None:
    floor = Policy(secure_aggregation=SecureAggregationPolicy.model_validate(policy))
    found = await refusals(federation, coordinator, spec, floor)
    assert {(refusal.reason, refusal.detail) for refusal in found} == {("client_policy", sentence)}


async def test_small_cohort_runs_where_every_site_allows_it(tmp_path: Path) -> None:
    federation = Federation(tmp_path, NAMES[:2])
    (tmp_path / "policy.yaml").write_text("secure_aggregation: {minimum_cohort: 2, allow_small_cohort: true}\n")
    policy = read_policy(tmp_path / "policy.yaml")
    spec = masked_spec({"minimum_cohort": 2, "dropout_fraction": 0.0}, cohort={"size": 2, "quorum": 2})
    async with federation.serving() as coordinator:
        agents = [federation.agent(name, coordinator.address, policy) for name in NAMES[:2]]
        async with joined(coordinator, agents):
            _, [record] = await played(coordinator, spec)
    assert federation.contributors(record) == list(NAMES[:2])


# --- A coordinator that tells different stories ---


async def test_equivocation_is_refused_and_its_evidence_kept(
    federation: Federation, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    victim = federation.client_id("cai")
    ask = SecureSession._ask

    async def ask_twice(self: SecureSession, exchange: Any, what: str, messages: Any, kind: type, take: Any) -> None:
        await ask(self, exchange, what, messages, kind, take)
        if what == "acknowledgements":
            session = self._session
            bitmap = bytes([session._bitmap[0] ^ (1 if session.clients[0] != victim else 2)])
            signature = sign(session._key, "survivors-srv", session.session_id, session._members.roster_hash, bitmap)
            other = pb.Survivors(session_id=session.session_id, survivors=bitmap, signature=signature)
            await ask(self, exchange, "others", {victim: pb.JoinResponse(survivors=other)}, kind, take)

    monkeypatch.setattr(SecureSession, "_ask", ask_twice)
    async with joined(coordinator, [federation.agent(name, coordinator.address) for name in NAMES]):
        _, [record] = await played(coordinator, masked_spec())
    sentence = "Secure aggregation: survivors must be the same whenever they are named, got others."
    assert [(refusal.client_id, refusal.reason, refusal.detail) for refusal in record.refusals] == [
        (victim, "client_policy", sentence)
    ]
    [path] = (federation.folder / "cai" / "evidence").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.levelno for entry in caplog.records if entry.getMessage().endswith(f"are in {path}.")] == [
        logging.ERROR
    ]
    evidence = json.loads(path.read_bytes())
    assert (evidence["code"], evidence["sentence"]) == ("equivocation", sentence)
    found = [pb.Survivors.FromString(b64decode(message["base64"])) for message in evidence["messages"]]
    assert len({message.survivors for message in found}) == 2
    assert {message.session_id.hex() for message in found} == {evidence["session"]}
    # Whoever has the file and the coordinator's public key can check that it said both.
    first, second = (b64decode(message["base64"]) for message in evidence["context"])
    offer, roster = pb.SessionOffer.FromString(first), pb.Roster.FromString(second)
    canon, session_id = bytes.fromhex(evidence["parameters"]), bytes.fromhex(evidence["session"])
    public_key = coordinator.signing_key.public_key().public_bytes_raw()
    assert session_id == session_id_of(canon, offer.nonce)
    assert is_signed(public_key, offer.signature, "offer", canon, offer.nonce)
    members = Members.of(list(roster.members), session_id, parameters_for(len(roster.members), 0, 0))
    for message in found:
        signed = (session_id, members.roster_hash, message.survivors)
        assert is_signed(public_key, message.signature, "survivors-srv", *signed)
    # Nobody else saw anything, and nobody else keeps anything.
    assert not any((federation.folder / name / "evidence").exists() for name in NAMES if name != "cai")


async def test_tampered_packet_costs_the_client_this_session_and_its_evidence_is_kept(
    federation: Federation, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    victims: list[str] = []
    deliver = CoordinatorSession.deliver

    def deliver_falsely(self: CoordinatorSession) -> dict[str, pb.Delivery]:
        deliveries = deliver(self)
        victims.append(self.clients[-1])
        delivery = deliveries[victims[0]]
        delivery.packets[0].mask_secret = bytes(32)
        said = (self.session_id, self._members.roster_hash, delivery.sharers, *packet_parts(delivery.packets))
        delivery.signature = sign(self._key, "delivery-srv", *said)
        return deliveries

    monkeypatch.setattr(CoordinatorSession, "deliver", deliver_falsely)
    spec = masked_spec({"key_agreement": "x25519_mlkem768"})
    async with joined(coordinator, [federation.agent(name, coordinator.address) for name in NAMES]):
        run_id, [record] = await played(coordinator, spec)
    [victim] = federation.names_of(victims)
    left = [name for name in NAMES if name != victim]
    # It falls out as if its connection had broken, and is not refused.
    assert (federation.contributors(record), record.refusals, record.session_count) == (left, [], 1)
    assert np.array_equal(federation.model(coordinator, run_id, spec, 1), mean_of(federation, spec, left))
    [path] = (federation.folder / victim / "evidence").iterdir()
    evidence = json.loads(path.read_bytes())
    assert (evidence["code"], [message["message"] for message in evidence["messages"]]) == (
        "false_packet",
        ["Delivery"],
    )
    delivery = pb.Delivery.FromString(b64decode(evidence["messages"][0]["base64"]))
    roster = pb.Roster.FromString(b64decode(evidence["context"][1]["base64"]))
    session_id = bytes.fromhex(evidence["session"])
    members = Members.of(list(roster.members), session_id, parameters_for(len(roster.members), 0, 0))
    said = (session_id, members.roster_hash, delivery.sharers, *packet_parts(delivery.packets))
    assert is_signed(coordinator.signing_key.public_key().public_bytes_raw(), delivery.signature, "delivery-srv", *said)


async def test_replay_of_an_earlier_round_is_refused_and_its_offer_kept(
    federation: Federation, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.runs.secrets.token_hex", lambda _: "run")
    journal = Journal(federation.folder / "cai" / "sessions.sqlite")
    journal.begin(about(7, 0))
    journal.close()
    async with joined(coordinator, [federation.agent(name, coordinator.address) for name in NAMES]):
        _, [record] = await played(coordinator, masked_spec())
    sentence = "Secure aggregation: round and attempt must be later than 7 and 0, which were seen, got 1 and 0."
    assert [(refusal.client_id, refusal.reason, refusal.detail) for refusal in record.refusals] == [
        (federation.client_id("cai"), "client_policy", sentence)
    ]
    [path] = (federation.folder / "cai" / "evidence").iterdir()
    evidence = json.loads(path.read_bytes())
    assert evidence["messages"] == []
    [message] = evidence["context"]
    offer = pb.SessionOffer.FromString(b64decode(message["base64"]))
    assert (evidence["code"], message["message"], offer.attempt, len(offer.signature)) == (
        "replay",
        "SessionOffer",
        0,
        64,
    )


# --- What a client must not forget ---


def about(round_number: int, attempt: int, task: str = "run/train") -> SessionParameters:
    purpose = Purpose("lakes", task, round_number, attempt, 5, 0, bytes(32))
    return SessionParameters(purpose, SecureAggregationSpec())


def code_of(journal: Journal, parameters: SessionParameters) -> AbortCode:
    with pytest.raises(SessionAbortedError) as raised:
        journal.begin(parameters)
    return raised.value.code


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "site" / "sessions.sqlite"


def test_journal_that_is_opened_again_refuses_what_it_has_seen(path: Path) -> None:
    journal = Journal(path)
    journal.begin(about(3, 1))
    journal.close()
    journal = Journal(path)
    assert code_of(journal, about(3, 1)) is AbortCode.LOST
    assert code_of(journal, about(3, 0)) is AbortCode.REPLAY
    assert code_of(journal, about(2, 7)) is AbortCode.REPLAY
    with pytest.raises(
        SessionAbortedError, match="round and attempt must be later than 3 and 1, which were seen, got 2 and 7"
    ):
        journal.begin(about(2, 7))
    # Other tasks have rounds of their own, and what was refused was not noted.
    journal.begin(about(1, 0, "run/evaluate"))
    journal.begin(about(3, 2))
    journal.begin(about(4, 0))
    journal.close()


def test_journal_that_is_opened_again_refuses_another_session_of_an_opened_round(path: Path) -> None:
    journal = Journal(path)
    journal.begin(about(3, 1))
    journal.reveal(about(3, 1))
    journal.close()
    journal = Journal(path)
    with pytest.raises(SessionAbortedError, match="a round must be opened once, round 3 was opened before") as raised:
        journal.begin(about(3, 2))
    assert raised.value.code is AbortCode.OPENED
    journal.begin(about(4, 3))
    assert code_of(journal, about(3, 9)) is AbortCode.REPLAY
    journal.close()


class FullDisk:
    """While it is open, no file of this process can be written."""

    def __enter__(self) -> None:
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, self._limits[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)


def test_journal_on_a_full_disk_refuses_instead_of_forgetting(path: Path) -> None:
    journal = Journal(path)
    journal.begin(about(3, 1))
    message = rf"^Journal {path}: must be readable and writable, got: "
    with FullDisk(), pytest.raises(SecureAggregationError, match=message):
        journal.begin(about(4, 0))
    with FullDisk(), pytest.raises(SecureAggregationError, match=message):
        journal.reveal(about(3, 1))
    journal.close()
    journal = Journal(path)
    assert code_of(journal, about(3, 1)) is AbortCode.LOST
    journal.begin(about(4, 0))
    journal.close()


def test_journal_in_a_place_that_cannot_be_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SecureAggregationError, match="must be readable and writable, got: "):
        Journal(tmp_path / "file" / "sessions.sqlite")
    (tmp_path / "torn.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(SecureAggregationError, match="file is not a database"):
        Journal(tmp_path / "torn.sqlite")


async def test_client_that_cannot_note_an_opening_does_not_open(
    federation: Federation, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    reveal, take_unmask, unmasked = Journal.reveal, CoordinatorSession.take_unmask, []
    lost = str(federation.folder / "ben")

    def reveal_without_file(self: Journal, parameters: SessionParameters) -> None:
        if lost in self._name:
            self.close()
        reveal(self, parameters)

    def note(self: CoordinatorSession, client_id: str, message: pb.Unmask) -> None:
        unmasked.append(client_id)
        take_unmask(self, client_id, message)

    monkeypatch.setattr(Journal, "reveal", reveal_without_file)
    monkeypatch.setattr(CoordinatorSession, "take_unmask", note)
    async with joined(coordinator, [federation.agent(name, coordinator.address) for name in NAMES]):
        _, [record] = await played(coordinator, masked_spec())
    assert federation.names_of(unmasked) == ["ana", "cai", "dee", "eli"]
    [refusal] = record.refusals
    assert (refusal.client_id, refusal.reason) == (federation.client_id("ben"), "client_error")
    assert "must be readable and writable" in refusal.detail
    assert federation.contributors(record) == list(NAMES)


# --- Secrets ---


@pytest.mark.parametrize("key_agreement", SUITES)
async def test_no_secret_is_ever_logged(
    federation: Federation,
    coordinator: Coordinator,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    key_agreement: str,
) -> None:
    found: dict[str, list[bytes]] = {"seed": [], "exchange key": [], "share": [], "derived": [], "signing key": []}
    advertise, split, derive_key = ClientSession._advertise, shamir.split, labels.derive_key

    def advertise_noted(self: ClientSession, held: ClientSecrets) -> pb.Advertise:
        assert held.mask_key is not None
        found["seed"].append(held.seed)
        found["exchange key"] += [held.shared, held.encryption_key.private_bytes_raw()]
        found["derived"] += [held.mask_key.private_bytes_raw()]
        assert held.seed.hex() not in repr(held)
        assert held.shared.hex() not in repr(held)
        return advertise(self, held)

    def split_noted(*arguments: Any) -> list[bytes]:
        shares = split(*arguments)
        found["share"] += shares
        return shares

    def derive_noted(*arguments: Any) -> bytes:
        key = derive_key(*arguments)
        found["derived"].append(key)
        return key

    monkeypatch.setattr(ClientSession, "_advertise", advertise_noted)
    monkeypatch.setattr(clients, "split", split_noted)
    for module in (hybrid, masks, packets):
        monkeypatch.setattr(module, "derive_key", derive_noted)
    for name in NAMES:
        found["signing key"].append(load_identity(federation.folder / name / "identity.pem").private_bytes_raw())
    found["signing key"].append(coordinator.signing_key.private_bytes_raw())
    caplog.set_level(logging.DEBUG)
    async with joined(coordinator, [federation.agent(name, coordinator.address) for name in NAMES]):
        await played(coordinator, masked_spec({"key_agreement": key_agreement}, evaluate={"every": 1}))
    assert [len(found[kind]) for kind in ("seed", "exchange key", "share", "signing key")] == [10, 20, 100, 6]
    assert len(found["derived"]) >= 50
    text = "\n".join(f"{entry.getMessage()} {entry.args!r} {entry.exc_text}" for entry in caplog.records)
    assert "delivered, masked" in text
    for kind, values in found.items():
        for value in values:
            written = [value.hex(), b64encode(value).decode(), repr(value)[2:-1], str(int.from_bytes(value, "little"))]
            assert not any(form in text for form in written), kind
