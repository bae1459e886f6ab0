"""Who takes part in a session: the frozen roster, as every party checks and hashes it, and sets of its members.

Source: CSA-1 (docs/secure-aggregation.md), sections "Messages" and "Encodings".
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from privacy.secagg.graph import neighbourhoods
from privacy.secagg.kem import is_kem_key
from privacy.secagg.labels import hashed, is_signed
from privacy.secagg.masks import Peer
from privacy.secagg.parameters import Parameters
from wire import federation_pb2 as pb
from wire.identity import client_id_of

KEY_BYTES = 32

_FIELD = 2**255 - 19
_LOW_ORDER = {
    0,
    1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
    _FIELD - 1,
}
"""The points of X25519 whose order divides 8: with them the agreed secret is 0, whoever agrees.

Source: Langley, Hamburg and Turner, "Elliptic Curves for Security", RFC 7748, section 6.1, and Bernstein, "Curve25519: new Diffie-Hellman
speed records", PKC 2006. https://cr.yp.to/ecdh.html
"""

Problem = Callable[[bytes, bytes], str]
"""Tells what speaks against a member with this public key and certificate: one sentence, or nothing."""


def advertised_parts(entry: pb.Advertise) -> tuple[bytes, ...]:
    """Return the fields of an advertisement that are signed and hashed: six, and two keys of ML-KEM-768 where it has any."""
    kem_keys = (entry.encryption_kem_key, entry.mask_kem_key)
    return (
        entry.client_id,
        entry.public_key,
        entry.certificate,
        entry.encryption_key,
        entry.mask_key,
        entry.seed_commitment,
        *(kem_keys if any(kem_keys) else ()),
    )


def session_keys(entry: pb.Advertise) -> tuple[bytes, ...]:
    """Return the keys of an advertisement that no other may have."""
    return (entry.encryption_key, entry.mask_key, *advertised_parts(entry)[6:])


def _is_usable(key: bytes) -> bool:
    """Tell whether a key of X25519 is the one way to write a point with which a secret can be agreed."""
    number = int.from_bytes(key, "little")
    return number < _FIELD and number not in _LOW_ORDER


def entry_problem(entry: pb.Advertise, session_id: bytes, problem_with: Problem, is_hybrid: bool) -> str:
    """Return what is wrong with one advertisement, or nothing. In a session of suite 2 it has keys of ML-KEM-768."""
    parts = (entry.public_key, entry.encryption_key, entry.mask_key, entry.seed_commitment)
    if any(len(part) != KEY_BYTES for part in parts):
        return "its keys and its commitment must have 32 bytes"
    if not (_is_usable(entry.encryption_key) and _is_usable(entry.mask_key)):
        return "its keys must be such that others can agree on a secret with them"
    kem_keys = (entry.encryption_kem_key, entry.mask_kem_key)
    if not (all(map(is_kem_key, kem_keys)) if is_hybrid else not any(kem_keys)):
        return "its keys must be those of the session's key agreement"
    if entry.client_id.hex() != client_id_of(entry.public_key):
        return "its identity must be that of its key"
    if problem := problem_with(entry.public_key, entry.certificate):
        return problem
    if not is_signed(entry.public_key, entry.signature, "advertise", session_id, *advertised_parts(entry)):
        return "its advertisement must be signed with its key for this session"
    return ""


@dataclass(frozen=True, slots=True)
class Members:
    """The members of a session in the roster's order, with what follows from them alone.

    Attributes:
        entries: Their advertisements.
        roster_hash: What every later key and signature is bound to, 32 bytes.
        graph: Degree, threshold and bounds for so many members.
        neighbours: Each member's neighbours by index, without itself.
    """

    entries: Sequence[pb.Advertise]
    roster_hash: bytes
    graph: Parameters
    neighbours: Sequence[Sequence[int]]

    @classmethod
    def of(cls, entries: Sequence[pb.Advertise], session_id: bytes, graph: Parameters) -> "Members":
        """Freeze checked advertisements, sorted by identity."""
        hashes = [hashed("entry", *advertised_parts(entry), entry.signature) for entry in entries]
        roster_hash = hashed("roster", session_id, *hashes)
        return cls(entries, roster_hash, graph, neighbourhoods(len(entries), graph.degree, roster_hash))

    def __len__(self) -> int:
        return len(self.entries)

    def peer(self, index: int) -> Peer:
        """Return a member as its masks see it."""
        return Peer(index, self.entries[index].client_id, self.entries[index].mask_key)

    def closed(self, index: int) -> list[int]:
        """Return a member's neighbours and itself, ascending: the holders of its shares."""
        return sorted([index, *self.neighbours[index]])

    def point(self, dealer: int, holder: int) -> int:
        """Return the x at which a holder has its share of a dealer's secrets."""
        return 1 + self.closed(dealer).index(holder)

    def live_count(self, index: int, members: Collection[int]) -> int:
        """Return how many of `members` hold shares of a member's secrets."""
        return sum(holder in members for holder in self.closed(index))

    def bitmap(self, members: Iterable[int]) -> bytes:
        """Return a set of members as bits, the lowest first."""
        bits = sum(1 << index for index in members)
        return bits.to_bytes((len(self) + 7) // 8, "little")

    def members_in(self, bitmap: bytes) -> frozenset[int]:
        """Return the members of a bitmap.

        Raises:
            ValueError: It has another length, or names members that there are not.
        """
        bits = int.from_bytes(bitmap, "little")
        if len(bitmap) != (len(self) + 7) // 8 or bits >> len(self):
            raise ValueError(f"a bitmap must have a bit for each of {len(self)} members")
        return frozenset(index for index in range(len(self)) if bits >> index & 1)


def packet_parts(packets: Iterable[pb.Packet]) -> list[bytes]:
    """Return what is signed of packets: of each three fields, and four more in suite 2."""
    parts = []
    for packet in packets:
        parts += [packet.index.to_bytes(4, "little"), packet.nonce, packet.ciphertext]
        if packet.kem_ciphertext:
            parts += [packet.kem_ciphertext, packet.mask_ciphertext, packet.mask_secret, packet.mask_commitment]
    return parts


def unmask_parts(message: pb.Unmask) -> list[bytes]:
    """Return what a sender signs of an Unmask: every list with its length, so that none can pass for another."""
    parts = [message.own_seed]
    for shares in (message.seed_shares, message.key_shares):
        parts.append(len(shares).to_bytes(4, "little"))
        for held in shares:
            parts += [held.index.to_bytes(4, "little"), held.share]
    parts.append(len(message.missing).to_bytes(4, "little"))
    return parts + [index.to_bytes(4, "little") for index in message.missing]
