"""Routes of clients."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from server.api.history import latest_rounds
from server.api.lists import as_json, listed, name_order
from server.api.pages import PAGED, OfPage
from server.api.sources import Sources
from server.cohort import Kind
from server.errors import NotFoundError
from server.monitoring.now import ClientNow
from server.records import ClientRecord, ContributionRecord, Participation, RefusalRecord, RoundRecord

MOST_REFUSALS = 50
"""Refused tasks of one client that are shown."""


class ClientState(StrEnum):
    """Where a client stands."""

    CONNECTED = "connected"
    """It has a session, and perhaps a task."""
    BUSY = "busy"
    """It has a task."""
    GONE = "gone"
    """It has no session."""


class ClientView(ClientRecord):
    """A client and what it is doing now."""

    task_id: str = ""
    phase: str = ""
    """Phase of its task, such as "training"; "asked" until it has told of one; empty when idle."""
    fraction: float = 0.0
    """Done part of that phase, 0 to 1."""


class ClientContribution(ContributionRecord):
    """A contribution, and where it went."""

    run_id: str
    round_number: int


class ClientRefusal(RefusalRecord):
    """A contribution that did not enter a sum, or an evaluation that there is not, and where it is missing."""

    kind: Kind = "train"
    run_id: str
    round_number: int


class ClientDetail(ClientView):
    """A client, what it is doing now, and how it fared of late."""

    runs: list[Participation]
    """What it has done in each run, newest first."""
    contributions: list[ClientContribution]
    """Of the last rounds that asked it, newest first."""
    refusals: list[ClientRefusal]
    """Of the same rounds, newest first."""


@dataclass(frozen=True, slots=True)
class ClientFilter:
    """Which clients are asked for."""

    state: ClientState | None
    text: str
    """Of a name, or the beginning of an identity; in lower case."""

    def takes(self, client: ClientRecord, now: ClientNow) -> bool:
        """Tell whether a client is asked for."""
        if self.text not in client.name.lower() and not client.client_id.startswith(self.text):
            return False
        match self.state:
            case None:
                return True
            case ClientState.BUSY:
                return bool(now.phase)
            case ClientState.CONNECTED:
                return client.is_connected
            case ClientState.GONE:
                return not client.is_connected


async def _client_filter(
    state: Annotated[ClientState | None, Query(description="Where they stand; default: anywhere.")] = None,
    search: Annotated[str, Query(description="Part of a name, or the beginning of an identity.")] = "",
) -> ClientFilter:
    return ClientFilter(state, search.lower())


def client_routes(sources: Sources) -> APIRouter:
    """Return the routes of clients."""
    router = APIRouter(tags=["clients"])

    @router.get(
        "/clients",
        summary="List the clients that ever joined, by name",
        response_model=list[ClientView],
        responses=PAGED,
    )
    async def clients(
        request: Request, page: OfPage, wanted: Annotated[ClientFilter, Depends(_client_filter)]
    ) -> Response:
        doing = (await sources.desk.now()).clients
        pairs = [(client, doing.get(client.client_id, ClientNow())) for client in await sources.desk.clients()]
        found = [pair for pair in pairs if wanted.takes(*pair)]
        found.sort(key=lambda pair: name_order(pair[0].name, pair[0].client_id))
        response = await listed(ClientView(**_seen(client), **dict(now)) for client, now in page.of(found))
        return page.mark(response, request, len(found))

    @router.get("/clients/{client_id}", summary="Show a client and how it fared of late", response_model=ClientDetail)
    async def show(client_id: str) -> Response:
        known = {client.client_id: client for client in await sources.desk.clients()}
        if (client := known.get(client_id)) is None:
            raise NotFoundError(f"Client {client_id!r}: must have joined once, got no such client.")
        now = (await sources.desk.now()).clients.get(client_id, ClientNow())
        runs = (await sources.store.participations_of(client_id))[::-1]
        rounds = await latest_rounds(sources.store, runs)
        contributions, refusals = _lately(client_id, rounds)
        detail = ClientDetail(
            **_seen(client), **dict(now), runs=list(runs), contributions=contributions, refusals=refusals
        )
        return Response(as_json(detail), media_type="application/json")

    return router


def _seen(client: ClientRecord) -> dict[str, Any]:
    """Return the fields of a client. It is stored when it joins and when it leaves, and one that is here is seen now."""
    return dict(client.with_(last_seen_time=time.time()) if client.is_connected else client)


def _lately(client_id: str, rounds: Sequence[RoundRecord]) -> tuple[list[ClientContribution], list[ClientRefusal]]:
    contributions, refusals = [], []
    for record in rounds:
        place = {"run_id": record.run_id, "round_number": record.number}
        contributions += [
            ClientContribution(**dict(part), **place) for part in record.contributions if part.client_id == client_id
        ]
        kinds: list[tuple[Kind, list[RefusalRecord]]] = [
            ("evaluate", record.evaluation_failures),
            ("train", record.refusals),
        ]
        refusals += [
            ClientRefusal(**dict(refusal), **place, kind=kind)
            for kind, found in kinds
            for refusal in found
            if refusal.client_id == client_id
        ]
    return contributions, refusals[:MOST_REFUSALS]
