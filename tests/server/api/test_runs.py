"""Runs over real HTTP: found in a list, checked without being run, submitted again with changes."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from server.api.runs import merged
from server.coordinator import Coordinator
from server.records import RoundRecord, RoundState, RunRecord, RunState
from tests.loopback import serving
from tests.server.cohorts import spec
from tests.server.rest import DOCUMENT, calling, problem
from wire.spec import Named

pytestmark = pytest.mark.asyncio(loop_scope="module")

RUNS = [
    ("0a1", "north-cnn", "cnn", RunState.FINISHED),
    ("0b2", "South-mlp", "mlp", RunState.PAUSED),
    ("0c3", "north-mlp", "mlp", RunState.FINISHED),
    ("1d4", "east", "gpt", RunState.FAILED),
    ("north", "west", "mlp", RunState.STOPPED),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def coordinator(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Coordinator]:
    async with serving(tmp_path_factory.mktemp("coordinator")) as coordinator:
        for number, (run_id, name, learner, state) in enumerate(RUNS):
            named = spec().model_copy(update={"name": name, "learner": Named(name=learner)})
            run = RunRecord(run_id=run_id, spec=named, state=state, submitted_time=number, metrics={"accuracy": 0.5})
            await coordinator.store.put_run(run)
        yield coordinator


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(coordinator: Coordinator) -> AsyncIterator[httpx.AsyncClient]:
    async with calling(coordinator) as api:
        yield api


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", "north 1d4 0c3 0b2 0a1"),
        ("order=oldest", "0a1 0b2 0c3 1d4 north"),
        ("state=finished", "0c3 0a1"),
        ("state=finished&state=failed", "1d4 0c3 0a1"),
        ("learner=mlp", "north 0c3 0b2"),
        ("search=NORTH", "north 0c3 0a1"),
        ("search=0", "0c3 0b2 0a1"),
        ("search=orth&state=finished&learner=mlp", "0c3"),
        ("search=nobody", ""),
    ],
)
async def test_list_has_what_is_asked_for(api: httpx.AsyncClient, query: str, found: str) -> None:
    response = await api.get(f"/runs?{query}")
    assert [run["run_id"] for run in response.json()] == found.split()
    assert response.headers["x-total-count"] == str(len(found.split()))
    assert "link" not in response.headers


async def test_list_in_pages_is_followed_by_its_links(api: httpx.AsyncClient) -> None:
    seen, path = [], "/api/v1/runs?limit=2&order=oldest&state=finished&state=paused&state=failed"
    while path:
        response = await api.get(f"http://{api.base_url.netloc.decode()}{path}")
        assert response.headers["x-total-count"] == "4"
        seen.append([run["run_id"] for run in response.json()])
        path = response.links.get("next", {}).get("url", "")
    assert seen == [["0a1", "0b2"], ["0c3", "1d4"]]
    beyond = await api.get("/runs?offset=9")
    assert (beyond.json(), beyond.headers["x-total-count"]) == ([], "5")


async def test_view_has_last_metrics_and_no_wait(api: httpx.AsyncClient) -> None:
    run = (await api.get("/runs/0a1")).json()
    assert (run["metrics"], run["waiting"], run["status"]) == ({"accuracy": 0.5}, None, "finished")


@pytest.mark.parametrize(
    "query", ["state=sleeping", "order=best", "limit=0", "limit=1001", "offset=-1", "offset=99999999999999999999"]
)
async def test_query_that_breaks_a_rule_names_itself(api: httpx.AsyncClient, query: str) -> None:
    assert query.partition("=")[0] in problem(await api.get(f"/runs?{query}"), 422)


async def test_sound_spec_is_valid_and_starts_nothing(coordinator: Coordinator, api: httpx.AsyncClient) -> None:
    before = await coordinator.store.runs()
    response = await api.post("/runs/validate", json=DOCUMENT)
    assert (response.status_code, response.json()) == (200, {"valid": True})
    assert await coordinator.store.runs() == before


@pytest.mark.parametrize(
    ("changes", "errors"),
    [
        pytest.param(
            {"rounds": 0, "cohort": {"size": 0}, "colour": "red"},
            {
                "rounds": "rounds must be greater than or equal to 1, got 0.",
                "cohort.size": "cohort.size must be greater than or equal to 1, got 0.",
                "colour": "colour is not a key that exists here.",
            },
            id="several",
        ),
        pytest.param(
            {"cohort": {"size": 2, "quorum": 3}},
            {"cohort": "cohort: quorum must be at most size (2), got 3."},
            id="part",
        ),
        pytest.param(
            {"learner": {"name": "mlp", "classes": 1}},
            {"learner.classes": "classes must be greater than or equal to 2, got 1."},
            id="learner",
        ),
        pytest.param({"learner": {"name": "mpl"}}, {"learner.name": "Learner: name must be one of "}, id="name"),
        pytest.param(
            {"local": {"optimizer": {"name": "sgd", "learning_rate": "fast"}}},
            {
                "local.optimizer": "Run spec: local.optimizer: Optimizer sgd: learning_rate must be a number, got 'fast'."
            },
            id="optimizer",
        ),
        pytest.param(
            {
                "privacy": {"secure_aggregation": {"corrupt_fraction": 0.1, "dropout_fraction": 0.1}},
                "stop_when": {"metric": "odd", "at_most": 1.0},
            },
            {"stop_when.metric": "Run spec: stop_when.metric must be one of "},
            id="masking",
        ),
    ],
)
async def test_unsound_spec_is_refused_field_by_field(
    coordinator: Coordinator, api: httpx.AsyncClient, changes: dict[str, Any], errors: dict[str, str]
) -> None:
    before = await coordinator.store.runs()
    for path in ("/runs/validate", "/runs"):
        response = await api.post(path, json=DOCUMENT | changes)
        sentences = problem(response, 422)
        found = {error["path"]: error["message"] for error in response.json()["errors"]}
        assert found.keys() == errors.keys()
        for key, message in found.items():
            assert message.startswith(errors[key])
            assert message in sentences
    assert await coordinator.store.runs() == before


async def test_clone_is_a_new_run_with_the_changes(coordinator: Coordinator, api: httpx.AsyncClient) -> None:
    patch = {"seed": 99, "cohort": {"size": None, "fraction": 0.5}, "stop_when": {"metric": "loss", "at_most": 0.1}}
    response = await api.post("/runs/0b2/clone", json=patch | {"evaluate": {"every": 1}, "name": "again"})
    assert response.status_code == 201, response.text
    original, clone = await coordinator.store.run("0b2"), await coordinator.store.run(response.json()["run_id"])
    assert clone.run_id != original.run_id
    assert (clone.spec.seed, clone.spec.cohort.size, clone.spec.cohort.fraction) == (99, None, 0.5)
    assert (clone.spec.stop_when and clone.spec.stop_when.at_most, clone.spec.name) == (0.1, "again")
    assert clone.spec.cohort.deadline_seconds == original.spec.cohort.deadline_seconds
    same = await api.post("/runs/0b2/clone", json={})
    assert (await coordinator.store.run(same.json()["run_id"])).spec == original.spec
    assert await coordinator.store.run("0b2") == original


async def test_clone_that_is_unsound_is_refused(coordinator: Coordinator, api: httpx.AsyncClient) -> None:
    before = await coordinator.store.runs()
    response = await api.post("/runs/0b2/clone", json={"rounds": None})
    assert problem(response, 422) == "Run spec: rounds is required."
    assert response.json()["errors"] == [{"path": "rounds", "message": "rounds is required."}]
    assert "must be in the store" in problem(await api.post("/runs/nope/clone", json={}), 404)
    assert problem(await api.post("/runs/0b2/clone", json=[1]), 422)
    assert await coordinator.store.runs() == before


@pytest.mark.parametrize(
    ("target", "patch", "expected"),
    [
        # RFC 7396, appendix A.
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
async def test_merged_is_what_the_rfc_says(target: Any, patch: Any, expected: Any) -> None:
    assert merged(target, patch) == expected


async def test_one_round_is_shown_open_or_committed(coordinator: Coordinator, api: httpx.AsyncClient) -> None:
    for number, state in ((1, RoundState.COMMITTED), (2, RoundState.OPEN)):
        record = RoundRecord(run_id="0b2", number=number, state=state, selected=["ana"])
        await coordinator.store.put_round(record)
        assert RoundRecord.model_validate((await api.get(f"/runs/0b2/rounds/{number}")).json()) == record
    assert problem(await api.get("/runs/0b2/rounds/3"), 404) == (
        "Round 3 of run '0b2': must be in the store, got no such round."
    )
    assert "number" in problem(await api.get("/runs/0b2/rounds/0"), 422)
