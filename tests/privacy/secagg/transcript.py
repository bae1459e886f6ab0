"""What a coordinator can know of a round, read from nothing but what it received and what it sent.

`problems` says what breaks secrecy: both kinds of shares of one member, a key that is used twice, shares that were given without
acknowledgements, a vector that is not uniform, or is not once everything known is taken off it.

Uniformity is Pearson's test on bytes, 255 degrees of freedom. A statistic beyond 255 + 2 sqrt(255 x) + 2 x has a chance of at most exp(-x);
with x = 21 a thousand tests raise a false alarm less than once in a million runs.

Source: Laurent and Massart, "Adaptive estimation of a quadratic functional by model selection", Annals of Statistics 28(5), 2000, lemma 1.
"""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from google.protobuf.message import Message

from privacy.secagg.hybrid import MaskKeys
from privacy.secagg.labels import hashed, is_signed
from privacy.secagg.masks import RING_TYPES, Mask, RingVector, add_masks, pair_mask, self_mask
from privacy.secagg.members import Members, session_keys
from privacy.secagg.session import SessionParameters
from privacy.secagg.shamir import combine
from wire import federation_pb2 as pb

MOST_CHI_SQUARE = 255 + 2 * math.sqrt(255 * 21) + 2 * 21
FEWEST_BYTES = 20 * 256
"""Fewer bytes are not tested: Pearson's statistic would not have its distribution."""


@dataclass(frozen=True, slots=True)
class Record:
    """One session as its coordinator saw it.

    Attributes:
        parameters: What the session was about.
        roster: As it was sent.
        sharers: The bitmap of the delivery that was sent to each client.
        survivors: All sets that were sent, to whomever.
        received: Messages by stage and client; vectors, as bytes, under "upload".
    """

    parameters: SessionParameters
    roster: pb.Roster
    sharers: Mapping[str, bytes]
    survivors: Sequence[pb.Survivors]
    received: Sequence[tuple[str, str, Message | bytes]]

    @property
    def members(self) -> Members:
        """The members."""
        entries = list(self.roster.members)
        return Members.of(entries, self.session_id, self.parameters.graph(len(entries)))

    @property
    def session_id(self) -> bytes:
        """Its id."""
        return self.roster.session_id

    @property
    def clients(self) -> list[str]:
        """Members by identity."""
        return [entry.client_id.hex() for entry in self.roster.members]

    def uploads(self) -> Iterator[tuple[int, RingVector]]:
        """Yield each vector that came, by its client's index."""
        for stage, client_id, message in self.received:
            if stage == "upload":
                assert isinstance(message, bytes)
                yield self.clients.index(client_id), np.frombuffer(message, RING_TYPES[self.parameters.spec.ring_bits])

    def unmasks(self) -> Iterator[tuple[int, pb.Unmask]]:
        """Yield each Unmask that came, by its client's index."""
        for _, client_id, message in self.received:
            if isinstance(message, pb.Unmask):
                yield self.clients.index(client_id), message

    def pair_key(self, key: bytes, owner: int, partner: int) -> bytes:
        """Return the key of a pair's mask, from what the mask keys of one of the two follow from."""
        members = self.members
        if not self.parameters.is_hybrid:
            secret, ends = X25519PrivateKey.from_private_bytes(key), (members.peer(owner), members.peer(partner))
            return pair_mask(secret, *ends, self.session_id, members.roster_hash).key
        low, high = sorted((owner, partner))
        [packet] = (
            packet
            for stage, client_id, message in self.received
            if isinstance(message, pb.Shares) and client_id == self.clients[low]
            for packet in message.packets
            if packet.index == high
        )
        keys = MaskKeys(key, self.session_id)
        return keys.mask_with(owner, partner, members, keys.secret_with(owner, partner, members, packet)).key

    def partners(self, index: int) -> list[int]:
        """Return with whom a member shares pair masks, by what it was told."""
        sharers = self.members.members_in(self.sharers[self.clients[index]])
        return [other for other in self.members.neighbours[index] if other in sharers]


