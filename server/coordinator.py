"""The coordinator's process: store, sessions, runs, the gRPC service and the REST API, on one event loop."""

import asyncio
import contextlib
import logging
import secrets
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.enrolment import EnrolmentFile
from privacy.keys import load_identity
from server.api import create_api
from server.api.sources import Sources
from server.clients.enrolment import Doorkeeper
from server.clients.remote import RemoteCohort
from server.clients.service import FederationService
from server.clients.sessions import Sessions
from server.clients.transfers import Transfers
from server.errors import ConfigurationError, StoreError
from server.folder import STORE_FILE, held_folder, kept
from server.masking.session import Authority
from server.model import ModelShop
from server.monitoring.broadcast import Broadcast
from server.monitoring.metrics import Metrics
from server.monitoring.pulse import Pulse
from server.monitoring.trackers import Tracker
from server.monitoring.tracking import Follower
from server.replicas.clerk import Clerk
from server.replicas.desk import OwnDesk
from server.rounds import Site
from server.runs import Runs
from server.store import Store, open_post, open_store
from server.tasks import task_group
from server.web import SHUTDOWN_SECONDS, TLS, Web, bound_socket, check_exposure, taken_address
from wire.frames import add_to_server
from wire.protocol import SERVER_OPTIONS, STALL_SECONDS, is_loopback
from wire.spec import CohortSpec, Named, RunSpec
from wire.tensors import HAS_TORCH

if TYPE_CHECKING:
    from models import Examples

log = logging.getLogger(__name__)

_FIRST_SPEC = RunSpec(name="warm-up", learner=Named(name="mlp"), rounds=1, cohort=CohortSpec(size=1))
LEASE_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class CoordinatorConfig:
    """How a coordinator runs; read once, at its start.

    Attributes:
        folder: Where checkpoints and the embedded store lie.
        store: "redis://..." or empty for the embedded store.
        address: Host and port of gRPC; port 0 takes a free one.
        http_address: Host and port of the REST API.
        tls: Certificates for both, or None for plain text.
        is_insecure: Plain text is allowed beyond loopback.
        upload_places: Uploads received at a time; each takes one model's size of memory.
        download_places: Downloads sent at a time.
        concurrent_runs: Runs played at a time, with disjoint cohorts.
        stall_seconds: Longest time in which a transfer may make no headway.
        roster: Who may take part; None for everybody.
        trackers: Trackers of experiments, which are written all runs.
    """

    folder: Path
    store: str = ""
    address: str = "127.0.0.1:7070"
    http_address: str = "127.0.0.1:8080"
    tls: TLS | None = None
    is_insecure: bool = False
    upload_places: int = 2
    download_places: int = 4
    concurrent_runs: int = 1
    stall_seconds: float = STALL_SECONDS
    roster: Path | None = None
    trackers: tuple[Tracker, ...] = ()


@dataclass(frozen=True, slots=True)
class Coordinator:
    """A coordinator that is being served.

    Attributes:
        address: Host and port of gRPC, with the port that was taken.
        http_address: Host and port of the REST API.
        signing_key: What this coordinator signs with.
        enrolment: Who may take part; None for everybody.
    """

    address: str
    http_address: str
    signing_key: Ed25519PrivateKey = field(repr=False)
    enrolment: EnrolmentFile | None
    runs: Runs
    sessions: Sessions
    store: Store
    pulse: Pulse


