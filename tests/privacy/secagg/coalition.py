"""A coordinator and the clients that conspire with it: what befalls their session, what they can have of it, and what must hold.

This is the security definition in a form that runs. A schedule is drawn: who conspires, who falls out when, whose vector comes too late,
who is told what. The real sessions are played. Then, from all that the coalition has (what the coordinator sent and received, the secrets
and shares of those who conspire), every seed and mask key that can be had is worked out and every mask that it makes is set aside. What
is left hides the inputs if they can be replaced: other honest inputs, with the same sum over the honest survivors, and other streams for
the masks that are not known, must give the very same vectors to the bit. Streams are taken as vectors, for a keystream whose key is not
known cannot be told from noise.

Source: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017, section 6, theorem 6.5 (privacy
against active adversaries), and lemma 6.1 on masks between neighbours. https://eprint.iacr.org/2017/281
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st

from privacy.errors import SessionAbortedError
from privacy.secagg.client import ClientState
from privacy.secagg.masks import RING_TYPES, Mask, RingVector, add_masks, self_mask
from tests.privacy.secagg.hostile import Tale, ack_by, session_of
from tests.privacy.secagg.sessions import Client, Play, play, sum_of
from tests.privacy.secagg.transcript import Conspirator, Known, Record, known
from wire import federation_pb2 as pb

# --- What befalls a session -------------------------------------------------------------------------------------------------------------


Pair = tuple[int, int]


@dataclass(frozen=True)
class Schedule:
    """What befalls a session, by index.

    Attributes:
        count: Members.
        corrupt: Those who conspire.
        bound: How many of them the session was made to withstand.
        missing: How many may be missing in the end.
        mute: Those whose shares never come.
        left_out: For each member, whom it is not told of among those who have shared.
        unsent: Those whose vectors never come.
        sets: Whom each set of survivors leaves out, though its vector may have come.
        told: Which set each member is told.
        unheard: Those whose acknowledgements are dropped.
    """

    count: int
    corrupt: frozenset[int] = frozenset()
    bound: int = 0
    missing: int = 0
    mute: frozenset[int] = frozenset()
    left_out: Mapping[int, frozenset[int]] = field(default_factory=dict)
    unsent: frozenset[int] = frozenset()
    sets: tuple[frozenset[int], ...] = (frozenset(),)
    told: Mapping[int, int] = field(default_factory=dict)
    unheard: frozenset[int] = frozenset()


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    """Draw a schedule within the bounds; half of them with a coordinator that tells each client something else."""
    count = draw(st.integers(3, 9))
    bound = draw(st.integers(0, count - 2))
    most = (count - bound - 1) // 2
    missing = draw(st.integers(0, min(most, (count - 1) // 2)))

    def some(at_most: int) -> frozenset[int]:
        return frozenset(draw(st.permutations(range(count)))[: draw(st.integers(0, at_most))])

    mute = some(missing)
    is_lying = draw(st.booleans())
    unsent = some(missing) if draw(st.booleans()) else mute
    first = some(missing) | unsent if draw(st.booleans()) else unsent
    plain = Schedule(count, some(bound), bound, missing, mute, {}, unsent, (first,), {}, some(missing))
    if not is_lying:
        return plain
    left_out = {index: some(missing) - {index} for index in range(count)}
    told = {index: draw(st.integers(0, 1)) for index in range(count)}
    return Schedule(
        count,
        plain.corrupt,
        bound,
        missing,
        mute,
        left_out,
        unsent,
        (first, some(missing) | unsent),
        told,
        plain.unheard,
    )


@dataclass
class Played:
    """What came of a schedule.

    Attributes:
        record: What the coordinator sent and received.
        conspirators: What those who conspire add to it.
        inputs: The vectors, which the coalition does not see but for those of its own.
        own_masks: Self masks as they are, by index.
        pair_masks: Pair masks as they are, by pair, the lower index first.
    """

    record: Record
    conspirators: dict[int, Conspirator]
    inputs: list[RingVector]
    own_masks: dict[int, RingVector]
    pair_masks: dict[Pair, RingVector]

    @property
    def honest(self) -> list[int]:
        """Members that do not conspire."""
        return [index for index in range(len(self.inputs)) if index not in self.conspirators]


def carry_out(schedule: Schedule, key_agreement: str = "x25519") -> Played:
    """Play a schedule with real sessions; clients that refuse are not asked again."""
    count = schedule.count
    session, _ = play(
        count,
        size=16,
        corrupt_fraction=schedule.bound / count + 1e-6 if schedule.bound else 0.0,
        dropout_fraction=schedule.missing / count + 1e-6 if schedule.missing else 0.0,
        key_agreement=key_agreement,
    )
    session.advertise()
    tale = Tale(session)
    clients = sorted(session.clients, key=tale.index)
    secrets = [seeds_of(client) for client in clients]
    own_masks, pair_masks = streams(session, tale, clients)
    shares: dict[int, pb.Shares] = {}
    for index, client in enumerate(clients):
        message = answer(client, "take_roster", tale.roster)
        if isinstance(message, pb.Shares) and index not in schedule.mute:
            shares[index] = message
    deliveries, conspirators = {}, {}
    for index in sorted(shares.keys() | schedule.corrupt):
        client, left_out = clients[index], schedule.left_out.get(index, frozenset())
        # Those who conspire open every packet, whoever they are told has shared.
        whom = shares.keys() | {index} if index in schedule.corrupt else shares.keys() - left_out
        delivery = tale.delivery(client, {d: shares[d] for d in whom if d != index}, whom)
        answer(client, "take_delivery", delivery)
        held = session_of(client)._secrets
        if index in schedule.corrupt:
            seed, key = secrets[index]
            conspirators[index] = Conspirator(seed, key, {} if held is None else dict(held.held))
        if index not in shares:
            continue
        deliveries[client.client_id] = delivery
        if session_of(client).state is ClientState.DELIVERED and index not in schedule.unsent:
            vector = client.vector.copy()
            session_of(client).mask(vector)
            session.received.append(("upload", client.client_id, vector.tobytes()))
    sent = unmask(schedule, session, tale, clients)
    session.received += [("shares", clients[index].client_id, message) for index, message in shares.items()]
    sharers = {client_id: delivery.sharers for client_id, delivery in deliveries.items()}
    record = Record(session.parameters, tale.roster, sharers, sent, session.received)
    return Played(record, conspirators, [client.vector for client in clients], own_masks, pair_masks)


def answer(client: Client, method: str, message: object) -> object:
    """Return a client's answer, or nothing where it refuses."""
    try:
        return getattr(session_of(client), method)(message)
    except SessionAbortedError:
        return None


