"""A client's side of a session: message in, message out, nothing else. What it does not accept ends the session and erases its secrets.

    offer -> Advertise, roster -> Shares, delivery and vector -> masked vector, survivors -> SurvivorAck, acknowledgements -> Unmask

Source: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017, figure 4 (malicious server);
CSA-1 (docs/secure-aggregation.md), section "Client". https://eprint.iacr.org/2017/281
"""

from enum import StrEnum
from typing import NoReturn

from google.protobuf.message import Message

from privacy.errors import AbortCode, SecureAggregationError, SessionAbortedError
from privacy.secagg.audit import SignedUpload, UploadTerms
from privacy.secagg.keys import ClientSecrets
from privacy.secagg.labels import hashed, is_signed, sign
from privacy.secagg.masks import RingVector, add_masks, self_mask
from privacy.secagg.members import (
    Members,
    advertised_parts,
    entry_problem,
    packet_parts,
    session_keys,
    unmask_parts,
)
from privacy.secagg.party import Party
from privacy.secagg.session import SessionParameters
from privacy.secagg.shamir import split
from wire import federation_pb2 as pb
from wire.identity import client_id_of


class ClientState(StrEnum):
    """Where a client stands in a session."""

    ADVERTISED = "advertised"
    SHARED = "shared"
    DELIVERED = "delivered"
    MASKED = "masked"
    ACKED = "acked"
    DONE = "done"
    ABORTED = "aborted"


