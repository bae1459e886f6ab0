"""Route of a round, client by client: who did what when, and how it ended."""

from collections.abc import Mapping
from typing import Literal

from fastapi import APIRouter, Response

from server.api.lists import listed
from server.api.rounds import Number
from server.api.sources import Sources
from server.monitoring.diary import Entry
from server.records import Moments, RoundRecord, RoundState
from server.tallies import takers

Outcome = Literal["accepted", "refused", "lost", "pending"]


class TimelineRow(Moments):
    """What one client did in a round, and when."""

    client_id: str
    name: str
    """Empty where it is not known."""
    outcome: Outcome
    """ "lost": it neither contributed nor was refused, and is waited for no longer."""
    reason: str = ""
    """Why its contribution was refused, such as "not_finite"."""
    detail: str = ""
    evaluation_reason: str = ""
    """Why it did not evaluate the round's new model, such as "client_error"; empty where it did, or was not asked."""
    evaluation_detail: str = ""


def timeline_routes(sources: Sources) -> APIRouter:
    """Return the route of a round's timeline."""
    router = APIRouter(tags=["rounds"])

    @router.get(
        "/runs/{run_id}/rounds/{number}/timeline",
        summary="Show when each client of a round did what",
        response_model=list[TimelineRow],
    )
    async def timeline(run_id: str, number: Number) -> Response:
        """Show when each client of a round, committed or open, was asked, had the model, had trained, had delivered, and was done."""
        record = await sources.store.round(run_id, number)
        names = await sources.names()
        if record.state is RoundState.OPEN:
            return await listed(_of_open(record, await sources.desk.diary(run_id), names))
        return await listed(_of_committed(record, names))

    return router


def _of_committed(record: RoundRecord, names: Mapping[str, str]) -> list[TimelineRow]:
    accepted = {part.client_id for part in record.contributions}
    refusals = {refusal.client_id: refusal for refusal in record.refusals}
    failures = {failure.client_id: failure for failure in record.evaluation_failures}
    rows = []
    for client_id in takers(record):
        fields = {
            **dict(record.moments.get(client_id, Moments())),
            "client_id": client_id,
            "name": names.get(client_id, ""),
        }
        if (failure := failures.get(client_id)) is not None:
            fields |= {"evaluation_reason": failure.reason, "evaluation_detail": failure.detail}
        if client_id in accepted:
            rows.append(TimelineRow(**fields, outcome="accepted"))
        elif (refusal := refusals.get(client_id)) is not None:
            rows.append(TimelineRow(**fields, outcome="refused", reason=refusal.reason, detail=refusal.detail))
        else:
            rows.append(TimelineRow(**fields, outcome="lost"))
    return rows


def _of_open(record: RoundRecord, page: Mapping[str, Entry], names: Mapping[str, str]) -> list[TimelineRow]:
    refused = {one.client_id: Entry("", reason=one.reason, detail=one.detail) for one in record.refusals}
    rows = []
    # Where nobody is asked, as in a run that stands still, it is told whom the attempts so far have refused.
    for client_id in sorted({*record.selected, *page}) or takers(record):
        entry = page.get(client_id, refused.get(client_id, Entry("")))
        rows.append(
            TimelineRow(
                **dict(entry.moments),
                client_id=client_id,
                name=names.get(client_id, ""),
                outcome=_outcome(entry),
                reason=entry.reason,
                detail=entry.detail,
                evaluation_reason=entry.evaluation_reason,
                evaluation_detail=entry.evaluation_detail,
            )
        )
    return rows


def _outcome(entry: Entry) -> Outcome:
    if entry.is_accepted:
        return "accepted"
    if entry.reason:
        return "refused"
    return "pending" if entry.moments.ended is None else "lost"
