"""Secure aggregation in one process: simulated clients play the whole protocol, with keys of their own, over no network.

Both sides are those of a deployed run. Which clients train, when, and who falls out meanwhile is the simulation's; once the roster is
fixed, nobody falls out.
"""

import contextlib
import hashlib
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from functools import cache, partial
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.journal import Journal
from models import Evaluation
from privacy.enrolment import certificate_digest
from privacy.secagg.client import ClientSession
from privacy.secagg.coordinator import CoordinatorSession
from privacy.secagg.masks import RingVector
from privacy.secagg.party import Floor, Identity, Party, Trust
from privacy.secagg.vectors import ring_vector
from server.cohort import Exchange, Kind, Order
from server.inbox import Arrival, Binding, Inbox
from server.masking.replies import Replies
from server.masking.session import Authority
from simulation.cohort import Outcome, Refused, SimulatedCohort
from simulation.work import Work
from wire import federation_pb2 as pb
from wire.errors import ChoralError
from wire.federation_pb2 import RefusalReason
from wire.identity import client_id_of

FEDERATION = "simulation"


class Office:
    """Certifies simulated clients, by the names that they have in the simulation, when they are first asked."""

    def __init__(self) -> None:
        self._enrolment_key = Ed25519PrivateKey.generate()
        self._coordinator_key = Ed25519PrivateKey.generate()
        self._certificates: dict[bytes, bytes] = {}
        self.authority = Authority(FEDERATION, self._coordinator_key, self._problem_with)
        self.party = cache(self._enrol)

    def identity_of(self, client_id: str) -> str:
        """Return the identity that follows from a client's key."""
        return client_id_of(self.party(client_id).identity.public_key)

    def _enrol(self, client_id: str) -> Party:
        key = Ed25519PrivateKey.generate()
        public_key = key.public_key().public_bytes_raw()
        certificate = self._enrolment_key.sign(certificate_digest(FEDERATION, public_key))
        self._certificates[public_key] = certificate
        trust = Trust(FEDERATION, self._coordinator_key.public_key().public_bytes_raw(), self._problem_with)
        return Party(Identity(key, certificate), trust, Floor(minimum_cohort=2), Journal())

    def _problem_with(self, public_key: bytes, certificate: bytes) -> str:
        return "" if self._certificates.get(public_key) == certificate else "it must be a client of this simulation"


class SimulatedExchange(Exchange):
    """The exchanges of one session with simulated clients."""

    def __init__(
        self, cohort: SimulatedCohort, office: Office, order: Order, kind: Kind, session: CoordinatorSession
    ) -> None:
        self._cohort = cohort
        self._office = office
        self._order = order
        self._kind = kind
        self._session = session
        self._clients: dict[str, tuple[ClientSession, RingVector]] = {}

    async def offer(self, client_ids: Sequence[str], replies: Replies) -> None:
        """Let clients train or evaluate, and advertise in the moment in which they are ready."""
        bringing = self._train(client_ids, replies) if self._kind == "train" else self._evaluate(client_ids, replies)
        with self._cohort.followed(client_ids):
            await bringing
            await self._cohort.until_settled(replies)

    async def ask(self, messages: Mapping[str, pb.JoinResponse], replies: Replies) -> None:
        """Bring each client's answer at once."""
        work = Work()
        for client_id, message in messages.items():
            session, _ = self._clients[client_id]
            replies.record(client_id, await work.do(partial(_answer, session, message)))
        await self._cohort.until_settled(replies)

    async def collect(self, messages: Mapping[str, pb.JoinResponse], inbox: Inbox) -> None:
        """Bring each client's masked vector at once."""
        work = Work()
        for client_id, message in messages.items():
            session, vector = self._clients[client_id]
            signed = await work.do(partial(_mask, session, message, vector, self._session.parameters.spec.audit))
            await inbox.admit(Arrival(client_id, inbox.binding, 0, 0, {}, 0.0, vector, *signed))
            self._clients[client_id] = session, vector[:0]
        await self._cohort.until_settled(inbox)

    def close(self) -> None:
        """End the session for every client."""
        for session, _ in self._clients.values():
            session.abort()

    def _train(self, client_ids: Sequence[str], replies: Replies) -> Coroutine[Any, Any, None]:
        binding = Binding("", self._order.round_number, b"", self._session.session_id)
        return self._bring(self._cohort.arrivals(self._order, client_ids, binding, lambda: replies.count), replies)

    async def _bring(self, arrivals: AsyncGenerator[Outcome, None], replies: Replies) -> None:
        async with contextlib.aclosing(arrivals) as outcomes:
            async for outcome in outcomes:
                if isinstance(outcome, Refused):
                    replies.refuse(outcome.client_id, outcome.reason, outcome.detail)
                    continue
                metrics = {name.removeprefix("train_"): value for name, value in outcome.metrics.items()}
                numbers = (outcome.weight, outcome.example_count, metrics, outcome.vector)
                await self._advertise(
                    outcome.client_id, replies, partial(ring_vector, self._session.parameters, *numbers)
                )

    async def _evaluate(self, client_ids: Sequence[str], replies: Replies) -> None:
        async with contextlib.aclosing(self._cohort.measurements(self._order, client_ids)) as evaluations:
            async for client_id, found in evaluations:
                if isinstance(found, Evaluation):
                    count, metrics = found.example_count, found.metrics
                    weight = min(count, self._order.spec.weight_cap)
                    await self._advertise(
                        client_id, replies, partial(ring_vector, self._session.parameters, weight, count, metrics)
                    )
                else:
                    replies.refuse(client_id, found.reason, found.detail)

    async def _advertise(self, client_id: str, replies: Replies, prepare: Callable[[], RingVector]) -> None:
        def begin() -> ClientSession:
            vector = prepare()
            session = ClientSession(self._session.parameters, self._session.offer, self._office.party(client_id))
            self._clients[client_id] = session, vector
            return session

        try:
            session = await Work().do(begin)
        except ChoralError as error:
            replies.refuse(client_id, RefusalReason.REFUSAL_REASON_CLIENT_ERROR, str(error))
        else:
            replies.record(client_id, session.advertisement)


def _mask(
    session: ClientSession, message: pb.JoinResponse, vector: RingVector, is_audited: bool
) -> tuple[bytes, bytes]:
    """Mask a vector, and return its SHA-256 and the client's signature in audit mode."""
    session.take_delivery(message.delivery)
    session.mask(vector)
    if not is_audited:
        return b"", b""
    sha256 = hashlib.sha256(vector.data).digest()
    return sha256, session.sign_upload(sha256)


def _answer(session: ClientSession, message: pb.JoinResponse) -> object:
    match message.WhichOneof("message"):
        case "roster":
            return session.take_roster(message.roster)
        case "survivors":
            return session.take_survivors(message.survivors)
        case _:
            return session.take_acks(message.ack_bundle)
