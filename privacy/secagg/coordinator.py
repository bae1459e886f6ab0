"""The coordinator's side of a session: messages in, messages out, nothing else. It learns the sum of the survivors' vectors.

    offer -> advertisements -> roster -> shares -> deliveries -> (masked vectors) -> survivors -> acknowledgements -> unmask

Masked vectors themselves go into a sum that lies elsewhere; here is only whose are in it. A client whose message breaks a rule is excluded
and the session goes on, as long as enough are left.

Source: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017, figure 4 (malicious server);
CSA-1 (docs/secure-aggregation.md), section "Coordinator". https://eprint.iacr.org/2017/281
"""

import secrets
from collections import Counter
from collections.abc import Collection
from enum import StrEnum

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.errors import AbortCode, MemberExcludedError, SessionAbortedError
from privacy.secagg.audit import UploadTerms
from privacy.secagg.head import NUMBER_BITS, HeadSum
from privacy.secagg.labels import is_signed, sign
from privacy.secagg.masks import Mask, RingVector, add_masks, self_mask
from privacy.secagg.members import Members, Problem, entry_problem, packet_parts, session_keys, unmask_parts
from privacy.secagg.packets import packet_sizes, sizes_of
from privacy.secagg.recovery import Recovery
from privacy.secagg.session import SessionParameters
from wire import federation_pb2 as pb


class CoordinatorState(StrEnum):
    """What a session waits for. A message that comes at another time is refused."""

    ADVERTISEMENTS = "advertisements"
    SHARES = "shares"
    VECTORS = "vectors"
    ACKS = "acknowledgements"
    UNMASKS = "unmasks"
    DONE = "done"


