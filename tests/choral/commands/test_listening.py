"""What `choral serve` and `choral api` have done when they begin to serve, in real processes."""

import re
import sys
from pathlib import Path

import pytest

from tests.federation import Process, free_port, wait_until
from tests.server.store.redis_server import RedisServer

COUNTED = """
import atexit, gc
atexit.register(lambda: print(gc.get_freeze_count(), "and", len(gc.get_objects()), flush=True))
from choral.__main__ import main
main()
"""
"""Says at its end how many objects the garbage collector passes over, and how many it looks at."""


@pytest.mark.parametrize("command", ["serve", "api"])
def test_collector_passes_over_what_a_start_has_made(tmp_path: Path, redis_server: RedisServer, command: str) -> None:
    own = ["--listen", f"127.0.0.1:{free_port()}", "--folder", str(tmp_path / "own")] if command == "serve" else []
    call = [command, *own, "--store", redis_server.url, "--http", f"127.0.0.1:{free_port()}"]
    process = Process([sys.executable, "-c", COUNTED, *call], tmp_path / "log")
    try:
        wait_until(lambda: "REST API at" in process.output or not process.is_alive, "the start")
        process.end()
    finally:
        process.close()
    found = re.search(r"^(\d+) and (\d+)$", process.output, re.MULTILINE)
    assert found, process.output
    passed_over, looked_at = map(int, found.groups())
    assert passed_over > 100_000
    # Of the REST API alone there are twice as many.
    assert looked_at < 5_000
