"""`choral token` beside a coordinator that runs, in its folder and in Redis."""

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from choral.commands import token as command
from tests.choral.command_line import Choral, sentence
from tests.federation import Federation
from tests.server.store.redis_server import RedisServer


@pytest.fixture(params=["sqlite", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, ...]]:
    """Options of the store of the coordinator in `tmp_path`."""
    if request.param == "sqlite":
        yield ("--folder", str(tmp_path / "coordinator"))
        return
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed: apt-get install redis-server")
    server = RedisServer(tmp_path)
    try:
        server.start()
        yield ("--store", server.url)
    finally:
        server.kill()


def test_tokens_take_effect_at_once_in_a_coordinator_that_runs(
    choral: Choral, tmp_path: Path, place: tuple[str, ...]
) -> None:
    made = choral("token", "create", "ana", "--role", "viewer", "--days", "90", *place)
    assert made.code == 0, made.err
    assert re.search(
        r"^Token ana \(viewer\) until \d{4}-\d\d-\d\d \d\d:\d\d UTC\. Keep it: it is shown this once\.$", made.err, re.M
    )
    viewer = made.lines[0]
    assert made.lines == [viewer]
    with Federation(tmp_path, *(place if place[0] == "--store" else ())) as federation:
        # The token of before the first start counts, so the question for health is the one that needs none.
        federation.start_coordinator()

        def ask(secret: str) -> httpx.Response:
            headers = {"Authorization": f"Bearer {secret}"} if secret else {}
            return httpx.get(f"http://{federation.http_address}/api/v1/me", headers=headers, trust_env=False)

        assert ask(viewer).json() == {"name": "ana", "role": "viewer"}
        operator = choral("token", "create", "ben", "--role", "operator", *place).lines[0]
        assert ask(operator).json() == {"name": "ben", "role": "operator"}

        listed = choral("token", "list", *place)
        day = time.strftime("%Y-%m-%d", time.gmtime())
        assert re.fullmatch(
            rf"ana +viewer +{day} \d\d:\d\d +\d{{4}}-\d\d-\d\d \d\d:\d\d +{day} \d\d:\d\d", listed.lines[-2]
        )
        assert re.fullmatch(rf"ben +operator +{day} \d\d:\d\d +{day} \d\d:\d\d", listed.lines[-1])
        assert viewer not in listed.out
        assert operator not in listed.out

        assert choral("token", "revoke", "ana", *place).lines == ["Token ana: revoked"]
        assert ask(viewer).status_code == 401
        assert ask(operator).status_code == 200
        last = choral("token", "revoke", "ben", *place)
        assert last.lines[0] == "Token ben: revoked"
        assert last.out.splitlines()[1].startswith("No token is left: ")
        assert ask("").json() == {"name": "", "role": "operator"}
        federation.coordinator.end()  # type: ignore[union-attr]
        for path in tmp_path.rglob("*"):
            if path.is_file():
                content = path.read_bytes()
                assert viewer.encode() not in content, path
                assert operator.encode() not in content, path


def test_list_says_which_have_expired_and_were_never_used(
    choral: Choral, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = ("--folder", str(tmp_path / "new"))
    choral("token", "create", "for a day", "--role", "viewer", "--days", "1", *place)
    now = time.time()
    monkeypatch.setattr(command, "time", SimpleNamespace(time=lambda: now + 86_401))
    assert re.fullmatch(
        r"for a day +viewer +[-0-9]+ [0-9:]+ +expired +never", choral("token", "list", *place).lines[-1]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("create", "", "--role", "viewer"), "Token: name must be 1 to 64 printable characters, got ''."),
        (("create", "x", "--role", "viewer", "--days", "0"), "Token 'x': days must be 1 to 36500, got 0."),
        (
            ("create", "ana", "--role", "viewer"),
            "Token 'ana': name must be new, got one that there is. Revoke that one first, or take another name.",
        ),
        (("revoke", "ben"), "Token 'ben': must be in the store, got no such token. See: choral token list"),
    ],
)
def test_command_that_breaks_a_rule_is_one_sentence(
    choral: Choral, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    place = ("--folder", str(tmp_path))
    assert choral("token", "create", "ana", "--role", "operator", *place).code == 0
    assert sentence(choral("token", *arguments, *place)) == message
    assert len(choral("token", "list", *place).lines) == 3


@pytest.mark.parametrize("arguments", [("list",), ("revoke", "ana")])
def test_folder_that_does_not_exist_is_not_made_by_a_look(
    choral: Choral, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    folder = tmp_path / "none"
    message = f"Folder {folder}: must be a coordinator's, got none. Give --folder, or --store."
    assert sentence(choral("token", *arguments, "--folder", str(folder))) == message
    assert not folder.exists()


def test_coordinator_that_lets_nobody_in_says_how_to_change_that(choral: Choral, tmp_path: Path) -> None:
    with Federation(tmp_path, "--insecure") as federation:
        port = federation.http_address.rpartition(":")[2]
        federation.http_address = f"0.0.0.0:{port}"
        coordinator = federation.start_coordinator()
        hint = f"choral token create NAME --role operator and --folder {federation.coordinator_folder}"
        assert "the REST API lets nobody in yet" in coordinator.output
        assert hint in coordinator.output