@dataclass(frozen=True, slots=True)
class Conspirator:
    """What a client that conspires tells the coordinator: its seed, its mask key, and its shares of others' by their index."""

    seed: bytes = field(repr=False)
    key: bytes = field(repr=False)
    held: Mapping[int, tuple[bytes, bytes]] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Known:
    """Seeds and mask keys that can be had, by their owner's index."""

    seeds: Mapping[int, bytes] = field(repr=False)
    keys: Mapping[int, bytes] = field(repr=False)

    def is_pair_known(self, one: int, other: int) -> bool:
        """Tell whether the mask of a pair can be made."""
        return one in self.keys or other in self.keys

    def masks(self, record: Record, index: int) -> list[Mask]:
        """Return those masks of a member that can be made, as they are taken off its vector."""
        members, bound = record.members, (record.session_id, record.members.roster_hash)
        masks = []
        if index in self.seeds:
            masks.append(self_mask(self.seeds[index], *bound, members.entries[index].client_id))
        for other in record.partners(index):
            if self.is_pair_known(index, other):
                owner, partner = (index, other) if index in self.keys else (other, index)
                masks.append(Mask(record.pair_key(self.keys[owner], owner, partner), is_negative=index > other))
        return [Mask(mask.key, is_negative=not mask.is_negative) for mask in masks]


def known(record: Record, conspirators: Mapping[int, Conspirator] | None = None) -> Known:
    """Return what the coordinator and those who conspire with it can have, by putting all shares together that they got."""
    conspirators, members = conspirators or {}, record.members
    seed_shares: dict[int, dict[int, bytes]] = defaultdict(dict)
    key_shares: dict[int, dict[int, bytes]] = defaultdict(dict)
    seeds = {index: conspirator.seed for index, conspirator in conspirators.items()}
    keys = {index: conspirator.key for index, conspirator in conspirators.items()}
    for holder, message in record.unmasks():
        seeds[holder] = message.own_seed
        for held in message.seed_shares:
            seed_shares[held.index][members.point(held.index, holder)] = held.share
        for held in message.key_shares:
            key_shares[held.index][members.point(held.index, holder)] = held.share
    for holder, conspirator in conspirators.items():
        for dealer, (seed_share, key_share) in conspirator.held.items():
            seed_shares[dealer][members.point(dealer, holder)] = seed_share
            key_shares[dealer][members.point(dealer, holder)] = key_share
    for found, shares in ((seeds, seed_shares), (keys, key_shares)):
        for dealer, points in shares.items():
            if len(points) >= members.graph.threshold:
                found.setdefault(dealer, combine(dict(list(points.items())[: members.graph.threshold])))
    return Known(
        {index: seed for index, seed in seeds.items() if is_seed(record, index, seed)},
        {index: key for index, key in keys.items() if is_key(record, index, key)},
    )


def is_seed(record: Record, index: int, seed: bytes) -> bool:
    """Tell whether a seed is what a member committed to."""
    entry = record.roster.members[index]
    return hashed("commit-b", record.session_id, entry.client_id, seed) == entry.seed_commitment


def is_key(record: Record, index: int, key: bytes) -> bool:
    """Tell whether a mask key is the one that a member advertised."""
    if record.parameters.is_hybrid:
        return MaskKeys(key, record.session_id).are_of(record.roster.members[index])
    public = X25519PrivateKey.from_private_bytes(key).public_key().public_bytes_raw()
    return public == record.roster.members[index].mask_key


def problems(records: Sequence[Record], honest: Collection[str]) -> list[str]:
    """Return what breaks the secrecy of clients that keep to the protocol, one sentence each.

    Args:
        records: All sessions of a round, attempts included.
        honest: Clients that are said to keep to the protocol.
    """
    checks: list[Callable[[Record, Collection[str]], Iterator[str]]] = [
        both_kinds,
        unacknowledged,
        uploaded_twice,
        not_uniform,
    ]
    found = [problem for record in records for check in checks for problem in check(record, honest)]
    return [*found, *used_twice(records), *alike(records)]


