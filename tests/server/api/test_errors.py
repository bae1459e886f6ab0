"""Every error of the REST API is problem details with one sentence, and leaves no trace."""

import json
import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from models import MODELS
from server.coordinator import Coordinator
from server.records import RunRecord, RunState
from tests.loopback import serving
from tests.server.rest import DOCUMENT, calling, problem, stored_run

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def coordinator(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Coordinator]:
    """One coordinator for all: what is refused leaves no trace."""
    async with serving(tmp_path_factory.mktemp("coordinator")) as coordinator:
        yield coordinator


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(coordinator: Coordinator) -> AsyncIterator[httpx.AsyncClient]:
    async with calling(coordinator) as api:
        yield api


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        pytest.param({"rounds": 0}, "Run spec: rounds must be greater than or equal to 1, got 0.", id="range"),
        pytest.param({"colour": "red"}, "Run spec: colour is not a key that exists here.", id="unknown-key"),
        pytest.param({"seed": "7"}, "Run spec: seed must be a valid integer, got '7'.", id="type"),
        pytest.param(
            {"cohort": {"size": 2, "quorum": 3}},
            "Run spec: cohort: quorum must be at most size (2), got 3.",
            id="combination",
        ),
        pytest.param(
            {"learner": {"name": "mlp", "classes": 1}},
            "Learner mlp: classes must be greater than or equal to 2, got 1.",
            id="learner",
        ),
        pytest.param(
            {"learner": {"name": "mpl"}},
            f"Learner: name must be one of {', '.join(sorted(MODELS))}, got 'mpl'.",
            id="learner-name",
        ),
        pytest.param(
            {"local": {"optimizer": {"name": "sgd", "learning_rate": "fast"}}},
            "Run spec: local.optimizer: Optimizer sgd: learning_rate must be a number, got 'fast'.",
            id="optimizer",
        ),
    ],
)
async def test_bad_spec_is_refused_with_key_rule_and_value(
    coordinator: Coordinator, api: httpx.AsyncClient, changes: dict[str, Any], sentence: str
) -> None:
    before = await coordinator.store.runs()
    assert problem(await api.post("/runs", json=DOCUMENT | changes), 422) == sentence
    assert await coordinator.store.runs() == before


