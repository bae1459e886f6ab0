"""What the REST API tells of a run's rounds in numbers: summaries, curves and participation."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from server.coordinator import Coordinator
from server.records import RoundSummary, RunState
from tests.hostile import joined
from tests.loopback import serving
from tests.server.api.test_curves import a_round
from tests.server.rest import problem, stored_run


@pytest.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[Coordinator]:
    async with serving(tmp_path) as coordinator:
        run = await stored_run(coordinator, "run-1", RunState.PAUSED, round_number=3)
        for number in (1, 2, 3):
            await coordinator.store.commit_round(run, a_round(number, number / 10))
        yield coordinator


async def test_summaries_come_in_pages(coordinator: Coordinator, api: httpx.AsyncClient) -> None:
    found = (await api.get("/runs/run-1/summaries")).json()
    assert [RoundSummary.model_validate(one) for one in found] == await coordinator.store.summaries("run-1")
    assert found[0]["spread"] == {"train_loss": [1.0, 3.25, 5.5, 7.75, 10.0]}
    page = (await api.get("/runs/run-1/summaries?after=1&limit=1")).json()
    assert [(one["number"], one["contributed"], one["bytes"]) for one in page] == [(2, 2, 16)]
    assert "limit" in problem(await api.get("/runs/run-1/summaries?limit=1001"), 422)


async def test_metrics_are_curves_of_the_names_asked_for(api: httpx.AsyncClient) -> None:
    found = (await api.get("/runs/run-1/metrics?names=accuracy,nothing&points=2")).json()
    assert found == {
        "rounds": [2, 3],
        "series": {
            "accuracy": {
                "mean": [pytest.approx(0.15), pytest.approx(0.3)],
                "low": [None, None],
                "high": [None, None],
            }
        },
    }
    everything = (await api.get("/runs/run-1/metrics")).json()
    assert everything["series"].keys() == {"accuracy", "train_loss"}
    assert "points" in problem(await api.get("/runs/run-1/metrics?points=0"), 422)


async def test_participation_names_clients_and_is_searched_and_comes_in_pages(
    coordinator: Coordinator, api: httpx.AsyncClient
) -> None:
    async with joined(coordinator.address) as client:
        run = await stored_run(coordinator, "run-1", RunState.PAUSED, round_number=4)
        await coordinator.store.commit_round(run, a_round(4, None).with_(selected=[client.client_id]))
        response = await api.get("/runs/run-1/participation?limit=3")
        rest = await api.get(response.links["next"]["url"].removeprefix("/api/v1"))
        # By a part of the name in any case, or by the beginning of the identity.
        name = rest.json()[0]["name"]
        for text, expected in ((name[1:].upper(), [client.client_id]), ("an", ["ana"]), ("eo", [])):
            sought = await api.get("/runs/run-1/participation", params={"search": text})
            assert [one["client_id"] for one in sought.json()] == expected
            assert sought.headers["x-total-count"] == str(len(expected))
    assert response.headers["x-total-count"] == "4"
    found = response.json() + rest.json()
    # By name; those that are not known come first, by identity.
    assert [(one["client_id"], one["asked"], one["contributed"]) for one in found] == [
        ("ana", 3, 4),
        ("ben", 3, 4),
        ("cleo", 3, 0),
        (client.client_id, 1, 0),
    ]
    assert found[3]["name"] != "" == found[0]["name"]


@pytest.mark.parametrize("path", ["summaries", "metrics", "participation"])
async def test_numbers_of_a_run_that_is_not_there_are_a_problem(api: httpx.AsyncClient, path: str) -> None:
    assert problem(await api.get(f"/runs/nope/{path}"), 404) == "Run 'nope': must be in the store, got no such run."