def both_kinds(record: Record, honest: Collection[str]) -> Iterator[str]:
    """Name members of whom honest clients have given both kinds of shares: nothing hides their vectors from then on."""
    seeds, keys = set(), set()
    for index, message in record.unmasks():
        if record.clients[index] in honest:
            seeds |= {held.index for held in message.seed_shares} | ({index} if message.own_seed else set())
            keys |= {held.index for held in message.key_shares}
    yield from (f"both kinds of shares of member {index} were given" for index in sorted(seeds & keys))


def unacknowledged(record: Record, honest: Collection[str]) -> Iterator[str]:
    """Name honest clients that gave shares though too few of their neighbours acknowledged a set that fits what they gave."""
    members = record.members
    acks: dict[bytes, set[int]] = defaultdict(set)
    for _, client_id, message in record.received:
        if isinstance(message, pb.SurvivorAck):
            index = record.clients.index(client_id)
            for survivors in record.survivors:
                parts = (record.session_id, members.roster_hash, survivors.survivors)
                if is_signed(members.entries[index].public_key, message.signature, "survivors-ack", *parts):
                    acks[survivors.survivors].add(index)
    for index, message in record.unmasks():
        seeds, keys = ({held.index for held in shares} for shares in (message.seed_shares, message.key_shares))
        fitting = [
            bitmap
            for bitmap, those in acks.items()
            if members.live_count(index, those) >= members.graph.threshold
            and seeds <= members.members_in(bitmap)
            and not keys & members.members_in(bitmap)
        ]
        if record.clients[index] in honest and not fitting:
            yield f"member {index} gave shares without enough acknowledgements"


def uploaded_twice(record: Record, honest: Collection[str]) -> Iterator[str]:
    """Name honest clients of whom more than one vector came: their difference has no mask."""
    counts = Counter(index for index, _ in record.uploads())
    for index, count in counts.items():
        if count > 1 and record.clients[index] in honest:
            yield f"member {index} has masked {count} vectors"


def not_uniform(record: Record, honest: Collection[str]) -> Iterator[str]:
    """Name honest clients whose vector is not uniform, as it came or with every mask off that the coordinator can make."""
    found = known(record)
    for index, vector in record.uploads():
        if record.clients[index] not in honest:
            continue
        if not is_uniform(vector):
            yield f"the vector of member {index} is not uniform"
        bare = vector.copy()
        add_masks(bare, found.masks(record, index))
        if not is_uniform(bare):
            yield f"the vector of member {index} is not uniform without the masks that are known"


def used_twice(records: Sequence[Record]) -> Iterator[str]:
    """Name clients with the same key in two sessions: seed and key of one vector could be had in one each."""
    keys = Counter(
        (entry.client_id.hex(), key)
        for record in records
        for entry in record.roster.members
        for key in (*session_keys(entry), entry.seed_commitment)
    )
    yield from sorted({f"client {client_id} used a key twice" for (client_id, _), count in keys.items() if count > 1})


def alike(records: Sequence[Record]) -> Iterator[str]:
    """Name clients whose vectors in two sessions have a difference that is not uniform: their masks are the same."""
    by_client = defaultdict(list)
    for record in records:
        for index, vector in record.uploads():
            by_client[record.clients[index]].append(vector)
    for client_id, vectors in by_client.items():
        for one, other in itertools.combinations(vectors, 2):
            if not is_uniform(one - other):
                yield f"two vectors of client {client_id} have the same masks"


def is_uniform(vector: RingVector) -> bool:
    """Tell whether a vector's bytes look uniform. Wrongly no less than once in 10^9."""
    data = np.frombuffer(vector.tobytes(), dtype=np.uint8)
    assert len(data) >= FEWEST_BYTES
    expected = len(data) / 256
    return float(((np.bincount(data, minlength=256) - expected) ** 2).sum() / expected) <= MOST_CHI_SQUARE
