"""What clients answer in one exchange of a session of secure aggregation."""

from collections.abc import Callable, Sequence
from typing import Any

from privacy.errors import MemberExcludedError
from server.signal import Signal
from wire.federation_pb2 import RefusalReason

Refuse = Callable[[str, RefusalReason, str], None]
"""Takes note of a client that is refused: who, why, and one sentence."""


class Replies:
    """Takes one reply from each client that was asked."""

    def __init__(
        self, invited: Sequence[str], kind: type, take: Callable[[str, Any], None], refuse: Refuse, changed: Signal
    ) -> None:
        """Wait for the replies of one exchange.

        Args:
            invited: Clients that are asked.
            kind: Messages that are replies; what crossed the question, such as an earlier answer that is given again, is ignored.
            take: Takes a reply. Raises `MemberExcludedError` for one that breaks a rule.
            refuse: Takes note of those who sent such a one, or said that they will not.
            changed: Notified whenever a client settles.
        """
        self._invited = frozenset(invited)
        self._kind = kind
        self._take = take
        self._refuse = refuse
        self._changed = changed
        self._answered: set[str] = set()
        self._failed: set[str] = set()
        self._is_closed = False

    @property
    def count(self) -> int:
        """Replies that were taken."""
        return len(self._answered)

    @property
    def unsettled(self) -> frozenset[str]:
        """Clients that have not answered."""
        return self._invited - self._answered - self._failed

    def record(self, client_id: str, message: object) -> None:
        """Take a reply. One from a client that was not asked, or that has answered, is ignored."""
        if not self._is_open_to(client_id) or not isinstance(message, self._kind):
            return
        try:
            self._take(client_id, message)
            self._answered.add(client_id)
        except MemberExcludedError as error:
            self._failed.add(client_id)
            self._refuse(client_id, RefusalReason.REFUSAL_REASON_MALFORMED, str(error))
        self._changed.notify()

    def refuse(self, client_id: str, reason: RefusalReason, detail: str) -> None:
        """Take the word of a client that it will not answer."""
        if self._is_open_to(client_id):
            self._refuse(client_id, reason, detail)
            self.drop(client_id)

    def drop(self, client_id: str) -> None:
        """Wait no longer for a client, which has lost what it knew of the session."""
        if self._is_open_to(client_id):
            self._failed.add(client_id)
            self._changed.notify()

    def close(self) -> None:
        """Ignore what comes from now on: the session goes on without it."""
        self._is_closed = True

    def _is_open_to(self, client_id: str) -> bool:
        return not self._is_closed and client_id in self.unsettled