def seeds_of(client: Client) -> tuple[bytes, bytes]:
    """Return what a client shares out: the seed of its own mask, and what its mask keys follow from."""
    held = session_of(client)._secrets
    assert held is not None
    return held.seed, held.shared


def streams(session: Play, tale: Tale, clients: list[Client]) -> tuple[dict[int, RingVector], dict[Pair, RingVector]]:
    """Return all masks as vectors, from the secrets that the clients hold."""
    bound = (tale.session_id, tale.members.roster_hash)
    held = [session_of(client)._secrets for client in clients]
    own, pairs = {}, {}

    def stream(mask: Mask) -> RingVector:
        vector = np.zeros(session.parameters.size, dtype=RING_TYPES[session.parameters.spec.ring_bits])
        add_masks(vector, [Mask(mask.key)])
        return vector

    for index, secrets in enumerate(held):
        assert secrets is not None
        own[index] = stream(self_mask(secrets.seed, *bound, tale.members.entries[index].client_id))
        for other in range(index + 1, len(clients)):
            # The lower index needs nothing of the other for it.
            assert secrets.can_mask_with(tale.members, index, other, None)
            pairs[index, other] = stream(secrets.pair_mask(tale.members, index, other))
    return own, pairs


def unmask(schedule: Schedule, session: Play, tale: Tale, clients: list[Client]) -> list[pb.Survivors]:
    """Name survivors, hand on what acknowledgements there are, and collect what is given. Those who conspire acknowledge every set."""
    uploaded = {client_id for stage, client_id, _ in session.received if stage == "upload"}
    came = {index for index, client in enumerate(clients) if client.client_id in uploaded}
    sent = [tale.survivors(came - gone) for gone in schedule.sets]
    acks: list[dict[int, pb.SurvivorAck]] = [{} for _ in sent]
    for index in sorted(came - schedule.corrupt):
        which = schedule.told.get(index, 0)
        ack = answer(clients[index], "take_survivors", sent[which])
        if isinstance(ack, pb.SurvivorAck) and index not in schedule.unheard:
            session.received.append(("ack", clients[index].client_id, ack))
            acks[which][index] = ack
    for which, survivors in enumerate(sent):
        alive = tale.members.members_in(survivors.survivors)
        for index in schedule.corrupt & alive:
            acks[which][index] = ack_by(clients[index], tale, survivors.survivors)
    for index in sorted(came - schedule.corrupt):
        which = schedule.told.get(index, 0)
        others = {other: ack for other, ack in acks[which].items() if other != index}
        message = answer(clients[index], "take_acks", tale.bundle(others))
        if isinstance(message, pb.Unmask):
            session.received.append(("unmask", clients[index].client_id, message))
    return sent


