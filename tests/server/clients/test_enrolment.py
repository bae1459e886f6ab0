"""A coordinator with a roster, over real sockets: who is let in, and how fast a revoked client is out."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from datetime import date, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.enrolment import EnrolledClient, read_enrolment
from privacy.errors import EnrolmentError, IdentityError
from privacy.keys import load_identity
from server.coordinator import Coordinator
from server.errors import ConfigurationError
from server.records import RunState
from tests.hostile import Session, client_id, drawn_vector, joined
from tests.loopback import WAIT_SECONDS, run_in_state, serving, small_spec, until
from tests.privacy.rosters import PAST, entry, key_of, public, roster, write_document, write_roster
from wire import federation_pb2 as pb
from wire.errors import ChoralError

ANA, BEN, EVE = key_of(1), key_of(2), key_of(3)
GONE_SECONDS = 4.0
"""Longest time in which a revoked client may keep its session: it takes a second, on a machine that has nothing else to do."""


class Site:
    """A coordinator's folder and the roster that it is served with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "coordinator"
        self.roster = folder / "roster.json"
        self.key = public(load_identity(self.folder / "coordinator.pem")).hex()
        self.epoch = 0

    def enrol(self, *clients: EnrolledClient) -> None:
        """Put the next roster in place."""
        self.epoch += 1
        write_roster(self.roster, roster(*clients, epoch=self.epoch, coordinator_key=self.key))

    def serving(self) -> contextlib.AbstractAsyncContextManager[Coordinator]:
        return serving(self.folder, roster=self.roster)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path)
    site.enrol(entry("ana", ANA), entry("ben", BEN))
    return site


@pytest.fixture
async def coordinator(site: Site) -> AsyncIterator[Coordinator]:
    async with site.serving() as coordinator:
        yield coordinator


def present(coordinator: Coordinator) -> set[str]:
    return {member.client_id for member in coordinator.sessions.members()}


async def refused(address: str, key: Ed25519PrivateKey) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with joined(address, key):
            pass
    return caught.value


async def farewell(session: Session) -> pb.Goodbye:
    """Return the goodbye that must come at once."""
    async with asyncio.timeout(GONE_SECONDS):
        while (message := await session.receive()) is not None:
            if message.HasField("goodbye"):
                return message.goodbye
    raise AssertionError("the session ended without a goodbye")


async def refusal(site: Site, kind: type[ChoralError]) -> str:
    """Serve, and return why that is refused."""
    with pytest.raises(kind) as raised:
        async with asyncio.timeout(WAIT_SECONDS), site.serving():
            pass
    return str(raised.value)


# --- At the door ---


async def test_join_without_a_roster_is_open_to_all(tmp_path: Path) -> None:
    async with serving(tmp_path) as coordinator, joined(coordinator.address, EVE) as session:
        assert coordinator.enrolment is None
        assert session.client_id == client_id(EVE)


async def test_join_enrolled_client_is_let_in(coordinator: Coordinator) -> None:
    async with joined(coordinator.address, ANA) as session:
        assert session.client_id == client_id(ANA)
        assert present(coordinator) == {client_id(ANA)}


@pytest.mark.parametrize(
    ("changed", "standing"),
    [
        pytest.param([], "not listed", id="not-listed"),
        pytest.param([entry("eve", EVE, revoked=True)], "revoked", id="revoked"),
        pytest.param([entry("eve", EVE, PAST)], "expired on 2020-02-29", id="expired"),
    ],
)
async def test_join_any_other_client_is_refused_with_the_reason(
    site: Site, coordinator: Coordinator, changed: list[EnrolledClient], standing: str
) -> None:
    site.enrol(entry("ana", ANA), *changed)
    error = await refused(coordinator.address, EVE)
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    sentence = f"client {client_id(EVE)} must be enrolled in 'lakes', got one that is {standing}"
    assert error.details() == sentence
    assert coordinator.sessions.clients() == []


async def test_join_client_that_was_enrolled_a_moment_ago_is_let_in(site: Site, coordinator: Coordinator) -> None:
    await refused(coordinator.address, EVE)
    site.enrol(entry("eve", EVE))
    async with joined(coordinator.address, EVE) as session:
        assert session.client_id == client_id(EVE)


async def test_join_with_the_key_of_an_enrolled_client_takes_its_signature(coordinator: Coordinator) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with joined(coordinator.address, EVE, public_key=public(ANA)):
            pass
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


