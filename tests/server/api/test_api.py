"""The REST API over real HTTP: runs from submission to model, who may ask, and what there is to see."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load, save

from server.checkpoints import checkpoint_path
from server.coordinator import Coordinator
from server.records import RoundRecord, RoundState, RunState
from tests.hostile import joined
from tests.loopback import WAIT_SECONDS, run_in_state, serving, until
from tests.server.cohorts import when
from tests.server.rest import DOCUMENT, problem, stored_run
from wire.spec import RunSpec


@pytest.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[Coordinator]:
    async with serving(tmp_path) as coordinator:
        yield coordinator


async def test_submitted_run_is_shown_and_says_what_it_waits_for(
    coordinator: Coordinator, api: httpx.AsyncClient
) -> None:
    response = await api.post("/runs", json=DOCUMENT)
    assert response.status_code == 201
    run_id = response.json()["run_id"]

    async def waiting() -> dict[str, Any] | None:
        run: dict[str, Any] = (await api.get(f"/runs/{run_id}")).raise_for_status().json()
        return run if "waiting" in run["status"] else None

    run = await until(waiting, "the run to wait for clients")
    assert run["status"] in {f"round 1: select: waiting for 3 of 3 clients, {seconds} s left" for seconds in (41, 40)}
    async with joined(coordinator.address):
        run = await until(waiting, "the run to wait for clients")
        assert run["status"].startswith("round 1: select: waiting for 2 of 3 clients, ")
    assert (run["state"], run["round_number"], run["reason"]) == ("running", 0, "")
    assert RunSpec.model_validate(run["spec"]).learner.name == "mlp"
    listed = (await api.get("/runs")).json()
    assert [entry["run_id"] for entry in listed] == [run_id]
    assert listed[0]["spec"] == run["spec"]


@pytest.mark.parametrize("path", ["/spec/schema", "/runs", "/runs/r1", "/runs/nope", "/runs/r1/pause"])
async def test_head_is_answered_as_get_without_a_body(
    coordinator: Coordinator, api: httpx.AsyncClient, path: str
) -> None:
    await stored_run(coordinator, "r1", RunState.FINISHED)
    get, head = await api.get(path), await api.head(path)
    assert (head.status_code, head.content, bool(get.content)) == (get.status_code, b"", True)
    assert dict(head.headers) | {"date": ""} == dict(get.headers) | {"date": ""}


async def test_head_of_events_ends_although_they_do_not(coordinator: Coordinator, api: httpx.AsyncClient) -> None:
    # Twice on one connection, which is as usable after the first.
    for _ in range(2):
        head = await api.head("/events/stream", timeout=WAIT_SECONDS)
        assert (head.status_code, head.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")


async def test_runs_are_listed_in_the_order_of_their_submission(
    coordinator: Coordinator, api: httpx.AsyncClient
) -> None:
    for run_id in ("zoe", "ana", "ben"):
        await stored_run(coordinator, run_id, RunState.FINISHED)
    assert [run["run_id"] for run in (await api.get("/runs")).json()] == ["ben", "ana", "zoe"]
    assert [run["run_id"] for run in (await api.get("/runs?order=oldest")).json()] == ["zoe", "ana", "ben"]


async def test_run_is_paused_resumed_and_stopped(coordinator: Coordinator, api: httpx.AsyncClient) -> None:
    run_id = (await api.post("/runs", json=DOCUMENT)).json()["run_id"]
    await run_in_state(coordinator, run_id, RunState.RUNNING)
    paused = await api.post(f"/runs/{run_id}/pause")
    assert paused.status_code == 200
    assert paused.json()["state"] == "paused"
    assert paused.json()["status"] == "paused: Paused by the operator."
    resumed = (await api.post(f"/runs/{run_id}/resume")).json()
    assert (resumed["state"], resumed["reason"]) == ("queued", "")
    await run_in_state(coordinator, run_id, RunState.RUNNING)
    stopped = (await api.post(f"/runs/{run_id}/stop")).json()
    assert stopped["status"] == "stopped: Stopped by the operator."
    assert (await coordinator.store.run(run_id)).state is RunState.STOPPED


async def test_rounds_come_in_pages_with_all_they_have(coordinator: Coordinator, api: httpx.AsyncClient) -> None:
    run = await stored_run(coordinator, "r1", RunState.PAUSED, round_number=4)
    for number in range(1, 5):
        record = RoundRecord(
            run_id="r1", number=number, state=RoundState.COMMITTED, metrics={"refused_not_finite": 2.0}
        )
        await coordinator.store.commit_round(run, record)

    async def numbers(**query: int) -> list[int]:
        return [record["number"] for record in (await api.get("/runs/r1/rounds", params=query)).json()]

    assert await numbers() == [1, 2, 3, 4]
    assert await numbers(after=1, limit=2) == [2, 3]
    assert await numbers(after=4) == []
    first = (await api.get("/runs/r1/rounds")).json()[0]
    assert RoundRecord.model_validate(first) == await coordinator.store.round("r1", 1)
    assert "limit" in problem(await api.get("/runs/r1/rounds", params={"limit": 0}), 422)
    assert "after" in problem(await api.get("/runs/r1/rounds", params={"after": -1}), 422)


async def test_model_is_the_file_of_the_last_committed_round(
    coordinator: Coordinator, api: httpx.AsyncClient, tmp_path: Path
) -> None:
    await stored_run(coordinator, "r1", RunState.PAUSED, round_number=2)
    sentence = problem(await api.get("/runs/r1/model"), 503)
    assert sentence.endswith("round-0000002.safetensors: must be a file, got none. Restore it from a backup.")
    path = checkpoint_path(tmp_path / "runs" / "r1", 2)
    path.parent.mkdir(parents=True)
    path.write_bytes(content := save({"bias": torch.tensor([1.0, 2.0])}))
    response = await api.get("/runs/r1/model")
    assert response.content == content
    assert response.headers["content-disposition"] == 'attachment; filename="tiny-2.safetensors"'
    assert load(response.content)["bias"].tolist() == [1.0, 2.0]
    await stored_run(coordinator, "r2", RunState.QUEUED)
    assert problem(await api.get("/runs/r2/model"), 409) == (
        "Run r2: at least one round must be committed before it has a model, got none."
    )


# What else there is to see.


async def test_clients_show_what_joined_and_what_it_does(coordinator: Coordinator, api: httpx.AsyncClient) -> None:
    assert (await api.get("/clients")).json() == []
    async with joined(coordinator.address, name="north") as session:
        (client,) = (await api.get("/clients")).json()
        assert (client["client_id"], client["name"], client["device"]) == (session.client_id, "north", "cpu")
        assert (client["example_count"], client["held_out_count"], client["is_connected"]) == (10, 2, True)
        assert (client["task_id"], client["phase"], client["fraction"]) == ("", "", 0.0)

    async def left() -> bool:
        (client,) = (await api.get("/clients")).json()
        return not client["is_connected"]

    await until(left, "the client to have left")


async def test_health_counts_clients_and_measures(coordinator: Coordinator, api: httpx.AsyncClient) -> None:
    async with joined(coordinator.address), joined(coordinator.address):
        # A client counts once its welcome is on its way, which it may have read before.
        await when(lambda: sum(member.is_present for member in coordinator.sessions.members()) == 2, "two clients")
        health = (await api.get("/health")).json()
    assert (health["status"], health["client_count"], health["protocol_version"]) == ("ok", 2, 1)
    assert 0 < health["uptime_seconds"] < WAIT_SECONDS
    assert 0 <= health["longest_stall_seconds"] < WAIT_SECONDS
    assert health["peak_rss_bytes"] >= health["rss_bytes"] / 2 > 1 << 20


async def test_openapi_describes_every_route_with_its_errors(coordinator: Coordinator) -> None:
    async with httpx.AsyncClient(base_url=f"http://{coordinator.http_address}") as api:
        document = (await api.get("/openapi.json")).json()
    routes = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    prefix = "/api/v1"
    assert routes == {
        ("GET", f"{prefix}/health"),
        ("POST", f"{prefix}/runs"),
        ("POST", f"{prefix}/runs/validate"),
        ("POST", f"{prefix}/runs/{{run_id}}/clone"),
        ("GET", f"{prefix}/runs/{{run_id}}/rounds/{{number}}"),
        ("GET", f"{prefix}/runs/{{run_id}}/rounds/{{number}}/timeline"),
        ("GET", f"{prefix}/runs/{{run_id}}/summaries"),
        ("GET", f"{prefix}/runs/{{run_id}}/metrics"),
        ("GET", f"{prefix}/runs/{{run_id}}/participation"),
        ("GET", f"{prefix}/runs/{{run_id}}/card"),
        ("GET", f"{prefix}/learners"),
        ("GET", f"{prefix}/learners/{{name}}"),
        ("GET", f"{prefix}/clients/{{client_id}}"),
        ("GET", f"{prefix}/events"),
        ("GET", f"{prefix}/events/stream"),
        ("GET", f"{prefix}/runs"),
        ("GET", f"{prefix}/runs/{{run_id}}"),
        ("GET", f"{prefix}/runs/{{run_id}}/rounds"),
        ("GET", f"{prefix}/runs/{{run_id}}/model"),
        ("POST", f"{prefix}/runs/{{run_id}}/pause"),
        ("POST", f"{prefix}/runs/{{run_id}}/resume"),
        ("POST", f"{prefix}/runs/{{run_id}}/stop"),
        ("GET", f"{prefix}/spec/schema"),
        ("GET", f"{prefix}/clients"),
        ("GET", f"{prefix}/me"),
        ("GET", "/metrics"),
    }
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert operation["summary"]
            if "/runs" in path or "/clients" in path:
                assert {"401", "403", "404", "409", "413", "422", "429", "503"} <= set(operation["responses"])


async def test_schema_is_that_of_a_run_spec(api: httpx.AsyncClient) -> None:
    assert (await api.get("/spec/schema")).json() == RunSpec.model_json_schema()