class ClientSession:
    """One session of one client.

    Every method takes the coordinator's next message and returns the answer. Any of them raises `SessionAbortedError` when a check fails;
    the session is then over.

    Attributes:
        state: Where it stands.
        session_id: 32 bytes.
        advertisement: The answer to the offer.
    """

    def __init__(self, parameters: SessionParameters, offer: pb.SessionOffer, party: Party) -> None:
        """Answer an offer whose vector is ready.

        Args:
            parameters: What the client itself computes from its task, run spec and the model that it holds.
            offer: The coordinator's.
            party: This client.

        Raises:
            SessionAbortedError: The offer is not what it must be. Nothing secret was made.
        """
        self.state = ClientState.ABORTED
        self._parameters = parameters
        self._identity, self._trust, self._floor = party.identity, party.trust, party.floor
        self._journal = party.journal
        self._secrets: ClientSecrets | None = None
        self._ack = pb.SurvivorAck()
        self._nonce = offer.nonce
        self.session_id = party.accept(parameters, offer)
        self._journal.begin(parameters)
        make = ClientSecrets.hybrid if parameters.is_hybrid else ClientSecrets
        self._secrets = make(self.session_id)
        self.state = ClientState.ADVERTISED
        self.advertisement = self._advertise(self._secrets)

    def take_roster(self, roster: pb.Roster) -> pb.Shares:
        """Check who takes part, and return the shares of this session's secrets, encrypted to their holders."""
        held = self._in(ClientState.ADVERTISED, roster)
        self._members = members = self._checked(roster)
        self._index = index = next(
            place for place, entry in enumerate(members.entries) if entry.client_id == self.advertisement.client_id
        )
        closed = members.closed(index)
        threshold, count = members.graph.threshold, len(closed)
        dealt = zip(
            split(held.seed, threshold, count),
            split(held.shared, threshold, count),
            strict=True,
        )
        packets = []
        for holder, shares in zip(closed, dealt, strict=True):
            if holder != index:
                packets.append(held.seal(members, index, holder, shares))
        self.state = ClientState.SHARED
        signature = sign(self._identity.key, "shares", self.session_id, members.roster_hash, *packet_parts(packets))
        return pb.Shares(session_id=self.session_id, packets=packets, signature=signature)

    def take_delivery(self, delivery: pb.Delivery) -> None:
        """Check who has shared, and open the shares for this client. One that cannot be opened is noted as missing."""
        held, members = self._in(ClientState.SHARED, delivery), self._members
        if self._parameters.is_hybrid:
            said = (delivery.sharers, *packet_parts(delivery.packets))
            self._check_server(delivery.signature, "delivery-srv", delivery, *said)
        self._sharers = sharers = self._member_set(delivery.sharers, delivery)
        if self._index not in sharers:
            self._abort(AbortCode.TOO_FEW, "this client must be among those who have shared, it is not", delivery)
        self._check_count(len(sharers), "sharers", delivery)
        near = [other for other in members.neighbours[self._index] if other in sharers]
        packets = {packet.index: packet for packet in delivery.packets}
        self._missing = []
        for dealer in near:
            shares = held.open(members, self._index, dealer, packets.get(dealer))
            if shares is None:
                self._missing.append(dealer)
            else:
                held.held[dealer] = shares
            if not held.can_mask_with(members, self._index, dealer, shares and packets[dealer]):
                self._abort(
                    AbortCode.FALSE_PACKET,
                    f"the packet of member {members.entries[dealer].client_id.hex()} must open and have its part of a pair mask",
                    delivery,
                )
        self._check_live(sharers, "sharers", delivery)
        self._near = near
        self.state = ClientState.DELIVERED

    def mask(self, vector: RingVector) -> None:
        """Mask this client's vector in place, once: a second vector under the same masks would show the difference of the two."""
        held, members = self._in(ClientState.DELIVERED), self._members
        if len(vector) != self._parameters.size or vector.itemsize * 8 != self._parameters.spec.ring_bits:
            raise ValueError("A vector must have the session's size and ring.")
        self.state = ClientState.MASKED
        own = self_mask(held.seed, self.session_id, members.roster_hash, self.advertisement.client_id)
        masks = [own, *(held.pair_mask(members, self._index, other) for other in self._near)]
        held.mask_key = held.kem = None
        add_masks(vector, masks, self._parameters.spec.cipher)

    def sign_upload(self, sha256: bytes) -> bytes:
        """Return this client's signature over its masked vector, by its SHA-256, and keep a copy; without audit, nothing.

        Raises:
            SecureAggregationError: The copy could not be kept. Nothing was signed for anybody.
        """
        self._in(ClientState.MASKED)
        if not self._parameters.spec.audit:
            return b""
        bitmap = self._members.bitmap(self._sharers)
        terms = UploadTerms.of(self._parameters, self._nonce, self._members.roster_hash, bitmap)
        upload = SignedUpload(terms, sha256, terms.sign(self._identity.key, sha256))
        self._journal.note_upload(self._parameters, upload)
        return upload.signature

    def take_survivors(self, survivors: pb.Survivors) -> pb.SurvivorAck:
        """Check whose vectors are in the sum, and bind this client to them."""
        if self.state is ClientState.ACKED:
            self._check_same(survivors)
            return self._ack
        self._in(ClientState.MASKED, survivors)
        self._check_server(survivors.signature, "survivors-srv", survivors, survivors.survivors)
        alive = self._member_set(survivors.survivors, survivors)
        if self._index not in alive:
            self._abort(
                AbortCode.EQUIVOCATION,
                "this client must be among the survivors, its vector was called missing",
                survivors,
            )
        if not alive <= self._sharers:
            self._abort(AbortCode.EQUIVOCATION, "survivors must be among those who have shared", survivors)
        self._check_count(len(alive), "survivors", survivors)
        self._check_live(alive, "survivors", survivors)
        self._alive, self._survivors = alive, survivors
        signature = sign(
            self._identity.key, "survivors-ack", self.session_id, self._members.roster_hash, survivors.survivors
        )
        self.state = ClientState.ACKED
        self._ack = pb.SurvivorAck(session_id=self.session_id, signature=signature)
        return self._ack

    def take_acks(self, bundle: pb.AckBundle) -> pb.Unmask:
        """Check that enough neighbours acknowledged the same survivors, and give what opens the sum: seeds of survivors, keys of others."""
        held, members = self._in(ClientState.ACKED, bundle), self._members
        acked = {self._index}
        near = set(members.neighbours[self._index]) & self._alive
        for ack in bundle.acks:
            if ack.index not in near or not is_signed(
                members.entries[ack.index].public_key,
                ack.signature,
                "survivors-ack",
                self.session_id,
                members.roster_hash,
                self._survivors.survivors,
            ):
                self._abort(
                    AbortCode.EQUIVOCATION,
                    f"member {ack.index} must have acknowledged the same survivors, its acknowledgement does not fit them",
                    self._survivors,
                    bundle,
                )
            acked.add(ack.index)
        if len(acked) < members.graph.threshold:
            self._abort(
                AbortCode.TOO_FEW,
                f"acknowledgements must be at least {members.graph.threshold}, got {len(acked)}",
                self._survivors,
                bundle,
            )
        try:
            self._journal.reveal(self._parameters)
        except BaseException:
            self.abort()
            raise
        message = self._unmask(held)
        self._erase(ClientState.DONE)
        return message

    def abort(self) -> None:
        """End the session for reasons of its own: erase the secrets."""
        if self.state is not ClientState.DONE:
            self._erase(ClientState.ABORTED)

    def _advertise(self, held: ClientSecrets) -> pb.Advertise:
        public_key = self._identity.public_key
        client_id = bytes.fromhex(client_id_of(public_key))
        entry = pb.Advertise(
            session_id=self.session_id,
            client_id=client_id,
            public_key=public_key,
            certificate=self._identity.certificate,
            seed_commitment=hashed("commit-b", self.session_id, client_id, held.seed),
        )
        held.advertise(entry)
        entry.signature = sign(self._identity.key, "advertise", self.session_id, *advertised_parts(entry))
        return entry

    def _checked(self, roster: pb.Roster) -> Members:
        """Return the members of a roster that breaks no rule."""
        entries, most = list(roster.members), self._parameters.purpose.client_count
        if len(entries) > most:
            self._abort(AbortCode.POLICY, f"members must be at most {most}, got {len(entries)}", roster)
        try:
            graph = self._parameters.graph(len(entries))
        except SecureAggregationError as error:
            self._abort(AbortCode.POLICY, str(error).removeprefix("Secure aggregation: ").rstrip("."), roster)
        members = Members.of(entries, self.session_id, graph)
        # First of all, so that what is wrong below is the coordinator's word.
        if not is_signed(
            self._trust.coordinator_key, roster.signature, "roster-sig", self.session_id, members.roster_hash
        ):
            self._abort(AbortCode.FORGED, "a roster must be signed by the coordinator", roster)
        self._check_entries(entries, roster)
        least, floor = self._parameters.spec.minimum_cohort, self._floor
        self._fewest = max(self._parameters.fewest(graph, max(least, floor.minimum_cohort)), floor.minimum_members)
        self._check_count(len(entries), "members", roster)
        return members

    def _check_entries(self, entries: list[pb.Advertise], roster: pb.Roster) -> None:
        ids = [entry.client_id for entry in entries]
        if ids != sorted(set(ids)):
            self._abort(AbortCode.FORGED, "members of a roster must be different and in order", roster)
        if len({entry.public_key for entry in entries}) < len(entries):
            self._abort(AbortCode.FORGED, "each member must have a public_key of its own", roster)
        keys = [key for entry in entries for key in session_keys(entry)]
        if len(set(keys)) < len(keys):
            self._abort(AbortCode.FORGED, "each member must have an encryption_key and a mask_key of its own", roster)
        if self.advertisement not in entries:
            self._abort(AbortCode.FORGED, "this client's own entry must be what it advertised", roster)
        for entry in entries:
            if entry != self.advertisement and (
                problem := entry_problem(entry, self.session_id, self._trust.problem_with, self._parameters.is_hybrid)
            ):
                self._abort(AbortCode.FORGED, f"member {entry.client_id.hex()}: {problem}", roster)

    def _unmask(self, held: ClientSecrets) -> pb.Unmask:
        """Return what opens the sum: of each sharer one kind of share, decided by the one set of survivors."""
        message = pb.Unmask(session_id=self.session_id, own_seed=held.seed, missing=self._missing)
        for dealer, (seed_share, key_share) in sorted(held.held.items()):
            if dealer in self._alive:
                message.seed_shares.add(index=dealer, share=seed_share)
            else:
                message.key_shares.add(index=dealer, share=key_share)
        message.signature = sign(
            self._identity.key, "unmask", self.session_id, self._members.roster_hash, *unmask_parts(message)
        )
        return message

    def _check_same(self, survivors: pb.Survivors) -> None:
        """Check that survivors that are named again are the same."""
        self._check_server(survivors.signature, "survivors-srv", survivors, survivors.survivors)
        if survivors.survivors != self._survivors.survivors:
            self._abort(
                AbortCode.EQUIVOCATION,
                "survivors must be the same whenever they are named, got others",
                self._survivors,
                survivors,
            )

    def _check_server(self, signature: bytes, label: str, message: Message, *parts: bytes) -> None:
        roster_hash = self._members.roster_hash
        if not is_signed(self._trust.coordinator_key, signature, label, self.session_id, roster_hash, *parts):
            self._abort(AbortCode.FORGED, f"{message.DESCRIPTOR.name} must be signed by the coordinator", message)

    def _member_set(self, bitmap: bytes, message: Message) -> frozenset[int]:
        try:
            return self._members.members_in(bitmap)
        except ValueError as error:
            self._abort(AbortCode.MALFORMED, str(error), message)

    def _check_count(self, count: int, who: str, message: Message) -> None:
        if count < self._fewest:
            self._abort(AbortCode.TOO_FEW, f"{who} must be at least {self._fewest}, got {count}", message)

    def _check_live(self, alive: frozenset[int], who: str, message: Message) -> None:
        threshold, live = self._members.graph.threshold, self._members.live_count(self._index, alive)
        if live < threshold:
            self._abort(AbortCode.TOO_FEW, f"{who} near this client must be at least {threshold}, got {live}", message)

    def _in(self, state: ClientState, *message: Message) -> ClientSecrets:
        """Return the secrets if the session stands where it must."""
        if self.state is not state or self._secrets is None:
            self._abort(
                AbortCode.MALFORMED,
                f"a message must come when it is due, got one for {state} while {self.state}",
                *message,
            )
        return self._secrets

    def _abort(self, code: AbortCode, detail: str, *evidence: Message) -> NoReturn:
        self.abort()
        raise SessionAbortedError(code, detail, *evidence)

    def _erase(self, state: ClientState) -> None:
        self.state = state
        if self._secrets is not None:
            self._secrets.erase()
        self._secrets = None
