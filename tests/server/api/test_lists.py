"""Lists of the REST API, however long: they are written off the event loop, and in pieces that make one list."""

import asyncio
import json
import math
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from server.api.clients import ClientView
from server.api.lists import name_order
from server.api.rounds import PIECE_ROUNDS
from server.api.runs import RunView
from server.coordinator import Coordinator
from server.records import ContributionRecord, RoundRecord, RoundState, RunState
from tests.hostile import joined
from tests.loopback import WAIT_SECONDS, serving
from tests.server.rest import stored_run

ROUND_COUNT = 2 * PIECE_ROUNDS + 3


@pytest.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[Coordinator]:
    async with serving(tmp_path) as coordinator:
        run = await stored_run(coordinator, "r1", RunState.PAUSED)
        for number in range(1, ROUND_COUNT + 1):
            part = ContributionRecord(
                client_id="ana",
                weight=number,
                example_count=9,
                byte_count=12,
                train_seconds=0.5,
                metrics={"loss": 0.25},
            )
            record = RoundRecord(run_id="r1", number=number, state=RoundState.COMMITTED, contributions=[part])
            await coordinator.store.commit_round(run, record)
        yield coordinator


@pytest.mark.parametrize(
    ("path", "kind", "count"),
    [("/runs/r1/rounds", RoundRecord, ROUND_COUNT), ("/runs", RunView, 1), ("/clients", ClientView, 2)],
)
async def test_event_loop_answers_others_while_a_list_is_written(
    coordinator: Coordinator,
    api: httpx.AsyncClient,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    kind: type[BaseModel],
    count: int,
) -> None:
    is_writing, others_answered = threading.Event(), threading.Event()
    written_as_json = kind.model_dump_json

    def held_up(record: BaseModel, **options: Any) -> str:
        is_writing.set()
        assert others_answered.wait(WAIT_SECONDS / 4), "the event loop waits for the list"
        return written_as_json(record, **options)

    monkeypatch.setattr(kind, "model_dump_json", held_up)
    async with joined(coordinator.address), joined(coordinator.address):
        listing = asyncio.create_task(api.get(path))
        assert await asyncio.to_thread(is_writing.wait, WAIT_SECONDS)
        assert (await api.get("/health")).status_code == 200
        others_answered.set()
        response = await listing
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert len(response.json()) == count


@pytest.mark.parametrize(
    ("after", "limit"),
    [
        (0, 1000),
        (0, 1),
        (0, PIECE_ROUNDS),
        (0, PIECE_ROUNDS + 1),
        (1, 2 * PIECE_ROUNDS),
        (ROUND_COUNT - PIECE_ROUNDS, 1000),
        (ROUND_COUNT, 5),
    ],
)
async def test_rounds_in_pieces_are_one_list(
    coordinator: Coordinator, api: httpx.AsyncClient, after: int, limit: int
) -> None:
    listed = (await api.get("/runs/r1/rounds", params={"after": after, "limit": limit})).json()
    expected = await coordinator.store.rounds("r1", after, limit)
    assert [RoundRecord.model_validate(entry) for entry in listed] == expected
    assert [entry["number"] for entry in listed] == list(range(after + 1, min(ROUND_COUNT, after + limit) + 1))


async def test_openapi_names_what_lists_hold(coordinator: Coordinator) -> None:
    async with httpx.AsyncClient(base_url=f"http://{coordinator.http_address}") as api:
        paths = (await api.get("/openapi.json")).json()["paths"]
    for path, name in (("/runs", "RunView"), ("/runs/{run_id}/rounds", "RoundRecord"), ("/clients", "ClientView")):
        content = paths[f"/api/v1{path}"]["get"]["responses"]["200"]["content"]
        assert content["application/json"]["schema"]["items"] == {"$ref": f"#/components/schemas/{name}"}


async def test_number_that_json_does_not_have_is_null(coordinator: Coordinator, api: httpx.AsyncClient) -> None:
    odd = RoundRecord(
        run_id="r1", number=ROUND_COUNT + 1, state=RoundState.OPEN, metrics={"loss": math.nan, "rate": -math.inf}
    )
    await coordinator.store.put_round(odd)
    text = (await api.get(f"/runs/r1/rounds?after={ROUND_COUNT}")).text
    # Python's own reader would take NaN for a number.
    (found,) = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert found["metrics"] == {"loss": None, "rate": None}
    assert found["number"] == odd.number


def test_names_are_in_the_order_in_which_people_read_them() -> None:
    names = ["site-10", "Site-2", "9 lakes", "site-2", "", "lakes 9", "site"]
    ordered = sorted(names, key=lambda name: name_order(name, f"identity of {name}"))
    assert ordered == ["", "9 lakes", "lakes 9", "site", "Site-2", "site-2", "site-10"]
