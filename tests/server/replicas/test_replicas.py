"""Two `choral api` processes beside a coordinator's, with clients and a Redis server of their own, and what kills them."""

import asyncio
import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.access.tokens import create_token
from server.records import Role
from server.store import open_store
from tests.federation import START_SECONDS, Federation, Process, free_port, wait_until
from tests.server.rest import problem
from tests.server.store.redis_server import RedisServer

SPEC: dict[str, Any] = {
    "name": "shared",
    "learner": {"name": "mlp", "inputs": [1, 8, 8], "hidden": [8]},
    # More than are played before anybody can say stop.
    "rounds": 60,
    "cohort": {"size": 2, "deadline_seconds": 120, "wait_seconds": 120, "return_seconds": 60},
    "local": {"epochs": 1},
    "evaluate": {"every": 0},
}


@dataclass(frozen=True)
class Replica:
    """A `choral api` process, and who calls it."""

    process: Process
    api: httpx.Client

    def is_healthy(self) -> bool:
        try:
            return self.api.get("/health").status_code == 200
        except httpx.TransportError:
            return False

    def is_unhealthy(self) -> bool:
        return not self.is_healthy()

    def state(self, run_id: str) -> str:
        return str(self.api.get(f"/runs/{run_id}").json()["state"])


@contextlib.contextmanager
def replica(folder: Path, name: str, url: str) -> Iterator[Replica]:
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "choral", "api", "--store", url, "--http", address]
    process = Process(command, folder / f"{name}.log", is_forked=True)
    try:
        with httpx.Client(base_url=f"http://{address}/api/v1", timeout=START_SECONDS) as api:
            yield Replica(process, api)
    finally:
        process.close()


class Watcher:
    """Reads events of a stream, and has their numbers and kinds."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.kinds: list[str] = []

    @contextlib.contextmanager
    def at(self, api: httpx.Client) -> Iterator[Iterator[str]]:
        """Watch from where it was."""
        headers = {"Last-Event-ID": str(self.numbers[-1])} if self.numbers else {}
        with api.stream("GET", "/events/stream", params={"after": 0}, headers=headers) as response:
            assert response.status_code == 200
            yield self._kinds(response)

    def read_to(self, kinds: Iterator[str], last: str) -> None:
        """Read up to an event of a kind."""
        assert last in kinds

    def _kinds(self, response: httpx.Response) -> Iterator[str]:
        fields: dict[str, str] = {}
        for line in response.iter_lines():
            name, _, value = line.partition(": ")
            if name:
                fields[name] = value
            elif event := fields if "id" in fields and "data" in fields else None:
                assert json.loads(event["data"])["event_id"] == int(event["id"])
                self.numbers.append(int(event["id"]))
                self.kinds.append(event["event"])
                yield event["event"]
            if not line:
                fields = {}


@pytest.fixture
def federation(tmp_path: Path, redis_server: RedisServer) -> Iterator[Federation]:
    with Federation(tmp_path, "--store", redis_server.url) as federation:
        federation.start_coordinator()
        yield federation


def check_tokens(url: str, *apis: httpx.Client) -> None:
    """See tokens come into force and be revoked at once at all replicas; leave callers with one that may do everything."""

    async def created(name: str, role: Role) -> dict[str, str]:
        store = await open_store(url)
        _, secret = await create_token(store, name, role)
        await store.close()
        return {"Authorization": f"Bearer {secret}"}

    async def revoked(name: str) -> None:
        store = await open_store(url)
        await store.remove_token(name)
        await store.close()

    assert [api.get("/runs").status_code for api in apis] == [200, 200]
    boss, viewer = (asyncio.run(created(role.value, role)) for role in (Role.OPERATOR, Role.VIEWER))
    assert [api.get("/runs").status_code for api in apis] == [401, 401]
    assert [api.get("/me", headers=viewer).json()["role"] for api in apis] == ["viewer", "viewer"]
    assert [api.post("/runs/r/stop", headers=viewer).status_code for api in apis] == [403, 403]
    asyncio.run(revoked(Role.VIEWER.value))
    assert [api.get("/runs", headers=viewer).status_code for api in apis] == [401, 401]
    for api in apis:
        api.headers.update(boss)


def test_replicas_command_and_watch_whatever_is_killed(federation: Federation, redis_server: RedisServer) -> None:
    folder, url = federation.folder, redis_server.url
    with replica(folder, "one", url) as one, replica(folder, "two", url) as two:
        for each in (one, two):
            wait_until(each.is_healthy, "the replica to see the coordinator")
        check_tokens(url, one.api, two.api)
        federation.start_digits_clients(2)
        run_id = str(one.api.post("/runs", json=SPEC).json()["run_id"])
        watcher = Watcher()
        with watcher.at(two.api) as events:
            watcher.read_to(events, "round_committed")
            # Without one of its two clients the run stays where it is.
            federation.clients["site-0"].pause()
            assert two.api.post(f"/runs/{run_id}/pause").json()["state"] == "paused"
            assert one.state(run_id) == "paused"
            assert one.api.post(f"/runs/{run_id}/resume").json()["state"] == "queued"
            watcher.read_to(events, "run_resumed")

            assert federation.coordinator is not None
            federation.coordinator.kill()
            for each in (one, two):
                wait_until(each.is_unhealthy, "the replica to miss the coordinator")
                detail = problem(each.api.post(f"/runs/{run_id}/stop"), 503)
                assert "got none that serves this store. Nothing was changed." in detail
                assert each.api.get(f"/runs/{run_id}").json()["status"] == "running: no coordinator is running"
            two.process.kill()
            with contextlib.suppress(httpx.TransportError):
                watcher.read_to(events, "nothing more")
        federation.start_coordinator(wait=False)
        federation.clients["site-0"].resume()
        with watcher.at(one.api) as events:
            watcher.read_to(events, "run_finished")
        other = one.api.post("/runs", json=SPEC).json()["run_id"]
        assert one.api.post(f"/runs/{other}/stop").json()["state"] == "stopped"
        assert one.state(run_id) == "finished"
        # No event was lost or told twice, of whichever replica it was heard.
        stored = one.api.get("/events", params={"limit": 1000}).json()
        count = watcher.kinds.index("run_finished") + 1
        assert watcher.numbers == [event["event_id"] for event in stored[:count]]
        assert watcher.kinds == [event["kind"] for event in stored[:count]]
        assert watcher.numbers == list(range(1, count + 1))
        assert watcher.kinds.count("round_committed") == SPEC["rounds"]
        assert [process.end() for process in (one.process, federation.coordinator)] == [0, 0]
