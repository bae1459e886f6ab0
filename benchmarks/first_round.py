"""`choral simulate` as a user starts it: the time from the start of its process until it prints the line of the first round.

The run is the README's, with 100 clients of which 20 train in a round, and with its evaluation: imports, the data, the workers and the
first round count.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.choral_simulation import PEER
from benchmarks.peer_process import PeerFailedError, exit_on_error

CLIENT_COUNT = 100
SPEC: dict[str, Any] = {
    "name": "digits-cnn",
    "seed": 7,
    "learner": {"name": "cnn", "channels": [16, 32], "classes": 10},
    "rounds": 2,
    "cohort": {"size": 20, "quorum": 10, "deadline_seconds": 120},
    "local": {"epochs": 5, "batch_size": 16, "optimizer": {"name": "sgd", "learning_rate": 0.1}},
}
TIMEOUT_SECONDS = 180.0

_REPOSITORY = Path(__file__).resolve().parents[1]


def measure(engine: str) -> float:
    """Start the command, and return the seconds until the line of the first round is there.

    Args:
        engine: As for `choral simulate --engine`.

    Raises:
        PeerFailedError: The command failed or ran out of time. Its processes have ended.
    """
    # A short path: Ray's sockets lie below it.
    with tempfile.TemporaryDirectory(prefix="peer-") as home:
        spec = Path(home, "run.yaml")
        # Every JSON text is a YAML text.
        spec.write_text(json.dumps(SPEC), encoding="utf-8")
        setting = ["--clients", str(CLIENT_COUNT), "--engine", engine, "--folder", "simulated"]
        own = {name: value.replace("{home}", home) for name, value in PEER.environment.items()}
        start = time.monotonic()
        with _command([str(spec), *setting], Path(home), own) as process:
            assert process.stdout is not None
            seconds, lines = None, []
            for line in process.stdout:
                lines.append(line)
                if line.startswith("round 1:") and seconds is None:
                    seconds = time.monotonic() - start
        if seconds is None or process.returncode:
            raise PeerFailedError(
                f"choral simulate --engine {engine}: exit status must be 0 within {TIMEOUT_SECONDS:g} s and after the line of"
                f" round 1, got {process.returncode}.\n{''.join(lines)[-3000:]}"
            )
        return seconds


@contextlib.contextmanager
def _command(arguments: list[str], home: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Run `choral simulate`; at the end of the context it has ended, by force if it must."""
    process = subprocess.Popen(
        [sys.executable, "-m", "choral", "simulate", *arguments],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(_REPOSITORY), **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    timer = threading.Timer(TIMEOUT_SECONDS, _end, [process])
    timer.start()
    try:
        yield process
        process.wait()
    finally:
        timer.cancel()
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """Kill a process that still runs, and those that it started."""
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(process.pid)
        family = [*root.children(recursive=True), root]
    for survivor in family if process.poll() is None else []:
        with contextlib.suppress(psutil.NoSuchProcess):
            survivor.kill()
    process.wait()


def main() -> None:
    """Read the command line, measure once and print the seconds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_round", description="Time the first round.")
    parser.add_argument("engine", nargs="?", default="auto", help="as for choral simulate --engine")
    with exit_on_error():
        print(f"{measure(parser.parse_args().engine):.2f} s")


if __name__ == "__main__":
    main()
