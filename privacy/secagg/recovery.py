"""What opens a sum: secrets of members, from what other members give of them at the end of a session.

Source: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017, figure 4; CSA-1
(docs/secure-aggregation.md), section "Coordinator". https://eprint.iacr.org/2017/281
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from privacy.errors import AbortCode, SessionAbortedError
from privacy.secagg.hybrid import MaskKeys
from privacy.secagg.labels import hashed
from privacy.secagg.masks import Mask, pair_mask
from privacy.secagg.members import Members
from privacy.secagg.shamir import combine
from wire import federation_pb2 as pb


class Recovery:
    """Puts shares together.

    Attributes:
        unmasks: What members have given, by their index.
        false_holders: Members, by index, that gave what does not fit the others' shares or their own commitment.
    """

    def __init__(self, members: Members, session_id: bytes) -> None:
        """Wait for what the members of a session give."""
        self.unmasks: dict[int, pb.Unmask] = {}
        self.false_holders: set[int] = set()
        self._members = members
        self._session_id = session_id

    def forget(self) -> None:
        """Let go of everything that was given."""
        self.unmasks.clear()

    def seed_of(self, index: int) -> bytes:
        """Return the seed of a survivor's own mask.

        Raises:
            SessionAbortedError: It cannot be had.
        """
        entry = self._members.entries[index]

        def is_right(seed: bytes) -> bool:
            return hashed("commit-b", self._session_id, entry.client_id, seed) == entry.seed_commitment

        own = self.unmasks.get(index)
        if own is not None and is_right(own.own_seed):
            return own.own_seed
        seed = self._recovered(index, lambda message: message.seed_shares, is_right, "seed")
        if own is not None:
            self.false_holders.add(index)
        return seed

    def pair_masks_of(
        self, index: int, others: Iterable[int], packets: Mapping[int, Mapping[int, pb.Packet]]
    ) -> list[Mask]:
        """Return the masks of a member that is gone, as it would have added them: the opposite of what its neighbours did.

        Args:
            index: Who is gone.
            others: With whom it has masks.
            packets: All packets by their senders' and receivers' indices.

        Raises:
            SessionAbortedError: They cannot be had.
        """
        members = self._members
        entry = members.entries[index]

        def is_right(secret: bytes) -> bool:
            if entry.mask_kem_key:
                return MaskKeys(secret, self._session_id).are_of(entry)
            return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw() == entry.mask_key

        secret = self._recovered(index, lambda message: message.key_shares, is_right, "mask key")
        if entry.mask_kem_key:
            keys = MaskKeys(secret, self._session_id)
            return [self._hybrid_mask(keys, index, other, packets) for other in others]
        own, key = members.peer(index), X25519PrivateKey.from_private_bytes(secret)
        return [pair_mask(key, own, members.peer(other), self._session_id, members.roster_hash) for other in others]

    def _hybrid_mask(
        self, keys: MaskKeys, index: int, other: int, packets: Mapping[int, Mapping[int, pb.Packet]]
    ) -> Mask:
        low, high = sorted((index, other))
        try:
            secret = keys.secret_with(index, other, self._members, packets[low][high])
        except ValueError:
            self.false_holders.add(low)
            client_id = self._members.entries[low].client_id.hex()
            detail = f"a packet of {client_id} must have what it committed to for a pair mask, it does not"
            raise SessionAbortedError(AbortCode.BAD_SHARE, detail) from None
        return keys.mask_with(index, other, self._members, secret)

    def _recovered(
        self,
        dealer: int,
        shares_in: Callable[[pb.Unmask], Iterable[pb.HeldShare]],
        is_right: Callable[[bytes], bool],
        what: str,
    ) -> bytes:
        """Return a member's secret from its holders' shares; those whose share does not fit the others are noted.

        Raises:
            SessionAbortedError: The shares are too few or do not give what the member committed to.
        """
        members, threshold = self._members, self._members.graph.threshold
        points = {
            members.point(dealer, holder): held.share
            for holder, message in sorted(self.unmasks.items())
            for held in shares_in(message)
            if held.index == dealer
        }
        client_id = members.entries[dealer].client_id.hex()
        if len(points) < threshold:
            raise SessionAbortedError(
                AbortCode.TOO_FEW,
                f"shares of the {what} of {client_id} must be at least {threshold}, got {len(points)}",
            )
        for chosen in _subsets(points, threshold):
            try:
                secret = combine(chosen)
            except ValueError:
                continue
            if is_right(secret):
                passed_over = {point for point in points if point < max(chosen)} - chosen.keys()
                self.false_holders |= {members.closed(dealer)[point - 1] for point in passed_over}
                return secret
        raise SessionAbortedError(
            AbortCode.BAD_SHARE, f"shares of the {what} of {client_id} must give what it committed to"
        )


def _subsets(points: Mapping[int, bytes], threshold: int) -> Iterator[dict[int, bytes]]:
    """Yield the first `threshold` shares, then the same with the next share in the place of each of them in turn."""
    first, later = list(points)[:threshold], list(points)[threshold : threshold + 1]
    yield {point: points[point] for point in first}
    for place in range(threshold if later else 0):
        yield {point: points[point] for point in [*first[:place], *first[place + 1 :], *later]}
