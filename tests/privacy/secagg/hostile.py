"""What tests of liars need: a coordinator that tells tales, a journal that refuses, and a search for secrets that are left.

The coordinator's lies are told by the real messages, changed and signed again with its own key wherever it can sign.
"""

import re
from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from typing import NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from google.protobuf.message import Message

from privacy.errors import AbortCode, SessionAbortedError
from privacy.secagg.client import ClientSession, ClientState
from privacy.secagg.labels import is_signed, sign
from privacy.secagg.members import Members, packet_parts
from privacy.secagg.party import Party
from privacy.secagg.session import SessionParameters
from tests.privacy.secagg.sessions import Client, Memory, Play, play
from wire import federation_pb2 as pb


class Diary(Memory):
    """A journal that refuses what is not later than all that it knows, as a client's own does."""

    def begin(self, parameters: SessionParameters) -> None:
        """Refuse a replay."""
        moment = (parameters.purpose.round_number, parameters.purpose.attempt)
        if self.begun and moment <= max(self.begun):
            raise SessionAbortedError(AbortCode.REPLAY, f"round and attempt must be later than before, got {moment}")
        if parameters.purpose.round_number in self.revealed:
            raise SessionAbortedError(AbortCode.REPLAY, f"round {moment[0]} was opened before, got it again")
        super().begin(parameters)


class Tale:
    """What a coordinator that lies tells some clients: a roster of its choice, signed, and all that follows from it."""

    def __init__(self, play: Play, entries: Collection[pb.Advertise] | None = None, *, is_sorted: bool = True) -> None:
        if entries is None:
            entries = [session_of(client).advertisement for client in play.clients]
        listed = sorted(entries, key=lambda entry: entry.client_id) if is_sorted else list(entries)
        self.play, self.session_id = play, play.coordinator.session_id
        self.members = Members.of(listed, self.session_id, play.parameters.graph(max(len(listed), 2)))

    def signed(self, label: str, *parts: bytes) -> bytes:
        """Return the coordinator's signature, which it can give to any tale."""
        return sign(self.play.authority.coordinator, label, self.session_id, self.members.roster_hash, *parts)

    @property
    def roster(self) -> pb.Roster:
        """The roster."""
        signature = sign(self.play.authority.coordinator, "roster-sig", self.session_id, self.members.roster_hash)
        return pb.Roster(session_id=self.session_id, members=self.members.entries, signature=signature)

    def index(self, client: Client) -> int:
        """Return where a client stands in this roster."""
        return [entry.client_id.hex() for entry in self.members.entries].index(client.client_id)

    def delivery(
        self, client: Client, shares: Mapping[int, pb.Shares], sharers: Collection[int] | None = None
    ) -> pb.Delivery:
        """Return a delivery with whatever packets there are for a client, by their dealers."""
        own = self.index(client)
        packets = [
            addressed(packet, dealer)
            for dealer, message in shares.items()
            for packet in message.packets
            if packet.index == own
        ]
        bitmap = self.members.bitmap(shares if sharers is None else sharers)
        return self.delivery_of(bitmap, packets)

    def delivery_of(self, bitmap: bytes, packets: list[pb.Packet]) -> pb.Delivery:
        """Return a delivery, which is signed in suite 2."""
        delivery = pb.Delivery(session_id=self.session_id, sharers=bitmap, packets=packets)
        if self.play.parameters.is_hybrid:
            delivery.signature = self.signed("delivery-srv", bitmap, *packet_parts(packets))
        return delivery

    def survivors(self, indices: Collection[int]) -> pb.Survivors:
        """Return a set of survivors, signed."""
        bitmap = self.members.bitmap(indices)
        signature = self.signed("survivors-srv", bitmap)
        return pb.Survivors(session_id=self.session_id, survivors=bitmap, signature=signature)

    def is_proof(self, survivors: Message) -> bool:
        """Tell whether anyone can see that the coordinator has signed these survivors."""
        assert isinstance(survivors, pb.Survivors)
        public = self.play.authority.coordinator.public_key().public_bytes_raw()
        parts = (self.session_id, self.members.roster_hash, survivors.survivors)
        return is_signed(public, survivors.signature, "survivors-srv", *parts)

    def bundle(self, acks: Mapping[int, pb.SurvivorAck]) -> pb.AckBundle:
        """Return acknowledgements by who gave them."""
        listed = [pb.Ack(index=index, signature=ack.signature) for index, ack in acks.items()]
        return pb.AckBundle(session_id=self.session_id, acks=listed)


def addressed(packet: pb.Packet, dealer: int) -> pb.Packet:
    """Return a packet as its receiver gets it."""
    copy = pb.Packet()
    copy.CopyFrom(packet)
    copy.index = dealer
    return copy