async def test_problem_of_the_documentation_is_what_is_answered(api: httpx.AsyncClient) -> None:
    text = (Path(__file__).parents[3] / "docs/rest-api.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r'^    (\{"type":.*?\]\})$', text, re.M | re.S)
    response = await api.post("/runs", json=DOCUMENT | {"rounds": 0})
    assert problem(response, 422)
    assert response.json() == json.loads(shown)


@pytest.mark.parametrize(
    ("body", "status", "pattern"),
    [
        pytest.param(
            b"[1, 2]", 422, "Request: body must be a JSON object, sent as application/json, got [1, 2].", id="list"
        ),
        pytest.param(
            b'{"name": ',
            422,
            "Request: body must be JSON, got something else at character 9: Expecting value.",
            id="cut",
        ),
        pytest.param(b"", 422, "Request: body is required.", id="empty"),
        pytest.param(
            b'{"name": "a", "learner": {"name": "mlp", "name": "cnn"}}',
            422,
            "Request: body must have each key once, got 'name' twice.",
            id="twice",
        ),
        pytest.param(
            rb'{"\ud800": 1}', 422, "Run spec: must be JSON of whole Unicode characters, got something", id="half"
        ),
        pytest.param(b"{}", 422, "Run spec: name is required.\nRun spec: learner is required.", id="nothing"),
        pytest.param(b'{"name": "a", "seed": NaN}', 422, "Run spec: ", id="nan"),
        pytest.param(b'{"a":' * 5000 + b"1" + b"}" * 5000, 400, "Request: body must be JSON in UTF-8", id="deep"),
        pytest.param(b'{"a": "\xff"}', 400, "Request: body must be JSON in UTF-8", id="no-text"),
        pytest.param(b"\xff\xfe", 422, "Request: body must be JSON, got something else at", id="utf-16"),
    ],
)
async def test_body_that_is_no_spec_is_refused(
    coordinator: Coordinator, api: httpx.AsyncClient, body: bytes, status: int, pattern: str
) -> None:
    before = await coordinator.store.runs()
    response = await api.post("/runs", content=body, headers={"content-type": "application/json"})
    assert pattern in problem(response, status)
    assert await coordinator.store.runs() == before


async def test_run_that_does_not_exist_is_not_found(api: httpx.AsyncClient) -> None:
    sentence = "Run 'nope': must be in the store, got no such run."
    for path in ("/runs/nope", "/runs/nope/rounds", "/runs/nope/model"):
        assert problem(await api.get(path), 404) == sentence
    for command in ("pause", "resume", "stop"):
        assert problem(await api.post(f"/runs/nope/{command}"), 404) == sentence


async def test_spec_that_is_not_sent_as_json_is_told_how_to_be(api: httpx.AsyncClient) -> None:
    # As `curl -d @run.json` sends it.
    headers = {"content-type": "application/x-www-form-urlencoded"}
    sentence = problem(await api.post("/runs", content=b"name: a", headers=headers), 422)
    assert sentence == "Request: body must be a JSON object, sent as application/json, got b'name: a'."


@pytest.mark.parametrize(
    ("path", "field", "rule"),
    [
        ("/runs?limit=1001", "query.limit", "less than or equal to 1000, got '1001'"),
        ("/runs?offset=-1", "query.offset", "greater than or equal to 0, got '-1'"),
        ("/events?after=x", "query.after", "a valid integer, got 'x'"),
        ("/events?order=up", "query.order", "'oldest' or 'newest', got 'up'"),
        ("/clients?state=sad", "query.state", "'connected', 'busy' or 'gone', got 'sad'"),
        ("/runs/r/rounds/0", "path.number", "greater than or equal to 1, got '0'"),
    ],
)
async def test_parameter_that_breaks_a_rule_is_told_with_rule_and_value(
    api: httpx.AsyncClient, path: str, field: str, rule: str
) -> None:
    response = await api.get(path)
    message = f"{field} must be {rule}."
    assert problem(response, 422) == f"Request: {message}"
    assert response.json()["errors"] == [{"path": field, "message": message}]


async def test_path_and_method_that_do_not_exist_are_problems_too(api: httpx.AsyncClient) -> None:
    sentence = problem(await api.get("/nothing"), 404)
    assert sentence == "Request: path must be one that /openapi.json lists, got '/api/v1/nothing'."
    for path, methods in (
        ("/runs", ["GET", "HEAD", "POST"]),
        ("/runs/r1", ["GET", "HEAD"]),
        ("/runs/r1/pause", ["POST"]),
    ):
        response = await api.delete(path)
        sentence = f"Request: method of '/api/v1{path}' must be {' or '.join(methods)}, got 'DELETE'."
        assert problem(response, 405) == sentence
        assert response.headers["allow"] == ", ".join(methods)


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("pause", "Run r1: state must be queued or running to be paused, got finished."),
        ("resume", "Run r1: state must be paused to be resumed, got finished."),
        ("stop", "Run r1: state must be queued or running or paused to be stopped, got finished."),
    ],
)
async def test_command_that_the_state_does_not_allow_is_a_conflict(
    coordinator: Coordinator, api: httpx.AsyncClient, command: str, sentence: str
) -> None:
    run = await stored_run(coordinator, "r1", RunState.FINISHED)
    assert problem(await api.post(f"/runs/r1/{command}"), 409) == sentence
    assert await coordinator.store.run("r1") == run


async def test_store_that_fails_is_unavailable(tmp_path: Path) -> None:
    async with serving(tmp_path) as coordinator, calling(coordinator) as api:
        await stored_run(coordinator, "r1", RunState.PAUSED)
        with closing(sqlite3.connect(tmp_path / "choral.sqlite")) as other, other:
            other.execute("DROP TABLE rounds")
        sentence = problem(await api.get("/runs/r1/rounds"), 503)
    assert "must be a SQLite database that can be read and written" in sentence


async def test_unexpected_error_is_a_problem_and_tells_nothing(
    coordinator: Coordinator, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(run_id: str) -> RunRecord:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(coordinator.runs, "stop", fail)
    sentence = problem(await api.post("/runs/r1/stop"), 500)
    assert sentence == "Unexpected ZeroDivisionError. The server's log has the details."
    assert (await api.get("/health")).json()["status"] == "ok"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.evil.example", "", "[", "192.0.2.1:8080", "localhost.evil.example"]
)
async def test_request_for_another_name_than_this_machine_is_refused(
    coordinator: Coordinator, api: httpx.AsyncClient, host: str
) -> None:
    before = await coordinator.store.runs()
    for path in ("/runs", "/health", "/nothing"):
        sentence = problem(await api.get(path, headers={"host": host}), 400)
        assert sentence == (
            f"Host header: must be localhost or a loopback address as long as no token is asked for, got {host!r}."
        )
    assert problem(await api.post("/runs", json=DOCUMENT, headers={"host": host}), 400)
    assert await coordinator.store.runs() == before


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8080", "127.0.0.1", "127.0.0.2:80", "[::1]", "[::1]:8080"])
async def test_request_for_this_machine_is_answered(api: httpx.AsyncClient, host: str) -> None:
    assert (await api.get("/runs", headers={"host": host})).status_code == 200