# --- What the coalition can have --------------------------------------------------------------------------------------------------------


@dataclass
class Residue:
    """What is left of the honest clients' vectors when every mask that the coalition can make is taken off.

    Attributes:
        uploads: Vectors as they came, by index.
        joined: Pairs of honest clients whose mask is not known and stands in the vectors of both.
        hidden: Clients with a mask that is not known and stands in no other vector.
    """

    uploads: dict[int, RingVector]
    joined: list[Pair]
    hidden: set[int]

    @classmethod
    def of(cls, record: Record, found: Known, honest: Collection[int]) -> "Residue":
        """Work out what is left."""
        uploads = {index: vector for index, vector in record.uploads() if index in honest}
        partners = {index: set(record.partners(index)) for index in uploads}
        unknown = {
            (index, other) for index in uploads for other in partners[index] if not found.is_pair_known(index, other)
        }
        joined = [(one, other) for one, other in sorted(unknown) if one < other and (other, one) in unknown]
        alone = {one for one, other in unknown if (other, one) not in unknown}
        return cls(uploads, joined, alone | (uploads.keys() - found.seeds.keys()))

    @property
    def groups(self) -> list[frozenset[int]]:
        """Honest clients that unknown masks join, directly or through others."""
        groups = {index: frozenset([index]) for index in self.uploads}
        for one, other in self.joined:
            both = groups[one] | groups[other]
            groups |= dict.fromkeys(both, both)
        return list(set(groups.values()))

    @property
    def opened(self) -> list[frozenset[int]]:
        """Groups whose sum the coalition can have: no mask is left but those that go away in the sum."""
        return [group for group in self.groups if not group & self.hidden]


def check_only_the_sum_is_known(record: Record, found: Known, residue: Residue, honest: Collection[int]) -> None:
    """Check that what can be opened is the sum of the honest survivors, all of them, and that they are enough."""
    for index in honest:
        assert not (index in found.seeds and index in found.keys), f"both secrets of member {index} can be had"
    for index in residue.uploads.keys() & found.keys.keys():
        assert index not in found.seeds
    allowed = [record.members.members_in(survivors.survivors) & set(honest) for survivors in record.survivors]
    assert len(residue.opened) <= 1, "more than one sum can be had"
    for group in residue.opened:
        assert group in allowed, f"the sum of {sorted(group)} can be had, which is not that of the survivors"
        assert len(group) >= record.parameters.spec.minimum_cohort


