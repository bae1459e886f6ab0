"""Clients that send something else than their session says, and the lies that fit every message."""

from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import Message

from privacy.secagg.labels import sign
from privacy.secagg.masks import RingVector
from privacy.secagg.members import advertised_parts, packet_parts, unmask_parts
from tests.privacy.secagg.forgeries import changed
from tests.privacy.secagg.hostile import session_of
from tests.privacy.secagg.sessions import Client, Play, play, sum_of
from wire import federation_pb2 as pb

Lie = Callable[["Lied", Client, Message], Message]


@dataclass
class Lied(Play):
    """A session in which some clients send something else than their session says, by stage and client."""

    lies: dict[tuple[str, str], Lie] = field(default_factory=dict)

    def _take(self, stage: str, client: Client, message: Message, take: Callable[[str, Message], None]) -> None:
        lie = self.lies.get((stage, client.client_id))
        super()._take(stage, client, lie(self, client, message) if lie else message, take)

    def lie(self, stage: str, number: int, lie: Lie) -> None:
        """Let the client with this number in the roster tell a lie."""
        self.lies[stage, self.ordered[number].client_id] = lie

    @property
    def ordered(self) -> list[Client]:
        """The clients in the order of a roster of all of them."""
        return sorted(self.clients, key=lambda client: client.client_id)

    def sum_without(self, *numbers: int) -> RingVector:
        """Return the sum of the vectors of all but those with these numbers in the roster."""
        return sum_of([client.vector for number, client in enumerate(self.ordered) if number not in numbers])

    def run_without(self, uploads: set[int] = frozenset(), unmasks: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        """Play the session while some, by their number in the roster, bring no vector or do not unmask."""
        gone = [self.clients.index(self.ordered[number]) for number in uploads]
        mute = [self.clients.index(self.ordered[number]) for number in unmasks]
        self.run(lambda stage, number: (stage == "upload" and number in gone) or (stage == "unmask" and number in mute))


def lied(count: int = 8, **spec: object) -> Lied:
    """Return a session of honest clients that may be told to lie; a quarter of them may be missing."""
    settings: dict[str, object] = {"dropout_fraction": 0.25} | spec
    session, _ = play(count, **settings)  # type: ignore[arg-type]
    return Lied(session.parameters, session.authority, session.clients)


def signed(session: Play, client: Client, message: Message) -> Message:
    """Sign a message anew with its client's key."""
    if isinstance(message, pb.Shares):
        label, parts = "shares", packet_parts(message.packets)
    else:
        assert isinstance(message, pb.Unmask)
        label, parts = "unmask", unmask_parts(message)
    coordinator = session.coordinator
    bound = (coordinator.session_id, coordinator._members.roster_hash)
    message.signature = sign(client.identity.key, label, *bound, *parts)
    return message


def unsigned(session: Lied, client: Client, message: Message) -> Message:
    """Send the message without its signature."""
    message.signature = bytes(64)  # type: ignore[attr-defined]
    return message


def anothers_signature(session: Lied, client: Client, message: Message) -> Message:
    """Send the message with a signature of somebody else."""
    if isinstance(message, pb.Advertise):
        message = changed(message)
        parts = advertised_parts(message)
        message.signature = sign(Ed25519PrivateKey.generate(), "advertise", message.session_id, *parts)
        return message
    other = next(other for other in session.clients if other is not client)
    if isinstance(message, pb.SurvivorAck):
        return session_of(other)._ack
    return signed(session, other, message)
