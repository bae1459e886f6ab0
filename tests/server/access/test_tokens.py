"""Who may do what with which token, over real HTTP."""

import contextlib
import hashlib
import logging
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from time import monotonic
from types import SimpleNamespace

import httpx
import pytest

from server.access import gate
from server.access.tokens import MOST_DAYS, bearer, create_token
from server.coordinator import Coordinator, CoordinatorConfig, serve
from server.errors import ConflictError, StoreError, TokenError
from server.records import Role, RunState, TokenRecord
from server.store import Store
from tests.loopback import WAIT_SECONDS, serving
from tests.server.rest import DOCUMENT, calling, new_token, problem, stored_run

UNKNOWN = "A valid bearer token must be given, got none or another one."


@pytest.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[Coordinator]:
    async with serving(tmp_path / "coordinator") as coordinator:
        yield coordinator


def contents(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in folder.rglob("*") if path.is_file()]


# Made, kept, found.


async def test_created_token_is_kept_as_a_hash_alone(store: Store, tmp_path: Path) -> None:
    token, secret = await create_token(store, "ana", Role.VIEWER)
    assert len(secret) >= 40
    assert token == TokenRecord(
        name="ana",
        role=Role.VIEWER,
        sha256=hashlib.sha256(secret.encode()).hexdigest(),
        created_time=token.created_time,
    )
    assert await store.tokens() == [token]
    files = contents(tmp_path)
    assert any(token.sha256.encode() in content for content in files)
    assert not any(secret.encode() in content for content in files)


async def test_two_tokens_differ_and_a_name_is_taken_once(store: Store) -> None:
    first, second = [await create_token(store, name, Role.VIEWER) for name in ("ana", "ben")]
    assert first[1] != second[1]
    with pytest.raises(ConflictError, match=r"^Token 'ana': name must be new"):
        await create_token(store, "ana", Role.OPERATOR)
    assert await store.tokens() == [first[0], second[0]]


@pytest.mark.parametrize(
    ("name", "days", "message"),
    [
        ("", None, "Token: name must be 1 to 64 printable characters, got ''."),
        ("a" * 65, None, f"Token: name must be 1 to 64 printable characters, got {'a' * 65!r}."),
        ("a\nb", None, r"Token: name must be 1 to 64 printable characters, got 'a\nb'."),
        ("ana", 0, "Token 'ana': days must be 1 to 36500, got 0."),
        ("ana", MOST_DAYS + 1, "Token 'ana': days must be 1 to 36500, got 36501."),
    ],
)
async def test_create_token_that_breaks_a_rule_is_refused(
    store: Store, name: str, days: int | None, message: str
) -> None:
    with pytest.raises(TokenError, match=re.escape(message)):
        await create_token(store, name, Role.VIEWER, days)
    assert list(await store.tokens()) == []


async def test_bearer_is_found_by_the_secret_until_the_token_runs_out(store: Store) -> None:
    await create_token(store, "ben", Role.OPERATOR)
    token, secret = await create_token(store, "ana", Role.VIEWER, days=2)
    stored = await store.tokens()
    end = token.created_time + 2 * 86400
    assert token.expires_time == pytest.approx(end)
    assert bearer(stored, secret.encode(), end - 1) == token
    with pytest.raises(
        TokenError, match=r"^Token 'ana': must not have expired, it did on \d{4}-\d\d-\d\d \d\d:\d\d UTC\."
    ):
        bearer(stored, secret.encode(), end + 1)
    for wrong in (b"", secret.encode()[:-1], secret.encode() + b"=", token.sha256.encode(), b"\xff"):
        with pytest.raises(TokenError, match=re.escape(UNKNOWN)):
            bearer(stored, wrong, end - 1)


# What they allow.


async def test_viewer_may_look_and_operator_may_do_everything(coordinator: Coordinator) -> None:
    viewer, operator = [await new_token(coordinator, role) for role in Role]
    await stored_run(coordinator, "r1", RunState.PAUSED)
    async with calling(coordinator, viewer) as api:
        assert (await api.get("/me")).json() == {"name": "viewer", "role": "viewer"}
        for path in ("/runs", "/runs/r1", "/runs/r1/rounds", "/clients"):
            assert (await api.get(path)).status_code == 200
        for method, path in (("POST", "/runs"), ("POST", "/runs/r1/stop"), ("DELETE", "/runs/r1"), ("PUT", "/nothing")):
            detail = f"Token 'viewer': role must be operator to {method}, got viewer."
            assert problem(await api.request(method, path, json=DOCUMENT), 403) == detail
    assert (await coordinator.store.run("r1")).state is RunState.PAUSED
    async with calling(coordinator, operator) as api:
        assert (await api.get("/me")).json() == {"name": "operator", "role": "operator"}
        assert (await api.post("/runs/r1/stop")).json()["state"] == "stopped"
        assert (await api.post("/runs", json=DOCUMENT)).status_code == 201


