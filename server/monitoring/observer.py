"""Who is told what goes on in a coordinator, to count it: this one is told and does nothing, as in a simulation."""

from collections.abc import Sequence

from server.cohort import Kind
from server.records import RefusalRecord, RoundRecord


class Observer:
    """Is told. Called on the event loop, so that none of it may take long."""

    def note_round(self, record: RoundRecord) -> None:
        """A round was committed."""

    def note_refusals(self, refusals: Sequence[RefusalRecord]) -> None:
        """Contributions were refused, in whatever attempt of a round."""

    def note_lost_session(self, kind: Kind) -> None:
        """A session of secure aggregation ended without an opened sum."""

    def note_sent(self, byte_count: int) -> None:
        """A part of a model went out."""

    def note_received(self, byte_count: int) -> None:
        """A part of a contribution came in."""

    def note_lag(self, seconds: float) -> None:
        """The event loop came to a timer so late."""


DEAF = Observer()
