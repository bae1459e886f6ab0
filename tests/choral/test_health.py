"""Health checks of containers, called as the images call them."""

import asyncio
import subprocess
import sys
from pathlib import Path

from client.presence import is_present, marked
from server.replicas.replica import ReplicaConfig, serve_api
from server.web import TLS
from tests.client.certificates import Authority
from tests.federation import free_port
from tests.loopback import serving
from tests.server.store.redis_server import RedisServer


def check(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "choral.health", *arguments], capture_output=True, text=True, timeout=60
    )
    return done.returncode, (done.stdout + done.stderr).strip()


async def test_coordinator_is_well_while_it_serves(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority", "Choral's tests")
    async with serving(tmp_path / "tls", tls=TLS(*authority.sign_server())) as coordinator:
        found = await asyncio.to_thread(check, "coordinator", f"https://{coordinator.http_address}")
        assert found == (0, "ok, 0 clients connected")
        found = await asyncio.to_thread(check, "coordinator", f"http://{coordinator.http_address}")
        assert found[0] == 1
    async with serving(tmp_path / "plain") as coordinator:
        found = await asyncio.to_thread(check, "coordinator", f"http://{coordinator.http_address}")
        assert found == (0, "ok, 0 clients connected")


async def test_api_replica_is_well_although_its_coordinator_is_away(
    redis_server: RedisServer,
) -> None:
    async with serve_api(ReplicaConfig(redis_server.url, "127.0.0.1:0")) as replica:
        url = f"http://{replica.http_address}"
        assert await asyncio.to_thread(check, "api", url) == (0, "ok, serving")
        code, said = await asyncio.to_thread(check, "coordinator", url)
        assert (code, said) == (1, f"Error: Coordinator {url}: must answer 200, got 503 Service Unavailable.")
    code, said = await asyncio.to_thread(check, "api", url)
    assert (code, said.startswith(f"Error: API replica {url}: must answer as one, got")) == (1, True)


def test_coordinator_that_does_not_answer_is_not_well() -> None:
    code, said = check("coordinator", f"http://127.0.0.1:{free_port()}")
    assert code == 1
    assert said.startswith("Error: Coordinator http://127.0.0.1:")
    assert "must answer as one" in said


def test_client_is_well_while_it_has_a_session(tmp_path: Path) -> None:
    assert check("client", str(tmp_path))[0] == 1
    with marked(tmp_path):
        assert check("client", str(tmp_path)) == (0, "ok, connected")
        # Two looks at a time do not end it.
        assert is_present(tmp_path)
    code, said = check("client", str(tmp_path))
    assert (code, said) == (
        1,
        f"Error: Client in {tmp_path}: must have a session with its coordinator, got none.",
    )


def test_mark_does_not_outlive_its_process(tmp_path: Path) -> None:
    code = f"""
import pathlib, sys
from client.presence import marked
with marked(pathlib.Path({str(tmp_path)!r})):
    print("there", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        assert is_present(tmp_path)
        process.kill()
        process.wait(timeout=30)
    assert not is_present(tmp_path)


def test_health_is_cheap_to_ask_for() -> None:
    code = "import sys, choral.health; print(*({'torch', 'numpy', 'grpc', 'typer', 'pydantic'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == []


def test_other_arguments_are_answered_with_the_usage() -> None:
    code, said = check("dog")
    assert code == 1
    assert said.startswith("Usage: python -m choral.health coordinator URL")