async def test_token_takes_effect_and_is_gone_at_once(coordinator: Coordinator) -> None:
    async with calling(coordinator) as api:
        assert (await api.get("/me")).json() == {"name": "", "role": "operator"}
        # A page that reached loopback under another name would be let in as anybody.
        assert problem(await api.get("/me", headers={"host": "choral.example"}), 400).startswith("Host header: ")
        secret = await new_token(coordinator)
        assert problem(await api.get("/me"), 401) == UNKNOWN
        api.headers["Authorization"] = f"Bearer {secret}"
        # Who has a token may use any name.
        assert (await api.get("/me", headers={"host": "choral.example"})).json()["name"] == "operator"
        other = await new_token(coordinator, name="other")
        await coordinator.store.remove_token("operator")
        assert problem(await api.get("/me"), 401) == UNKNOWN
        assert (await api.get("/me", headers={"Authorization": f"Bearer {other}"})).json()["name"] == "other"
        await coordinator.store.remove_token("other")
        assert (await api.get("/me")).json()["role"] == "operator"


async def test_expired_token_is_refused_and_still_closes_the_door(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, secret = await create_token(coordinator.store, "ana", Role.VIEWER, days=1)
    assert token.expires_time is not None
    async with calling(coordinator, secret) as api:
        assert (await api.get("/me")).status_code == 200
        monkeypatch.setattr(gate, "time", SimpleNamespace(time=lambda: token.expires_time, monotonic=monotonic))
        assert problem(await api.get("/me"), 401).startswith("Token 'ana': must not have expired, it did on ")
        assert problem(await api.get("/me", headers={"Authorization": ""}), 401) == UNKNOWN


async def test_beyond_loopback_nobody_comes_in_without_a_token(tmp_path: Path) -> None:
    config = CoordinatorConfig(tmp_path, address="127.0.0.1:0", http_address="0.0.0.0:0", is_insecure=True)
    async with serve(config) as coordinator:
        url = f"http://127.0.0.1:{coordinator.http_address.rpartition(':')[2]}/api/v1/me"
        async with httpx.AsyncClient(timeout=WAIT_SECONDS) as api:
            assert problem(await api.get(url), 401) == UNKNOWN
            secret = await new_token(coordinator)
            assert (await api.get(url, headers={"Authorization": f"Bearer {secret}"})).json()["role"] == "operator"
            await coordinator.store.remove_token("operator")
            assert problem(await api.get(url), 401) == UNKNOWN


async def test_last_use_is_shown_to_the_minute(coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    secret, now = await new_token(coordinator), 5e9
    seen = []
    async with calling(coordinator, secret) as api:
        for moment in (now, now + 59, now + 60):
            monkeypatch.setattr(gate, "time", SimpleNamespace(time=lambda moment=moment: moment, monotonic=monotonic))
            assert (await api.get("/me")).status_code == 200
            seen.append((await coordinator.store.tokens())[0].last_used_time)
    assert seen == [now, now, now + 60]


# Who tries tokens has to wait.


def from_address(address: str, token: str) -> dict[str, str]:
    """Ask as somebody else, as a proxy on this machine would put it."""
    return {"X-Forwarded-For": address, "Authorization": f"Bearer {token}"}


async def test_ten_wrong_tokens_close_the_door_to_that_address_alone(coordinator: Coordinator) -> None:
    secret = await new_token(coordinator)
    async with calling(coordinator) as api:
        for attempt in range(10):
            assert problem(await api.get("/me", headers=from_address("203.0.113.7", f"{attempt}")), 401) == UNKNOWN
        for token in ("more", secret):
            response = await api.get("/me", headers=from_address("203.0.113.7", token))
            seconds = int(response.headers["retry-after"])
            assert 1 <= seconds <= 60
            detail = f"Address 203.0.113.7: must wait {seconds} s after 10 tokens that were not valid."
            assert problem(response, 429) == detail
        assert (await api.get("/me", headers=from_address("203.0.113.8", secret))).status_code == 200
        # What needs no token is answered all the same, and to ask without one is no attempt.
        assert (await api.get("/health", headers=from_address("203.0.113.7", "x"))).status_code == 200
        for _ in range(20):
            problem(await api.get("/me", headers={"X-Forwarded-For": "203.0.113.9"}), 401)


# The store is in trouble.


@contextlib.contextmanager
def broken(store: Store, *names: str) -> Iterator[None]:
    """Let a real store fail, as on a disk that is full or away."""
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(store, name, _fail)
        yield


async def _fail(*_: object) -> None:
    raise StoreError("Store: must answer, got nothing.")


async def test_use_that_cannot_be_noted_turns_nobody_away(
    coordinator: Coordinator, caplog: pytest.LogCaptureFixture
) -> None:
    secret = await new_token(coordinator)
    with broken(coordinator.store, "note_token_use"):
        async with calling(coordinator, secret) as api:
            assert (await api.get("/me")).status_code == 200
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "token 'operator': its use could not be noted: Store: must answer, got nothing."
    ]
    assert secret not in caplog.text


async def test_tokens_that_cannot_be_read_let_nobody_in(coordinator: Coordinator) -> None:
    secret = await new_token(coordinator)
    with broken(coordinator.store, "tokens"):
        async with calling(coordinator, secret) as api:
            assert problem(await api.get("/runs"), 503) == "Store: must answer, got nothing."
            assert (await api.get("/health")).status_code == 200
