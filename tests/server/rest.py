"""Calls of the REST API over real HTTP."""

from typing import Any

import httpx

from server.access.tokens import create_token
from server.coordinator import Coordinator
from server.records import Role, RunRecord, RunState
from server.replicas.replica import Replica
from tests.loopback import WAIT_SECONDS
from tests.server.cohorts import spec

DOCUMENT = {
    "name": "tiny",
    "learner": {"name": "mlp", "inputs": [1], "hidden": [], "classes": 2},
    "rounds": 3,
    "cohort": {"size": 3, "wait_seconds": 41},
}


def calling(coordinator: Coordinator | Replica, token: str = "") -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    base_url = f"http://{coordinator.http_address}/api/v1"
    return httpx.AsyncClient(base_url=base_url, headers=headers, timeout=WAIT_SECONDS)


async def new_token(coordinator: Coordinator, role: Role = Role.OPERATOR, name: str = "") -> str:
    """Make a token, named as its role unless it has a name, and return its secret."""
    _, secret = await create_token(coordinator.store, name or role.value, role)
    return secret


def problem(response: httpx.Response, status: int) -> str:
    """Check that a response is problem details, and return their sentence."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body.keys() - {"errors"} == {"type", "title", "status", "detail"}
    assert body["type"] == f"urn:choral:problem:{body['title'].lower()}"
    assert body["status"] == status
    return str(body["detail"])


async def stored_run(coordinator: Coordinator, run_id: str, state: RunState, **changes: Any) -> RunRecord:
    run = RunRecord(run_id=run_id, spec=spec(rounds=9), state=state, submitted_time=1.0, **changes)
    await coordinator.store.put_run(run)
    return run