class CoordinatorSession:
    """One session of the coordinator. Clients are named by their identity, 32 hexadecimal digits.

    Attributes:
        state: What it waits for.
        parameters: What the session is about.
        session_id: 32 bytes.
        offer: What opens it for a client.
        complaints: How many members could not open a member's packet, by identity.
        false_holders: Members that gave what does not fit the others' shares or their own commitment, by identity.
    """

    def __init__(self, parameters: SessionParameters, key: Ed25519PrivateKey, problem_with: Problem) -> None:
        """Open a session.

        Args:
            parameters: What it is about.
            key: The coordinator's signing key.
            problem_with: Tells what speaks against a client that wants to take part.

        Raises:
            SecureAggregationError: There is no session with such parameters.
        """
        self.state = CoordinatorState.ADVERTISEMENTS
        self.parameters = parameters
        nonce, canon = secrets.token_bytes(32), parameters.canon()
        self.session_id = parameters.session_id(nonce)
        purpose = parameters.purpose
        self.offer = pb.SessionOffer(
            federation=purpose.federation,
            attempt=purpose.attempt,
            nonce=nonce,
            signature=sign(key, "offer", canon, nonce),
        )
        self.complaints: Counter[str] = Counter()
        self.false_holders: set[str] = set()
        self._key = key
        self._problem_with = problem_with
        self._entries: dict[str, pb.Advertise] = {}
        self._packets: dict[int, dict[int, pb.Packet]] = {}
        self._alive: set[int] = set()
        self._acks: dict[int, bytes] = {}

    @property
    def count(self) -> int:
        """Clients that have advertised."""
        return len(self._entries)

    @property
    def fewest(self) -> int:
        """Fewest members whose vectors must be in the sum."""
        return self.parameters.fewest(self._members.graph, self.parameters.spec.minimum_cohort)

    @property
    def clients(self) -> list[str]:
        """Members by identity, in the roster's order."""
        return [entry.client_id.hex() for entry in self._members.entries]

    @property
    def sharers(self) -> list[str]:
        """Members that have shared."""
        return [self.clients[index] for index in sorted(self._packets)]

    @property
    def survivors(self) -> list[str]:
        """Members whose vectors are in the sum."""
        return [self.clients[index] for index in sorted(self._alive)]

    @property
    def acknowledged(self) -> list[str]:
        """Survivors that have acknowledged."""
        return [self.clients[index] for index in sorted(self._acks)]

    @property
    def public_keys(self) -> dict[str, bytes]:
        """The members' public keys, by identity."""
        return {entry.client_id.hex(): entry.public_key for entry in self._members.entries}

    @property
    def upload_terms(self) -> UploadTerms:
        """What members sign with their masked vectors in audit mode, once they have shared."""
        sharers = self._members.bitmap(self._packets)
        return UploadTerms.of(self.parameters, self.offer.nonce, self._members.roster_hash, sharers)

    def take_advertisement(self, client_id: str, message: pb.Advertise) -> None:
        """Note a client that is ready. Raises `MemberExcludedError` when its advertisement breaks a rule."""
        self._check_due(CoordinatorState.ADVERTISEMENTS)
        if client_id in self._entries:
            raise MemberExcludedError("A client must advertise once in a session.")
        if len(self._entries) == self.parameters.purpose.client_count:
            raise MemberExcludedError(f"Clients of a session must be at most {len(self._entries)}.")
        if message.session_id != self.session_id or message.client_id.hex() != client_id:
            raise MemberExcludedError("An advertisement must be for this session and of the client that sends it.")
        if problem := entry_problem(message, self.session_id, self._problem_with, self.parameters.is_hybrid):
            raise MemberExcludedError(f"Advertisement: {problem}.")
        keys = {key for entry in self._entries.values() for key in session_keys(entry)}
        own = session_keys(message)
        if keys & set(own) or len(set(own)) < len(own):
            raise MemberExcludedError("Advertisement: its keys must be its own, one of them is there already.")
        entry = pb.Advertise()
        entry.CopyFrom(message)
        # What is neither signed nor hashed goes to nobody.
        entry.DiscardUnknownFields()
        self._entries[client_id] = entry

    def freeze(self) -> pb.Roster:
        """Close the session to newcomers and return its roster.

        Raises:
            SecureAggregationError: So few have advertised that there is no session for them.
        """
        entries = sorted(self._entries.values(), key=lambda entry: entry.client_id)
        graph = self.parameters.graph(len(entries))
        self._members = Members.of(entries, self.session_id, graph)
        self._recovery = Recovery(self._members, self.session_id)
        self._index = {entry.client_id.hex(): index for index, entry in enumerate(entries)}
        self._check_count(len(entries), "members")
        self.state = CoordinatorState.SHARES
        signature = sign(self._key, "roster-sig", self.session_id, self._members.roster_hash)
        return pb.Roster(session_id=self.session_id, members=entries, signature=signature)

    def take_shares(self, client_id: str, message: pb.Shares) -> None:
        """Note the packets of a member. Raises `MemberExcludedError` when they break a rule."""
        self._check_due(CoordinatorState.SHARES)
        index = self._signed(client_id, message.signature, "shares", *packet_parts(message.packets))
        if [packet.index for packet in message.packets] != list(self._members.neighbours[index]):
            raise MemberExcludedError("Shares: there must be one packet for each neighbour, in order.")
        for packet in message.packets:
            expected = packet_sizes(self.parameters.is_hybrid, packet.index > index)
            if sizes_of(packet) != expected:
                listed = " and ".join(str(size) for size in expected if size)
                raise MemberExcludedError(f"Shares: a packet must have {listed} bytes.")
        packets = {packet.index: packet for packet in message.packets}
        if self._packets.setdefault(index, packets) != packets:
            raise MemberExcludedError("Shares: a member must share once.")

    def deliver(self) -> dict[str, pb.Delivery]:
        """Close the sharing, and return what each sharer is handed.

        Raises:
            SessionAbortedError: Too few have shared.
        """
        members, sharers = self._members, self._packets.keys()
        self._check_count(len(sharers), "sharers")
        for index in sharers:
            self._check_live(index, sharers, "sharers")
        self.state = CoordinatorState.VECTORS
        bitmap = members.bitmap(sharers)
        deliveries = {}
        for index in sharers:
            delivery = pb.Delivery(session_id=self.session_id, sharers=bitmap)
            for dealer in members.neighbours[index]:
                if dealer in sharers and (packet := self._packets[dealer].get(index)) is not None:
                    copy = delivery.packets.add()
                    copy.CopyFrom(packet)
                    copy.index = dealer
                    # What is not signed goes to nobody.
                    copy.DiscardUnknownFields()
            if self.parameters.is_hybrid:
                parts = (self.session_id, members.roster_hash, bitmap, *packet_parts(delivery.packets))
                delivery.signature = sign(self._key, "delivery-srv", *parts)
            deliveries[self.clients[index]] = delivery
        return deliveries

    def close_sum(self, client_ids: list[str]) -> pb.Survivors:
        """Note whose vectors are in the sum, all of them whole, and return what they are told.

        Raises:
            SessionAbortedError: They are too few, or not all have shared, so the sum could not be opened.
        """
        if strangers := set(client_ids) - set(self.sharers):
            named = ", ".join(sorted(strangers))
            raise SessionAbortedError(
                AbortCode.MALFORMED, f"vectors must be of those who have shared, there is one of {named}"
            )
        self._alive = {self._index[client_id] for client_id in client_ids}
        self._check_count(len(self._alive), "survivors")
        for index in self._packets:
            self._check_live(index, self._alive, "survivors")
        self.state = CoordinatorState.ACKS
        self._bitmap = self._members.bitmap(self._alive)
        signature = sign(self._key, "survivors-srv", self.session_id, self._members.roster_hash, self._bitmap)
        return pb.Survivors(session_id=self.session_id, survivors=self._bitmap, signature=signature)

    def take_ack(self, client_id: str, message: pb.SurvivorAck) -> None:
        """Note an acknowledgement. Raises `MemberExcludedError` when it is not of these survivors."""
        self._check_due(CoordinatorState.ACKS)
        index = self._signed(client_id, message.signature, "survivors-ack", self._bitmap)
        if index not in self._alive:
            raise MemberExcludedError("SurvivorAck: a member must be among the survivors to acknowledge them.")
        self._acks[index] = message.signature

    def bundles(self) -> dict[str, pb.AckBundle]:
        """Return the acknowledgements that each acknowledging member is shown: those of its neighbours.

        Raises:
            SessionAbortedError: Too few have acknowledged for the sum to be opened.
        """
        for index in self._packets:
            self._check_live(index, self._acks, "acknowledgements")
        self.state = CoordinatorState.UNMASKS
        found = {}
        for index in self._acks:
            near = [other for other in self._members.neighbours[index] if other in self._acks]
            acks = [pb.Ack(index=other, signature=self._acks[other]) for other in near]
            found[self.clients[index]] = pb.AckBundle(session_id=self.session_id, acks=acks)
        return found

    def take_unmask(self, client_id: str, message: pb.Unmask) -> None:
        """Note what a member gives to open the sum. Raises `MemberExcludedError` when it breaks a rule."""
        self._check_due(CoordinatorState.UNMASKS)
        index = self._signed(client_id, message.signature, "unmask", *unmask_parts(message))
        if index not in self._acks:
            raise MemberExcludedError("Unmask: a member must acknowledge the survivors first.")
        near = set(self._members.neighbours[index])
        seeds = {held.index for held in message.seed_shares}
        keys = {held.index for held in message.key_shares}
        if seeds & keys:
            raise MemberExcludedError("Unmask: a member must never give both kinds of shares of another.")
        if not seeds <= near & self._alive or not keys <= near & self._packets.keys() - self._alive:
            raise MemberExcludedError("Unmask: shares must be of seeds of survivors and of keys of the others.")
        unmasks = self._recovery.unmasks
        if index in unmasks:
            if message != unmasks[index]:
                raise MemberExcludedError("Unmask: a member must give its shares once.")
            return
        for dealer in set(message.missing) & near & self._packets.keys():
            self.complaints[self.clients[dealer]] += 1
        unmasks[index] = message

    def open(self, total: RingVector) -> HeadSum:
        """Take every mask off the sum, in place, and read its head.

        Raises:
            SessionAbortedError: Secrets cannot be had again, or the sum is not that of the survivors' vectors. It is then useless.
        """
        try:
            add_masks(total, self._masks(), self.parameters.spec.cipher)
        finally:
            self.false_holders = {self.clients[index] for index in self._recovery.false_holders}
            self._recovery.forget()
            self.state = CoordinatorState.DONE
        head = self.parameters.head.read(total)
        if head.count != len(self._alive):
            raise SessionAbortedError(
                AbortCode.CANARY,
                f"the opened sum must be of {len(self._alive)} vectors, its canary says {head.count}; "
                "some client has brought another vector than it shared for",
            )
        count, purpose = len(self._alive), self.parameters.purpose
        # Who has trained weighs 1 at least; where there are no coordinates nothing need be weighed.
        weights = count if purpose.body_size else 0, count * self.parameters.spec.weight_cap
        examples = 0, count << NUMBER_BITS - 1
        for name, number, (least, most) in (
            ("weights", head.weight_total, weights),
            ("examples", head.example_count, examples),
        ):
            if not least <= number <= most:
                raise SessionAbortedError(
                    AbortCode.CANARY, f"the sum of {name} must be {least} to {most}, got {number}"
                )
        return head

    def _masks(self) -> list[Mask]:
        """Return what takes all masks off the sum."""
        members, roster_hash = self._members, self._members.roster_hash
        recovery, masks = self._recovery, []
        for index in sorted(self._alive):
            mask = self_mask(recovery.seed_of(index), self.session_id, roster_hash, members.entries[index].client_id)
            masks.append(Mask(mask.key, is_negative=True))
        for index in sorted(self._packets.keys() - self._alive):
            near = [other for other in members.neighbours[index] if other in self._alive]
            masks += recovery.pair_masks_of(index, near, self._packets)
        return masks

    def _signed(self, client_id: str, signature: bytes, label: str, *parts: bytes) -> int:
        """Return the index of a member that has signed its message."""
        index = self._index.get(client_id)
        if index is None:
            raise MemberExcludedError("A message must be of a member of the session.")
        entry = self._members.entries[index]
        if not is_signed(entry.public_key, signature, label, self.session_id, self._members.roster_hash, *parts):
            raise MemberExcludedError(f"A message must be signed with its member's key for this session ({label}).")
        return index

    def _check_due(self, state: CoordinatorState) -> None:
        if self.state is not state:
            raise MemberExcludedError(
                f"A message must come when it is due: got one of {state} while waiting for {self.state}."
            )

    def _check_count(self, count: int, who: str) -> None:
        if count < self.fewest:
            raise SessionAbortedError(AbortCode.TOO_FEW, f"{who} must be at least {self.fewest}, got {count}")

    def _check_live(self, index: int, alive: Collection[int], who: str) -> None:
        live = self._members.live_count(index, alive)
        if live < self._members.graph.threshold:
            threshold, client_id = self._members.graph.threshold, self.clients[index]
            raise SessionAbortedError(
                AbortCode.TOO_FEW, f"{who} near {client_id} must be at least {threshold}, got {live}"
            )