def check_inputs_can_be_replaced(done: Played, found: Known, residue: Residue, seed: int) -> None:
    """Make other inputs and other streams for the unknown masks; check that the coalition's view is the same to the bit."""
    generator = np.random.default_rng(seed)
    inputs = other_inputs(done, residue, generator)
    own_masks, pair_masks = dict(done.own_masks), dict(done.pair_masks)
    for group in residue.groups:
        refit(group, residue, {i: done.inputs[i] - inputs[i] for i in group}, own_masks, pair_masks, done.record, found)
    changed = 0
    for index, upload in residue.uploads.items():
        assert (vector_of(index, done.record, done.inputs, done.own_masks, done.pair_masks) == upload).all()
        assert (vector_of(index, done.record, inputs, own_masks, pair_masks) == upload).all()
        changed += bool((inputs[index] != done.inputs[index]).any())
    for index in found.seeds:
        assert index not in done.own_masks or own_masks[index] is done.own_masks[index]
    for pair, stream in pair_masks.items():
        assert not found.is_pair_known(*pair) or stream is done.pair_masks[pair]
    for group in residue.opened:
        assert (sum_of([inputs[i] for i in group]) == sum_of([done.inputs[i] for i in group])).all()
    alone = sum(len(group) == 1 for group in residue.opened)
    assert changed == len(residue.uploads) - alone


def other_inputs(done: Played, residue: Residue, generator: np.random.Generator) -> list[RingVector]:
    """Return honest inputs of any kind, but with the same sum wherever that sum can be had."""
    kind = done.inputs[0].dtype
    inputs = list(done.inputs)
    for group in residue.groups:
        members = sorted(group)
        for index in members:
            inputs[index] = generator.integers(0, np.iinfo(kind).max, len(done.inputs[0]), dtype=kind, endpoint=True)
        if group in residue.opened:
            last = members[-1]
            rest = [inputs[index] for index in members[:-1]]
            inputs[last] = sum_of([done.inputs[index] for index in members])
            for vector in rest:
                inputs[last] = inputs[last] - vector
    return inputs


def refit(
    group: frozenset[int],
    residue: Residue,
    owed: dict[int, RingVector],
    own_masks: dict[int, RingVector],
    pair_masks: dict[Pair, RingVector],
    record: Record,
    found: Known,
) -> None:
    """Move what each member's vector lacks along a tree of unknown masks to one member, whose own unknown mask takes it up."""
    root = min(group & residue.hidden or group)
    tree, reached = [], [root]
    for here in reached:
        for one, other in residue.joined:
            there = other if one == here else one
            if here in (one, other) and there not in reached:
                reached.append(there)
                tree.append((there, here))
    assert set(reached) == group
    for child, parent in reversed(tree):
        pair = (min(child, parent), max(child, parent))
        # The child's vector gets what it lacks, and the parent's loses as much.
        pair_masks[pair] = pair_masks[pair] + owed[child] if child == pair[0] else pair_masks[pair] - owed[child]
        owed[parent] = owed[parent] + owed[child]
    if root not in residue.hidden:
        assert not owed[root].any()
    elif root not in found.seeds:
        own_masks[root] = own_masks[root] + owed[root]
    else:
        other = next(
            other
            for other in record.partners(root)
            if not found.is_pair_known(root, other)
            and (other not in residue.uploads or root not in record.partners(other))
        )
        pair = (min(root, other), max(root, other))
        pair_masks[pair] = pair_masks[pair] + owed[root] if root == pair[0] else pair_masks[pair] - owed[root]


def vector_of(
    index: int,
    record: Record,
    inputs: list[RingVector],
    own_masks: Mapping[int, RingVector],
    pair_masks: Mapping[Pair, RingVector],
) -> RingVector:
    """Return a member's vector as the protocol makes it."""
    vector = inputs[index] + own_masks[index]
    for other in record.partners(index):
        vector = vector + pair_masks[index, other] if index < other else vector - pair_masks[other, index]
    return vector


def check(done: Played, seed: int = 0) -> Residue:
    """Check everything that is said above."""
    found = known(done.record, done.conspirators)
    residue = Residue.of(done.record, found, done.honest)
    check_only_the_sum_is_known(done.record, found, residue, done.honest)
    check_inputs_can_be_replaced(done, found, residue, seed)
    return residue
