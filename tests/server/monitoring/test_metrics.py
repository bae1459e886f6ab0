"""What Prometheus reads of a real coordinator after a real run, and that the dashboard and the documentation name what there is."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import promql_parser as promql
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from client.policy import Policy
from server.coordinator import Coordinator
from server.errors import StoreError
from server.records import Role, RunState
from tests.client.masked import NAMES, Federation, joined, masked_spec
from tests.hostile import Session, drawn_vector
from tests.hostile import joined as joined_by_hand
from tests.loopback import WAIT_SECONDS, everyone, run_in_state, serving, small_spec, until
from tests.server.rest import calling, new_token, problem, stored_run
from tests.server.store.redis_server import RedisServer
from wire import federation_pb2 as pb

ROOT = Path(__file__).parents[3]
SIZE = 67
OF_PROMETHEUS = {"instance", "job"}
"""Labels that Prometheus itself adds to all it reads."""

Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


async def read(coordinator: Coordinator, token: str = "") -> list[Metric]:
    """Read the metrics as Prometheus does."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with httpx.AsyncClient(timeout=WAIT_SECONDS) as http:
        response = await http.get(f"http://{coordinator.http_address}/metrics", headers=headers)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/plain; version=")
    return list(text_string_to_metric_families(response.text))


def samples(families: list[Metric]) -> Samples:
    found: Samples = {}
    for family in families:
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def value(found: Samples, name: str, **labels: str) -> float:
    return found[name][tuple(sorted(labels.items()))]


@pytest.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[Coordinator]:
    async with serving(tmp_path) as coordinator:
        yield coordinator


async def download(session: Session, sha256: bytes) -> None:
    request = pb.DownloadRequest(session_token=session.token, sha256=sha256)
    assert sum([len(response.data) async for response in session.calls.download(request)]) == 4 * SIZE


async def play(coordinator: Coordinator) -> None:
    """Play one round of three clients, one of whom brings what is not finite."""
    async with everyone([joined_by_hand(coordinator.address) for _ in range(3)]) as sessions:
        run = await coordinator.runs.submit(small_spec(rounds=1))
        tasks = [await session.task() for session in sessions]
        await download(sessions[0], tasks[0].base.sha256)
        vectors = [drawn_vector(1, SIZE), drawn_vector(2, SIZE), np.full(SIZE, np.nan, dtype=np.float32)]
        found = [
            await session.contribute(task, vector)
            for session, task, vector in zip(sessions, tasks, vectors, strict=True)
        ]
        assert found[2].reason == pb.REFUSAL_REASON_NOT_FINITE
        await run_in_state(coordinator, run.run_id, RunState.FINISHED)


async def test_metrics_after_a_run_are_what_happened(coordinator: Coordinator) -> None:
    await play(coordinator)
    await stored_run(coordinator, "waiting", RunState.PAUSED)
    found = samples(await read(coordinator))
    assert value(found, "choral_rounds_total") == 1
    assert value(found, "choral_contributions_total") == 2
    refusals = {dict(labels)["reason"]: count for labels, count in found["choral_refusals_total"].items()}
    assert refusals.pop("not_finite") == 1
    assert set(refusals.values()) == {0}
    assert len(refusals) == len(pb.RefusalReason.values()) - 2
    assert value(found, "choral_sent_bytes_total") == 4 * SIZE
    assert value(found, "choral_received_bytes_total") == 3 * 4 * SIZE
    for phase in ("select", "train", "apply", "commit"):
        assert value(found, "choral_round_phase_seconds_count", phase=phase) == 1
    assert value(found, "choral_round_phase_seconds_sum", phase="train") > 0
    runs = {dict(labels)["state"]: count for labels, count in found["choral_runs"].items()}
    assert runs == {state.value: float(state.value in ("finished", "paused")) for state in RunState}
    assert value(found, "choral_clients", state="gone") == 3
    assert value(found, "choral_event_loop_lag_seconds_count") > 0
    assert value(found, "process_resident_memory_bytes") > 1 << 20
    assert value(found, "choral_store_up") == 1