# --- Revoked ---


async def test_revoked_client_is_out_at_once_and_stays_out(site: Site, coordinator: Coordinator) -> None:
    async with joined(coordinator.address, ANA) as ana, joined(coordinator.address, BEN) as ben:
        site.enrol(entry("ana", ANA, revoked=True), entry("ben", BEN))
        goodbye = await farewell(ana)
        assert goodbye.reason == pb.GOODBYE_REASON_REVOKED
        assert goodbye.detail == f"client {client_id(ANA)} must be enrolled in 'lakes', got one that is revoked"
        assert present(coordinator) == {client_id(BEN)}
        assert await ana.end() is grpc.StatusCode.PERMISSION_DENIED
        download = ana.calls.download(pb.DownloadRequest(session_token=ana.token))
        assert await download.code() is grpc.StatusCode.UNAUTHENTICATED
        assert (await refused(coordinator.address, ANA)).code() is grpc.StatusCode.PERMISSION_DENIED
        assert coordinator.sessions.by_client(client_id(BEN)) is not None
        assert not ben.call.done()


async def test_removed_client_is_out_too(site: Site, coordinator: Coordinator) -> None:
    async with joined(coordinator.address, ANA) as ana:
        site.enrol(entry("ben", BEN))
        assert (await farewell(ana)).detail.endswith("not listed")