def ack_by(client: Client, tale: Tale, bitmap: bytes) -> pb.SurvivorAck:
    """Return a client's acknowledgement of survivors, made with its key and without its session."""
    parts = (tale.session_id, tale.members.roster_hash, bitmap)
    return pb.SurvivorAck(signature=sign(client.identity.key, "survivors-ack", *parts))


def advertised(count: int = 5, **spec: object) -> Play:
    """Return a session in which all have advertised, each with a journal that refuses."""
    session, _ = play(count, **spec)  # type: ignore[arg-type]
    for client in session.clients:
        client.journal = Diary()
    session.advertise()
    return session


def entries_of(session: Play) -> list[pb.Advertise]:
    """Return what each client has advertised, in the order of the clients."""
    return [session_of(client).advertisement for client in session.clients]


class Told(NamedTuple):
    """A session in which all clients were told the same tale, and what they answered, by index."""

    play: Play
    tale: Tale
    clients: list[Client]
    shares: dict[int, pb.Shares]

    def deliver(self) -> None:
        """Hand every client all packets, and let it mask its vector."""
        for client in self.clients:
            own = self.tale.index(client)
            others = {dealer: message for dealer, message in self.shares.items() if dealer != own}
            session_of(client).take_delivery(self.tale.delivery(client, others, self.shares))
            session_of(client).mask(client.vector.copy())

    def acks(self, survivors: pb.Survivors) -> dict[int, pb.SurvivorAck]:
        """Let every client acknowledge survivors."""
        return {index: session_of(client).take_survivors(survivors) for index, client in enumerate(self.clients)}


def told(play: Play) -> Told:
    """Return a session in which all have shared, its clients in the roster's order."""
    play.advertise()
    tale = Tale(play)
    clients = sorted(play.clients, key=tale.index)
    shares = {index: session_of(client).take_roster(tale.roster) for index, client in enumerate(clients)}
    return Told(play, tale, clients, shares)


def session_of(client: Client) -> ClientSession:
    """Return a client's session, which it must have."""
    assert client.session is not None
    return client.session


def opened(play: Play, client: Client, parameters: SessionParameters | None = None) -> ClientSession:
    """Return a session of a client that has got the coordinator's offer."""
    party = Party(client.identity, play.authority.trust, client.floor, client.journal)
    client.session = ClientSession(parameters or play.parameters, play.coordinator.offer, party)
    return client.session


def secrets_of(session: ClientSession) -> list[bytes]:
    """Return every secret that a session holds."""
    held = session._secrets
    if held is None:
        return []
    keys: list[X25519PrivateKey | MLKEM768PrivateKey | None] = [held.encryption_key, held.mask_key]
    more: list[bytes] = []
    if held.kem is not None:
        keys += [held.kem.encryption_key, held.kem.mask_keys._mlkem]
        more = [held.kem.mask_keys.seed, *held.kem.pair_secrets.values()]
    found = [key.private_bytes_raw() for key in keys if key is not None]
    return [held.seed, *found, *more, *(share for pair in held.held.values() for share in pair)]


def refused(session: ClientSession, act: Callable[[], object], code: AbortCode, message: str) -> SessionAbortedError:
    """Check that a client refuses: with a code and a sentence, and without a secret in the session or in the error's frames."""
    known = secrets_of(session)
    assert known
    with pytest.raises(SessionAbortedError, match=re.escape(message)) as abort:
        act()
    error = abort.value
    assert error.code is code
    assert session.state is ClientState.ABORTED
    assert session._secrets is None
    left = everything(session) + b"|" + frames_of(error.__traceback__) + str(error).encode() + repr(session).encode()
    assert not [secret for secret in known if secret in left or secret.hex().encode() in left]
    return error


def frames_of(traceback: TracebackType | None) -> bytes:
    """Return all bytes that the package's own frames of a traceback hold on to."""
    found = b""
    while traceback is not None:
        if traceback.tb_frame.f_globals["__name__"].startswith("privacy"):
            found += everything(dict(traceback.tb_frame.f_locals))
        traceback = traceback.tb_next
    return found


def everything(found: object, seen: set[int] | None = None) -> bytes:
    """Return all bytes that can be reached from an object."""
    seen = set() if seen is None else seen
    if id(found) in seen:
        return b""
    seen.add(id(found))
    if isinstance(found, bytes):
        return found
    if isinstance(found, Message):
        return found.SerializeToString()
    if isinstance(found, X25519PrivateKey | MLKEM768PrivateKey):
        return found.private_bytes_raw()
    parts: list[object] = []
    if isinstance(found, dict):
        parts = [*found.keys(), *found.values()]
    elif isinstance(found, list | tuple | set | frozenset):
        parts = list(found)
    elif type(found).__module__.startswith("privacy"):
        parts = [getattr(found, name, None) for name in getattr(type(found), "__slots__", None) or vars(found)]
    return b"|".join(everything(part, seen) for part in parts)