async def test_clients_are_idle_busy_or_gone(coordinator: Coordinator) -> None:
    async def three_are_asked() -> bool:
        return len(list(coordinator.sessions.doing())) == 3

    async with everyone([joined_by_hand(coordinator.address) for _ in range(4)]):
        await coordinator.runs.submit(small_spec(rounds=1))
        await until(three_are_asked, "three clients to be asked")
        found = samples(await read(coordinator))["choral_clients"]
    assert {dict(labels)["state"]: count for labels, count in found.items()} == {"idle": 1, "busy": 3, "gone": 0}


async def test_masked_session_that_opens_nothing_is_counted(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    async with federation.serving() as coordinator:
        unwilling = Policy(minimum_cohort=6)
        agents = [
            federation.agent(name, coordinator.address, unwilling if name == NAMES[0] else None) for name in NAMES
        ]
        async with joined(coordinator, agents):
            run = await coordinator.runs.submit(masked_spec(cohort={"quorum": 5}))
            paused = await run_in_state(coordinator, run.run_id, RunState.PAUSED)
        found = samples(await read(coordinator))
    assert "quorum must be 5 contributions" in paused.reason
    assert value(found, "choral_masked_session_aborts_total", kind="train") == 1
    assert value(found, "choral_masked_session_aborts_total", kind="evaluate") == 0
    assert value(found, "choral_refusals_total", reason="client_policy") == 1
    assert value(found, "choral_rounds_total") == 0


async def test_answers_are_counted_by_the_template_of_their_route(coordinator: Coordinator) -> None:
    await stored_run(coordinator, "one", RunState.PAUSED)
    async with calling(coordinator) as api:
        for path in ("/runs/one", "/runs/two", "/runs/one", "/nothing/of/that/name"):
            await api.get(path)
        await api.request("BREW", "/runs/one")
        await api.get("/runs", headers={"Host": "elsewhere.example"})
    found = samples(await read(coordinator))["choral_http_requests_total"]
    assert {tuple(dict(labels)[name] for name in ("method", "route", "code")): n for labels, n in found.items()} == {
        ("GET", "/runs/{run_id}", "200"): 2,
        ("GET", "/runs/{run_id}", "404"): 1,
        ("GET", "none", "404"): 1,
        ("other", "/runs/{run_id}", "405"): 1,
        ("GET", "none", "400"): 1,
    }


async def test_two_coordinators_of_one_process_count_apart(coordinator: Coordinator, tmp_path: Path) -> None:
    async with serving(tmp_path / "other") as other:
        await play(other)
        assert value(samples(await read(other)), "choral_rounds_total") == 1
        assert value(samples(await read(coordinator)), "choral_rounds_total") == 0


async def test_metrics_ask_for_a_token_and_a_viewers_will_do(coordinator: Coordinator) -> None:
    token = await new_token(coordinator, Role.VIEWER)
    async with calling(coordinator) as stranger:
        problem(await stranger.get(f"http://{coordinator.http_address}/metrics"), 401)
    assert await read(coordinator, token)


async def test_store_that_is_away_is_shown_and_hides_nothing_else(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        raise StoreError("Store: must answer, got nothing.")

    await play(coordinator)
    with monkeypatch.context() as patch:
        patch.setattr(coordinator.store, "runs", fail)
        found = samples(await read(coordinator))
    assert value(found, "choral_store_up") == 0
    assert "choral_runs" not in found
    assert value(found, "choral_rounds_total") == 1
    assert value(samples(await read(coordinator)), "choral_store_up") == 1


async def test_store_that_does_not_even_answer_for_tokens_is_shown_to_whom_it_let_in(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise StoreError("Store: must answer, got nothing.")

    token = await new_token(coordinator, Role.VIEWER)
    assert value(samples(await read(coordinator, token)), "choral_store_up") == 1
    with monkeypatch.context() as patch:
        for name in ("tokens", "runs", "note_token_use"):
            patch.setattr(coordinator.store, name, fail)
        assert value(samples(await read(coordinator, token)), "choral_store_up") == 0
        async with calling(coordinator, "another") as stranger, calling(coordinator, token) as viewer:
            problem(await stranger.get(f"http://{coordinator.http_address}/metrics"), 401)
            problem(await viewer.get("/runs"), 503)


async def test_store_that_hangs_is_told_before_prometheus_gives_up(tmp_path: Path, redis_server: RedisServer) -> None:
    async with serving(tmp_path, store=redis_server.url) as coordinator:
        token = await new_token(coordinator, Role.VIEWER)
        assert value(samples(await read(coordinator, token)), "choral_store_up") == 1
        with redis_server.hanging():
            # Prometheus waits for no longer, unless it is told to.
            async with asyncio.timeout(10.0):
                found = samples(await read(coordinator, token))
        assert value(found, "choral_store_up") == 0
        assert value(samples(await read(coordinator, token)), "choral_store_up") == 1


async def test_store_that_never_answered_for_tokens_lets_nobody_read_metrics(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        raise StoreError("Store: must answer, got nothing.")

    with monkeypatch.context() as patch:
        patch.setattr(coordinator.store, "tokens", fail)
        async with calling(coordinator) as stranger:
            problem(await stranger.get(f"http://{coordinator.http_address}/metrics"), 503)


# What is written of the metrics.


def selectors(expression: Any) -> Iterator[tuple[promql.VectorSelector, set[str]]]:
    """Yield what a query reads, with the labels by which that is then aggregated."""
    match expression:
        case promql.VectorSelector():
            yield expression, set()
        case promql.MatrixSelector():
            yield expression.vector_selector, set()
        case promql.AggregateExpr():
            by = set(expression.modifier.labels) if expression.modifier else set()
            for selector, labels in selectors(expression.expr):
                yield selector, labels | by
        case promql.Call():
            for argument in expression.args:
                yield from selectors(argument)
        case promql.BinaryExpr():
            yield from selectors(expression.lhs)
            yield from selectors(expression.rhs)
        case promql.NumberLiteral():
            pass
        case other:
            raise AssertionError(f"no query of the dashboard has a {type(other).__name__} so far")


def stem(name: str) -> str:
    return re.sub(r"_(total|bucket|count|sum)$", "", name)


async def test_dashboard_reads_only_what_there_is(coordinator: Coordinator) -> None:
    await play(coordinator)
    await read(coordinator)
    found = {
        name: {label for labels in series for label, _ in labels} | OF_PROMETHEUS
        for name, series in samples(await read(coordinator)).items()
    }
    dashboard = json.loads((ROOT / "deploy/grafana/choral.json").read_text(encoding="utf-8"))
    targets = [target for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(targets) >= len(dashboard["panels"]) > 10
    read_names = set()
    for target in targets:
        shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        for selector, labels in selectors(promql.parse(target["expr"])):
            assert selector.name in found, f"{target['expr']}: no metric is named {selector.name}"
            wanted = labels | {matcher.name for matcher in selector.matchers.matchers}
            assert wanted <= found[selector.name], target["expr"]
            assert shown <= found[selector.name], target["legendFormat"]
            read_names.add(selector.name)
    variables = [item["query"] for item in dashboard["templating"]["list"] if item["type"] == "query"]
    assert variables == ["label_values(choral_store_up, instance)"]
    ours = {stem(name) for name in found if name.startswith("choral_") and not name.endswith("_created")}
    assert ours <= {stem(name) for name in read_names}


async def test_documentation_has_every_metric_with_its_labels(coordinator: Coordinator) -> None:
    await play(coordinator)
    await read(coordinator)
    there_are = {}
    for family in await read(coordinator):
        if family.name.endswith("_created"):
            continue
        name = f"{family.name}_total" if family.type == "counter" else family.name
        there_are[name] = {label for sample in family.samples for label in sample.labels} - {"le"}
    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.*?) ?\| \w", text, re.MULTILINE)
    assert {name: set(re.findall(r"\w+", labels)) for name, labels in rows} == there_are
