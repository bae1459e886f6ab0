"""Clients, learners and model cards over the REST API."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from models import MODELS
from models.catalogue import about_learner
from server.api.history import LATEST_ROUNDS
from server.coordinator import Coordinator
from server.records import RefusalRecord, RunState
from tests.hostile import joined
from tests.loopback import absent, everyone, serving, small_spec
from tests.server.api.test_curves import a_round
from tests.server.rest import problem, stored_run
from wire.spec import RunSpec, validate_spec


@pytest.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[Coordinator]:
    async with serving(tmp_path) as coordinator:
        yield coordinator


async def test_clients_are_found_by_state_name_and_identity_in_pages(
    coordinator: Coordinator, api: httpx.AsyncClient
) -> None:
    async def names(**query: str | int) -> list[str]:
        response = await api.get("/clients", params=query)
        assert response.headers["x-total-count"] == str(len(response.json())) or "limit" in query
        return sorted(client["name"] for client in response.json())

    async with everyone([joined(coordinator.address, name=name) for name in ("North", "south")]) as (north, south):
        async with joined(coordinator.address, name="gone") as gone:
            pass
        await absent(coordinator, gone.client_id)
        assert await names(state="busy") == []
        await coordinator.runs.submit(small_spec(cohort={"size": 2}))
        await north.task()
        assert await names() == ["North", "gone", "south"]
        assert await names(state="connected") == await names(state="busy") == ["North", "south"]
        assert await names(state="gone") == ["gone"]
        assert await names(search="nor") == await names(search=north.client_id[:20]) == ["North"]
        assert await names(search="gone", state="connected") == []
        first = await api.get("/clients?limit=2")
        assert first.headers["x-total-count"] == "3"
        rest = await api.get(first.links["next"]["url"].removeprefix("/api/v1"))
        found = [client["client_id"] for client in first.json() + rest.json()]
        assert found == [gone.client_id, north.client_id, south.client_id]
    assert "state" in problem(await api.get("/clients?state=here"), 422)


async def test_client_that_is_here_is_seen_now_and_one_that_left_when_it_did(
    coordinator: Coordinator, api: httpx.AsyncClient
) -> None:
    async def shown(client_id: str) -> list[float]:
        (listed,) = (await api.get("/clients", params={"search": client_id})).json()
        alone = (await api.get(f"/clients/{client_id}")).json()
        assert listed["is_connected"] == alone["is_connected"]
        return [listed["last_seen_time"], alone["last_seen_time"]]

    before = time.time()
    async with joined(coordinator.address) as session:
        first, second = await shown(session.client_id)
        assert before < first < second < time.time()
    await absent(coordinator, session.client_id)
    ended = time.time()
    first, second = await shown(session.client_id)
    assert first == second < ended


async def test_client_is_shown_with_how_it_fared_of_late(coordinator: Coordinator, api: httpx.AsyncClient) -> None:
    async with joined(coordinator.address) as session:
        me = session.client_id
        run = await stored_run(coordinator, "run-1", RunState.PAUSED, round_number=40)
        refusal = RefusalRecord(client_id=me, reason="not_finite", detail="coordinate 3")
        for number in range(1, 41):
            record = a_round(number, None)
            mine = record.contributions[0].with_(client_id=me)
            changes = {"refusals": [refusal]} if number == 38 else {"contributions": [mine, *record.contributions]}
            # It was not asked any more at the end.
            selected = [me] if number < 40 else []
            await coordinator.store.commit_round(run, record.with_(selected=selected, **changes))
        found = (await api.get(f"/clients/{me}")).raise_for_status().json()
    assert (found["name"], found["is_connected"], found["phase"]) == ("hostile", True, "")
    (tally,) = found["runs"]
    assert (tally["asked"], tally["contributed"], tally["refused"]) == (39, 39, {"not_finite": 1})
    numbers = [one["round_number"] for one in found["contributions"]]
    assert numbers == [number for number in range(39, 39 - LATEST_ROUNDS, -1) if number != 38]
    assert found["contributions"][0] == {
        "run_id": "run-1",
        "round_number": 39,
        "client_id": me,
        "weight": 1,
        "example_count": 1,
        "byte_count": 8,
        "train_seconds": 0.5,
        "metrics": {"loss": 39.0},
    }
    expected = {"run_id": "run-1", "round_number": 38, "client_id": me, "kind": "train", "reason": "not_finite"}
    assert found["refusals"] == [expected | {"detail": "coordinate 3"}]


async def test_client_that_never_joined_is_a_problem(api: httpx.AsyncClient) -> None:
    assert problem(await api.get("/clients/ana"), 404) == "Client 'ana': must have joined once, got no such client."


async def test_learners_are_those_of_the_zoo(api: httpx.AsyncClient) -> None:
    found = (await api.get("/learners")).json()
    assert [learner["name"] for learner in found] == list(MODELS)
    cnn = next(learner for learner in found if learner["name"] == "cnn")
    assert cnn["parameter_count"] == about_learner("cnn", MODELS["cnn"]).parameter_count > 1000
    assert cnn["parameters"]["classes"]["type"] == "integer, at least 2"
    shown = (await api.get("/learners/cnn")).json()
    assert {key: shown[key] for key in cnn} == cnn
    assert shown["parameters_schema"] == MODELS["cnn"].parameters.model_json_schema()
    assert validate_spec(shown["example"]).learner.name == "cnn"
    assert shown["command"].startswith("choral simulate models/specs/cnn.yaml ")
    assert shown["explanation"] == MODELS["cnn"].explanation
    assert problem(await api.get("/learners/mpl"), 404).endswith(", got 'mpl'.")


async def test_card_tells_what_a_model_was_made_from(coordinator: Coordinator, api: httpx.AsyncClient) -> None:
    async with joined(coordinator.address, name="north") as session:
        run = await stored_run(
            coordinator,
            "run-1",
            RunState.FINISHED,
            round_number=1,
            model_sha256="ab" * 32,
            code_version="0.0.9",
            metrics={"accuracy": 0.5},
        )
        record = a_round(1, 0.5)
        mine = record.contributions[0].with_(client_id=session.client_id)
        await coordinator.store.commit_round(run, record.with_(contributions=[mine]))
        card = (await api.get("/runs/run-1/card")).raise_for_status().json()
    # Who was asked and brought nothing is not in it.
    site = {"client_id": session.client_id, "name": "north", "data_kind": "digits", "example_count": 10, "rounds": 1}
    assert card["sites"] == [site]
    assert RunSpec.model_validate(card["spec"]) == run.spec
    assert card["privacy"] == run.spec.privacy.model_dump(mode="json")
    assert (card["rounds"], card["metrics"]) == (1, {"accuracy": 0.5})
    assert (card["model_sha256"], card["code_version"]) == ("ab" * 32, "0.0.9")
    await stored_run(coordinator, "run-2", RunState.QUEUED)
    assert problem(await api.get("/runs/run-2/card"), 409) == (
        "Run run-2: at least one round must be committed before its model has a card, got none."
    )