async def test_client_whose_last_day_ends_while_it_is_connected_is_out(
    site: Site, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = date(2100, 1, 31)
    site.enrol(entry("ana", ANA, last), entry("ben", BEN))
    async with joined(coordinator.address, ANA) as ana:
        monkeypatch.setattr("privacy.enrolment.today_in_utc", lambda: last + timedelta(days=1))
        assert (await farewell(ana)).detail.endswith("expired on 2100-01-31")
        monkeypatch.undo()
        async with joined(coordinator.address, ANA):
            assert present(coordinator) == {client_id(ANA)}


async def test_revoked_client_settles_its_round_which_goes_on_without_it(site: Site, coordinator: Coordinator) -> None:
    spec = small_spec(rounds=1, cohort={"size": 2, "quorum": 1, "deadline_seconds": 600})
    async with joined(coordinator.address, ANA) as ana, joined(coordinator.address, BEN) as ben:
        run = await coordinator.runs.submit(spec)
        task, ana_task = await ben.task(), await ana.task()
        vector = drawn_vector(1, task.base.total_bytes // 4)
        data = vector.tobytes()
        upload = ana.upload()
        offset = await upload.begin(ana.header(ana_task, data))
        assert offset == 0
        await upload.slices(data, 0, 64)
        site.enrol(entry("ana", ANA, revoked=True), entry("ben", BEN))
        await farewell(ana)
        await upload.slices(data, 64)
        await upload.close()
        assert (await upload.verdict()).reason == pb.REFUSAL_REASON_DUPLICATE
        assert (await ben.contribute(task, vector)).reason == pb.REFUSAL_REASON_UNSPECIFIED
        run = await run_in_state(coordinator, run.run_id, RunState.FINISHED)
    [record] = await coordinator.store.rounds(run.run_id)
    assert [part.client_id for part in record.contributions] == [client_id(BEN)]
    first = record.refusals[0]
    assert (first.client_id, first.reason) == (client_id(ANA), "client_error")
    assert first.detail.endswith("got one that is revoked")


async def test_revoked_client_is_not_selected_any_more(site: Site, coordinator: Coordinator) -> None:
    async with joined(coordinator.address, ANA) as ana, joined(coordinator.address, BEN) as ben:
        site.enrol(entry("ana", ANA, revoked=True), entry("ben", BEN))
        await farewell(ana)
        run = await coordinator.runs.submit(small_spec(rounds=1, cohort={"size": 1, "quorum": 1}))
        task = await ben.task()
        await ben.contribute(task, drawn_vector(1, task.base.total_bytes // 4))
        await run_in_state(coordinator, run.run_id, RunState.FINISHED)
    [record] = await coordinator.store.rounds(run.run_id)
    assert record.selected == [client_id(BEN)]


async def test_client_revoked_while_the_coordinator_is_away_is_not_expected_back(site: Site) -> None:
    async with contextlib.AsyncExitStack() as clients:
        async with site.serving() as coordinator:
            for key in (ANA, BEN):
                await clients.enter_async_context(joined(coordinator.address, key))
        site.enrol(entry("ana", ANA, revoked=True), entry("ben", BEN))
        async with site.serving() as coordinator:
            assert present(coordinator) == {client_id(BEN)}


# --- A file that cannot be used ---


def cut_off(site: Site) -> None:
    site.roster.write_bytes(site.roster.read_bytes()[:-40])


def remove(site: Site) -> None:
    site.roster.unlink()


def open_to_all(site: Site) -> None:
    write_document(site.roster, {"clients": "all"})


def roll_back(site: Site) -> None:
    write_roster(site.roster, roster(entry("eve", EVE), epoch=1, coordinator_key=site.key))


@pytest.mark.parametrize("spoil", [cut_off, remove, open_to_all, roll_back])
async def test_file_that_cannot_be_used_changes_nothing_while_running(
    site: Site, caplog: pytest.LogCaptureFixture, spoil: Callable[[Site], None]
) -> None:
    site.enrol(entry("ana", ANA), entry("ben", BEN, revoked=True))
    async with site.serving() as coordinator, joined(coordinator.address, ANA) as ana:
        spoil(site)

        async def told() -> bool:
            return any("The roster of epoch 2 stays in force." in text for text in caplog.messages)

        await until(told, "the warning")
        for key in (BEN, EVE):
            assert (await refused(coordinator.address, key)).code() is grpc.StatusCode.PERMISSION_DENIED
        assert present(coordinator) == {client_id(ANA)}
        assert not ana.call.done()


async def test_roster_that_comes_to_name_another_coordinator_is_told_and_its_revocations_hold(
    site: Site, coordinator: Coordinator, caplog: pytest.LogCaptureFixture
) -> None:
    async with joined(coordinator.address, ANA) as ana:
        clients = (entry("ana", ANA, revoked=True),)
        write_roster(site.roster, roster(*clients, epoch=2, coordinator_key=public(EVE).hex()))
        assert (await farewell(ana)).reason == pb.GOODBYE_REASON_REVOKED
    rule = f"Roster {site.roster}: coordinator_key must be this coordinator's, {site.key}, got {public(EVE).hex()}."
    assert [record.levelno for record in caplog.records if record.getMessage() == rule] == [logging.WARNING]


# --- At the start ---


async def test_signing_key_is_made_at_the_first_start_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "coordinator.pem"
    async with serving(tmp_path) as coordinator:
        first = coordinator.signing_key.private_bytes_raw()
        assert path.stat().st_mode & 0o777 == 0o600
        assert "signing_key" not in repr(coordinator)
    async with serving(tmp_path) as coordinator:
        assert coordinator.signing_key.private_bytes_raw() == first
    assert load_identity(path).private_bytes_raw() == first
    path.chmod(0o644)
    with pytest.raises(IdentityError, match="must be readable by its owner alone"):
        async with serving(tmp_path):
            pass


@pytest.mark.parametrize(("named", "got"), [("", "none"), (public(EVE).hex(), public(EVE).hex())])
async def test_serve_roster_that_names_another_coordinator_is_refused(site: Site, named: str, got: str) -> None:
    write_roster(site.roster, roster(coordinator_key=named))
    assert await refusal(site, ConfigurationError) == (
        f"Roster {site.roster}: coordinator_key must be this coordinator's, {site.key}, got {got}. "
        f"Let the officer run: choral enroll set-coordinator {site.key}"
    )


async def test_serve_roster_older_than_one_that_was_seen_is_refused(site: Site) -> None:
    site.enrol(entry("ben", BEN))
    async with site.serving():
        pass
    roll_back(site)
    kept = site.folder / "enrolment.json"
    assert await refusal(site, EnrolmentError) == (
        f"Roster {site.roster}: epoch must be at least 2, which was seen before, got 1. "
        f"Take the newest roster; if this one is meant, remove {kept}."
    )
    assert read_enrolment(kept).epoch == 2


@pytest.mark.parametrize(
    ("spoil", "rule"), [(cut_off, "must be JSON"), (remove, "must be a readable file, got: No such"), (open_to_all, "")]
)
async def test_serve_roster_that_cannot_be_used_is_refused(
    site: Site, spoil: Callable[[Site], None], rule: str
) -> None:
    spoil(site)
    assert (await refusal(site, EnrolmentError)).startswith(f"Roster {site.roster}: {rule}")
