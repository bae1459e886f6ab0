"""When each client of an open round did what, as far as the coordinator sees it.

A client tells of its phases itself; what arrives of it, the coordinator sees. With secure aggregation it is the same, and `ended` is when
it was asked for nothing more.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from server.errors import reason_name
from server.inbox import OF_ANOTHER_ROUND
from server.records import Moments
from wire import federation_pb2 as pb
from wire.federation_pb2 import RefusalReason

TRAINED = (pb.PHASE_WAITING, pb.PHASE_UPLOADING)
"""Phases in which a client has trained."""


@dataclass
class Entry:
    """What one client did in an open round."""

    task_id: str
    moments: Moments = field(default_factory=Moments)
    is_accepted: bool = False
    reason: str = ""
    """Lower-case name of why its contribution was refused; empty while it was not."""
    detail: str = ""
    evaluation_reason: str = ""
    """Likewise of why it has not evaluated."""
    evaluation_detail: str = ""


class Diary:
    """Notes for each run what the clients of its open round do. Used from the event loop alone."""

    def __init__(self) -> None:
        self._pages: dict[str, dict[str, Entry]] = {}

    def ask(self, client_id: str, task_id: str) -> None:
        """Note that a client is asked to train, or for more of the same task."""
        run_id, _, rest = task_id.partition("/")
        if not rest.endswith("/train"):
            return
        page = self._pages.setdefault(run_id, {})
        if (entry := page.get(client_id)) is not None and entry.task_id == task_id:
            entry.moments = entry.moments.with_(ended=None)
        else:
            page[client_id] = Entry(task_id, Moments(asked=_now()))

    def download(self, client_id: str, task_id: str) -> None:
        """Note that a client was sent the model."""
        if (entry := self._entry(client_id, task_id)) is not None:
            self._note(entry, "downloaded")

    def enter(self, client_id: str, task_id: str, phase: pb.Phase) -> None:
        """Note a phase that a client says it is in. The first one after training tells that training has ended."""
        if (entry := self._entry(client_id, task_id)) is None:
            return
        if phase == pb.PHASE_TRAINING or phase in TRAINED:
            self._note_model(entry)
        if phase in TRAINED:
            self._note(entry, "trained")

    def bring(self, client_id: str, run_id: str) -> None:
        """Note that a client's upload begins: it has trained."""
        if (entry := self._pages.get(run_id, {}).get(client_id)) is not None:
            self._note_model(entry)
            self._note(entry, "trained")

    def arrive(self, client_id: str, run_id: str) -> None:
        """Note that a client's contribution has arrived whole."""
        if (entry := self._pages.get(run_id, {}).get(client_id)) is not None:
            self._note(entry, "uploaded")

    def accept(self, client_id: str, run_id: str) -> None:
        """Note that a client's contribution is in the sum."""
        if (entry := self._pages.get(run_id, {}).get(client_id)) is not None:
            entry.is_accepted, entry.reason, entry.detail = True, "", ""

    def refuse(self, client_id: str, run_id: str, reason: RefusalReason, detail: str) -> None:
        """Note that a client's contribution was refused, unless it was another round's or one is in the sum already."""
        entry = self._pages.get(run_id, {}).get(client_id)
        if entry is not None and not entry.is_accepted and reason not in OF_ANOTHER_ROUND:
            entry.reason, entry.detail = reason_name(reason), detail

    def fail(self, client_id: str, run_id: str, reason: RefusalReason, detail: str) -> None:
        """Note that a client cannot evaluate the round's new model."""
        if (entry := self._pages.get(run_id, {}).get(client_id)) is not None:
            entry.evaluation_reason, entry.evaluation_detail = reason_name(reason), detail

    def end(self, client_id: str, task_id: str) -> None:
        """Note that nothing more is waited for from a client."""
        if (entry := self._entry(client_id, task_id)) is not None:
            self._note(entry, "ended")

    def page(self, run_id: str) -> Mapping[str, Entry]:
        """Return what was noted of a run's open round, by client."""
        return self._pages.get(run_id, {})

    def moments(self, run_id: str) -> dict[str, Moments]:
        """Return the moments of a run's open round, by client."""
        return {client_id: entry.moments for client_id, entry in sorted(self.page(run_id).items())}

    def forget(self, run_id: str) -> None:
        """Forget a run's round: it is stored, or is started over."""
        self._pages.pop(run_id, None)

    def _entry(self, client_id: str, task_id: str) -> Entry | None:
        entry = self._pages.get(task_id.partition("/")[0], {}).get(client_id)
        return entry if entry is not None and entry.task_id == task_id else None

    def _note_model(self, entry: Entry) -> None:
        """Note that a client has the model: one that was sent none had it."""
        if entry.moments.downloaded is None:
            entry.moments = entry.moments.with_(downloaded=entry.moments.asked)

    def _note(self, entry: Entry, moment: str) -> None:
        if getattr(entry.moments, moment) is None:
            entry.moments = entry.moments.with_(**{moment: _now()})


def _now() -> float:
    return round(time.time(), 3)
