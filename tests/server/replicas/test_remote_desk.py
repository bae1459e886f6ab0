"""API replicas beside a real coordinator, with a real Redis server between them: the same answers, and 503 when nobody answers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.coordinator import Coordinator
from server.errors import AwayError, ConfigurationError, ConflictError
from server.monitoring.diary import Entry
from server.monitoring.now import Health, Now, RunNow
from server.records import Moments, RunRecord, RunState
from server.replicas import remote_desk
from server.replicas.letters import Answer, Command, Failure, Picture
from server.replicas.remote_desk import RemoteDesk
from server.replicas.replica import Replica, ReplicaConfig, serve_api
from server.store import open_store
from server.store.documents import from_document, to_document
from server.store.post import Post
from tests.hostile import drawn_vector, joined
from tests.loopback import WAIT_SECONDS, everyone, run_in_state, serving, small_spec, until
from tests.server.rest import DOCUMENT, calling, problem, stored_run
from tests.server.store.redis_server import RedisServer
from tests.server.stream import following
from wire.errors import SpecError

SHOWING = to_document(Picture(now=Now(is_served=True), diaries={}))


@dataclass(frozen=True)
class Pair:
    """A coordinator and callers of its REST API: its own, and that of a replica."""

    coordinator: Coordinator
    own: httpx.AsyncClient
    replica: httpx.AsyncClient


def replica_of(server: RedisServer, **changes: Any) -> contextlib.AbstractAsyncContextManager[Replica]:
    return serve_api(ReplicaConfig(**({"store": server.url, "http_address": "127.0.0.1:0"} | changes)))


@pytest.fixture
async def pair(tmp_path: Path, redis_server: RedisServer) -> AsyncIterator[Pair]:
    folder = tmp_path / "coordinator"
    async with (
        serving(folder, store=redis_server.url) as coordinator,
        replica_of(redis_server, folder=folder) as replica,
        calling(coordinator) as own,
        calling(replica) as api,
    ):
        yield Pair(coordinator, own, api)


async def test_commands_have_the_answers_that_the_coordinator_gives(pair: Pair) -> None:
    async def same(path: str, body: object, code: int) -> None:
        answers = [await api.post(path, json=body) for api in (pair.replica, pair.own)]
        assert problem(answers[0], code)
        assert answers[0].json() == answers[1].json()

    submitted = await pair.replica.post("/runs", json=DOCUMENT)
    assert (submitted.status_code, submitted.json()["state"]) == (201, "queued")
    run_id = submitted.json()["run_id"]
    assert (await pair.coordinator.store.run(run_id)).spec.name == "tiny"
    await run_in_state(pair.coordinator, run_id, RunState.RUNNING)
    for verb, state in (("pause", "paused"), ("resume", "queued"), ("stop", "stopped")):
        answer = (await pair.replica.post(f"/runs/{run_id}/{verb}")).json()
        assert answer["state"] == state
        # The picture of what goes on may be older than the answer, and must not contradict it.
        assert state == "queued" or answer["status"].startswith(f"{state}: ")
    await same(f"/runs/{run_id}/pause", None, 409)
    await same("/runs/nope/stop", None, 404)
    await same("/runs", DOCUMENT | {"rounds": 0}, 422)
    await same("/runs", DOCUMENT | {"learner": {"name": "mlp", "hidden": [-1]}}, 422)
    await same("/runs/validate", DOCUMENT | {"cohort": {}}, 422)
    assert len(await pair.coordinator.store.runs()) == 1


async def test_what_goes_on_is_what_the_coordinator_sees(pair: Pair) -> None:
    async with everyone([joined(pair.coordinator.address, name=name) for name in "abc"]) as sessions:
        run = await pair.coordinator.runs.submit(small_spec(rounds=1))
        tasks = [await session.task() for session in sessions]
        await sessions[0].contribute(tasks[0], drawn_vector(1, 67))
        paths = ["/clients", f"/runs/{run.run_id}/rounds/1/timeline", "/clients?state=busy", "/runs?state=running"]

        def timeless(answer: Any) -> Any:
            for item in answer:
                item.pop("status", None)
                item.pop("last_seen_time", None)  # who is here is seen now
                (item.get("waiting") or {}).pop("seconds_left", None)
            return answer

        async def are_same() -> bool:
            answers = [[timeless((await api.get(path)).json()) for path in paths] for api in (pair.own, pair.replica)]
            assert all(answers[0])
            return bool(answers[0] == answers[1])

        await until(are_same, "the replica to show what the coordinator shows")
        async with following(pair.replica) as stream:
            doing = (await stream.status())["clients"]
        assert doing.keys() == {session.client_id for session in sessions[1:]}
        health = (await pair.replica.get("/health")).json()
        assert (health["status"], health["client_count"]) == ("ok", 3)
        for number, session in enumerate(sessions[1:], 2):
            await session.contribute(tasks[number - 1], drawn_vector(number, 67))
        await run_in_state(pair.coordinator, run.run_id, RunState.FINISHED)
        models = [await api.get(f"/runs/{run.run_id}/model") for api in (pair.own, pair.replica)]
        assert models[0].status_code == models[1].status_code == 200
        assert models[0].content == models[1].content
        cards = [(await api.get(f"/runs/{run.run_id}/card")).json() for api in (pair.own, pair.replica)]
        assert cards[0] == cards[1]


async def test_coordinator_that_ends_is_away_and_its_clients_are_gone(
    tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_desk, "SILENCE_SECONDS", 2.0)
    sentence = "Coordinator: must be running, got none that serves this store. Start it with choral serve."
    async with replica_of(redis_server) as replica, calling(replica) as api:
        assert problem(await api.get("/health"), 503) == sentence
        async with serving(tmp_path, store=redis_server.url) as coordinator:

            async def is_healthy() -> bool:
                return (await api.get("/health")).status_code == 200

            await until(is_healthy, "the replica to see the coordinator")
            run = await stored_run(coordinator, "waiting", RunState.PAUSED)
            async with joined(coordinator.address):

                async def is_connected() -> bool:
                    return [client["is_connected"] for client in (await api.get("/clients")).json()] == [True]

                await until(is_connected, "the client to be connected")
                await coordinator.runs.resume(run.run_id)

        async def is_away() -> bool:
            return (await api.get("/health")).status_code == 503

        await until(is_away, "the replica to miss the coordinator")
        assert problem(await api.get("/health"), 503) == sentence
        assert [client["is_connected"] for client in (await api.get("/clients")).json()] == [False]
        status = (await api.get("/runs/waiting")).json()["status"]
        assert status.endswith(": no coordinator is running")
        assert problem(await api.post("/runs/waiting/stop"), 503) == (
            "Coordinator: must be running to stop a run, got none that serves this store. Nothing was changed. "
            "Start it with choral serve."
        )
        redis_server.kill()
        assert problem(await api.get("/health"), 503).startswith(f"Store {redis_server.url}: must answer within 15 s")


@contextlib.asynccontextmanager
async def desk_beside(server: RedisServer) -> AsyncIterator[tuple[RemoteDesk, Post]]:
    """Yield a desk, and the post for who plays the coordinator and has the lease; that it is there is shown."""
    store, post, own_post = await open_store(server.url), Post(server.url), Post(server.url)
    await store.acquire_lease("ana", 60)
    desk = RemoteDesk(store, own_post)

    async def show() -> None:
        while True:
            await post.show(SHOWING)
            await asyncio.sleep(0.05)

    tasks = [asyncio.create_task(work) for work in (desk.serve(), show())]
    try:
        await desk.begin()
        yield desk, post
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for opened in (store, post, own_post):
            await opened.close()


async def test_command_that_is_not_taken_is_withdrawn_for_good(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_desk, "TAKE_SECONDS", 0.1)
    async with desk_beside(redis_server) as (desk, post):
        with pytest.raises(AwayError, match=r"must take a command within 0.1 s, and did not. Nothing was changed\.$"):
            await desk.stop("r")
        assert await post.take("ana") is None


async def test_command_that_is_taken_and_not_answered_may_have_taken_place(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_desk, "TAKE_SECONDS", 0.5)
    monkeypatch.setattr(remote_desk, "ANSWER_SECONDS", 1.0)
    async with desk_beside(redis_server) as (desk, post):
        asking = asyncio.create_task(desk.stop("r"))
        assert await post.take("ana") is not None
        with pytest.raises(AwayError, match=r"must answer a command within 1 s, and did not\. It may have taken place"):
            await asking


async def test_answer_that_comes_late_but_in_time_is_the_answer(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_desk, "TAKE_SECONDS", 0.1)
    async with desk_beside(redis_server) as (desk, post):
        asking = asyncio.create_task(desk.pause("r"))
        taken = await post.take("ana")
        assert taken is not None
        assert await post.answer_to(taken[0], 0.3) is None
        await post.answer(taken[0], to_document(Answer(failure=Failure.of(ConflictError("Run r: is not so.")))))
        with pytest.raises(ConflictError, match=r"^Run r: is not so\.$"):
            await asking


async def test_letter_that_cannot_be_read_is_refused_and_the_next_one_carried_out(
    pair: Pair, redis_server: RedisServer
) -> None:
    post = Post(redis_server.url)
    text = await post.answer_to(await post.send('{"verb": "dance"}'), WAIT_SECONDS)
    await post.close()
    assert text is not None
    failure = from_document(Answer, text).failure
    assert failure is not None
    assert failure.message.startswith("Stored Command: verb must be readable by this release")
    assert (await pair.replica.post("/runs", json=DOCUMENT)).status_code == 201


def test_letters_are_read_as_they_were_written() -> None:
    spec = small_spec()
    run = RunRecord(run_id="r", spec=spec, state=RunState.RUNNING, submitted_time=1.0, metrics={"loss": float("inf")})
    health = Health(uptime_seconds=1, client_count=2, longest_stall_seconds=0.1, rss_bytes=3, peak_rss_bytes=4)
    waiting = {"for": "updates", "have": 1, "need": 2, "seconds_left": 3.0, "until_time": 4.0}
    doing = RunNow.model_validate({"state": "running", "round_number": 1, "status": "s", "waiting": waiting})
    entry = Entry("r/1/train", Moments(asked=1.5), is_accepted=True)
    for letter in (
        Command(verb="submit", spec=spec),
        Answer(run=run),
        Answer(failure=Failure.of(SpecError("Run spec: no.", "rounds"))),
        Picture(now=Now(runs={"r": doing}, is_served=True, health=health), diaries={"r": {"a": entry}}),
    ):
        assert from_document(type(letter), to_document(letter)) == letter
    found = Failure.of(SpecError("Run spec: no.", "rounds")).error()
    assert isinstance(found, SpecError)
    assert (str(found), found.findings[0].path) == ("Run spec: no.", "rounds")
    unexpected = Failure.of(KeyError("secret")).error()
    assert (type(unexpected), str(unexpected)) == (RuntimeError, "Unexpected KeyError in the coordinator.")


async def test_metrics_are_those_of_the_process(redis_server: RedisServer) -> None:
    async with replica_of(redis_server) as replica, httpx.AsyncClient(timeout=WAIT_SECONDS) as http:
        text = (await http.get(f"http://{replica.http_address}/metrics")).text
    names = {family.name for family in text_string_to_metric_families(text)}
    own = {name for name in names if name.startswith("choral_") and not name.endswith("_created")}
    assert own == {"choral_http_requests", "choral_event_loop_lag_seconds"}
    assert "process_resident_memory_bytes" in names


async def test_model_without_a_folder_is_a_clear_sentence(tmp_path: Path, redis_server: RedisServer) -> None:
    async with replica_of(redis_server) as replica, calling(replica) as api:
        run = RunRecord(run_id="r", spec=small_spec(), state=RunState.FINISHED, submitted_time=1.0, round_number=1)
        await replica.store.put_run(run)
        assert problem(await api.get("/runs/r/model"), 404) == (
            "Model of run r: must lie in a folder that this process reads, got none. "
            "Ask the coordinator itself, or start choral api with --folder and the coordinator's folder."
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"store": ""}, r"^Store '': must be redis://, .* for choral api, got another\.", id="no-store"),
        pytest.param({"store": "choral.sqlite"}, r"^Store 'choral.sqlite': must be redis://", id="sqlite"),
        pytest.param({"http_address": "0.0.0.0:0"}, r"^REST address: must be on loopback without TLS", id="plain"),
        pytest.param({"folder": Path("/nowhere")}, r"^Folder /nowhere: must be a coordinator's, got none", id="folder"),
    ],
)
async def test_replica_that_cannot_work_is_refused_at_its_start(changes: dict[str, Any], message: str) -> None:
    config = ReplicaConfig(**({"store": "redis://127.0.0.1:1/0", "http_address": "127.0.0.1:0"} | changes))
    with pytest.raises(ConfigurationError, match=message):
        async with serve_api(config):
            pass