@contextlib.asynccontextmanager
async def serve(config: CoordinatorConfig, own_data: "Examples | None" = None) -> AsyncIterator[Coordinator]:
    """Serve a federation while the context is open; leave it by cancellation or from within.

    Args:
        config: How.
        own_data: Examples for `evaluate.on: coordinator`.

    Raises:
        ConfigurationError: An address is taken, plain text would leave the machine, a certificate cannot be read, or the roster names
            another coordinator.
        EnrolmentError: The roster cannot be used, or is older than one that was seen before.
        IdentityError: The signing key cannot be used.
        StoreError: The store cannot be opened.
        LeaseTakenError: Another coordinator serves the folder or the store.
    """
    addresses = {"gRPC": config.address, "REST": config.http_address}
    check_exposure(addresses, config.tls, config.is_insecure)
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(held_folder(config.folder))
        signing_key = load_identity(config.folder / "coordinator.pem")
        enrolment = EnrolmentFile(config.roster, config.folder / "enrolment.json") if config.roster else None
        if HAS_TORCH:
            # Before the event loop has anything to do, because these imports would hold it up.
            from models import warm_up

            ModelShop(_FIRST_SPEC).initial()
            warm_up()
        address = config.store or str(config.folder / STORE_FILE)
        store = await open_store(address)
        stack.push_async_callback(store.close)
        holder = _holder(config.folder)
        await store.acquire_lease(holder, LEASE_SECONDS)
        stack.push_async_callback(store.release_lease, holder)
        sessions = Sessions(store)
        await sessions.restore()
        doorkeeper = _doorkeeper(enrolment, signing_key, sessions)
        metrics = Metrics()
        transfers = Transfers(config.upload_places, config.download_places, metrics)
        cohort = RemoteCohort(sessions, transfers)
        authority = _authority(enrolment, signing_key)
        site = Site(store, cohort, config.folder / "runs", own_data, authority=authority, observer=metrics)
        runs = Runs(site, config.concurrent_runs)
        pulse = Pulse(metrics)
        http_socket = stack.enter_context(bound_socket("REST", config.http_address))
        service = FederationService(sessions, transfers, config.stall_seconds, doorkeeper)
        server, port = await _start_grpc(config, service)
        stack.push_async_callback(server.stop, SHUTDOWN_SECONDS)
        coordinator = Coordinator(
            taken_address(config.address, port),
            taken_address(config.http_address, http_socket.getsockname()[1]),
            signing_key,
            enrolment,
            runs,
            sessions,
            store,
            pulse,
        )
        desk = OwnDesk(runs, sessions, pulse)
        broadcast = Broadcast(store, desk)
        api = create_api(Sources(store, desk, broadcast, site.folder, metrics), is_loopback(config.http_address))
        web = Web(api, config.tls)
        group = await stack.enter_async_context(task_group())
        tasks = [
            group.create_task(runs.serve(), name="runs"),
            group.create_task(pulse.beat(), name="pulse"),
            group.create_task(_keep_lease(store, holder), name="lease"),
            group.create_task(broadcast.serve(), name="broadcast"),
        ]
        if doorkeeper is not None:
            tasks.append(group.create_task(doorkeeper.watch(), name="enrolment"))
        if config.trackers:
            follower = Follower(config.trackers, store, config.folder)
            tasks.append(group.create_task(follower.serve(), name="trackers"))
        if (post := open_post(address)) is not None:
            stack.push_async_callback(post.close)
            tasks.append(group.create_task(Clerk(post, desk, holder).serve(), name="clerk"))
        web_task = group.create_task(web.serve(sockets=[http_socket]), name="web")
        try:
            yield coordinator
        finally:
            sessions.end_all()
            broadcast.close()
            web.should_exit = True
            for task in tasks:
                task.cancel()
            await asyncio.wait([web_task], timeout=SHUTDOWN_SECONDS)
            web_task.cancel()


def _authority(enrolment: EnrolmentFile | None, signing_key: Ed25519PrivateKey) -> Authority | None:
    """Return in whose name secure aggregation is held, where a roster says who may take part."""
    if enrolment is None:
        return None

    def problem_with(public_key: bytes, certificate: bytes) -> str:
        return enrolment.latest().problem_with_certificate(public_key, certificate)

    return Authority(enrolment.latest().federation, signing_key, problem_with)


def _doorkeeper(
    enrolment: EnrolmentFile | None, signing_key: Ed25519PrivateKey, sessions: Sessions
) -> Doorkeeper | None:
    if enrolment is None:
        return None
    return Doorkeeper(enrolment, signing_key.public_key().public_bytes_raw().hex(), sessions)


async def _start_grpc(config: CoordinatorConfig, service: FederationService) -> tuple[grpc.aio.Server, int]:
    server = grpc.aio.server(options=SERVER_OPTIONS)
    add_to_server(service, server)
    # gRPC itself would not say why an address cannot be used.
    bound_socket("gRPC", config.address).close()
    try:
        if config.tls is None:
            port = server.add_insecure_port(config.address)
        else:
            port = server.add_secure_port(config.address, _credentials(config.tls))
    except RuntimeError as error:
        raise ConfigurationError(
            f"gRPC address: must be free and of this machine, got {config.address}: {error}."
        ) from error
    await server.start()
    return server, port


def _credentials(tls: TLS) -> grpc.ServerCredentials:
    """Read the certificates, and check that they fit: gRPC itself would only say that the address cannot be used."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        pair = (tls.key.read_bytes(), tls.certificate.read_bytes())
        client_ca = tls.client_ca.read_bytes() if tls.client_ca else None
        context.load_cert_chain(tls.certificate, tls.key, password="")
        if tls.client_ca is not None:
            context.load_verify_locations(tls.client_ca)
    except ssl.SSLError as error:
        names = ", ".join(str(path) for path in (tls.certificate, tls.key, tls.client_ca) if path)
        raise ConfigurationError(
            f"Certificates {names}: must be PEM, with the key of the certificate and no password, got: {error}."
        ) from error
    except OSError as error:
        raise ConfigurationError(f"Certificate {error.filename}: must be readable, got: {error.strerror}.") from error
    return grpc.ssl_server_credentials([pair], client_ca, require_client_auth=client_ca is not None)


def _holder(folder: Path) -> str:
    """Return this coordinator's name on the lease: the same after a restart, so that it need not wait for its own lease to run out."""
    return kept(folder / "coordinator-id", secrets.token_hex(8))


async def _keep_lease(store: Store, holder: str) -> None:
    """Prolong the lease until cancelled.

    Raises:
        LeaseTakenError: Another coordinator has it.
        StoreError: The store was away for as long as the lease holds. Either way this coordinator must not go on.
    """
    held_until = time.monotonic() + LEASE_SECONDS
    while True:
        await asyncio.sleep(LEASE_SECONDS / 5)
        now = time.monotonic()
        try:
            await store.acquire_lease(holder, LEASE_SECONDS)
            held_until = now + LEASE_SECONDS
        except StoreError as error:
            if time.monotonic() > held_until - LEASE_SECONDS / 5:
                raise
            log.warning("the lease could not be prolonged, trying again: %s", error)
