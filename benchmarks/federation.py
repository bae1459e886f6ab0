"""A coordinator and its clients as real processes on loopback, driven over the REST API as an operator would."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from choral.rest import Rest, RestError

COORDINATOR = "coordinator"

START_SECONDS = 180.0
"""Time that all processes together have until every client has a session."""

RUN_SECONDS = 600.0
"""Time that one run has."""

_REPOSITORY = Path(__file__).resolve().parents[1]
_LOOK_SECONDS = 0.25
_STOP_SECONDS = 10.0


class FederationFailedError(RuntimeError):
    """A process ended early, a run did not finish, or time ran out. The processes go on until `close`."""


class Federation:
    """One coordinator with clients, in a folder. Use as a context manager: it ends whatever it has started.

    Attributes:
        http_address: Host and port of the REST API.
        rest: The REST API.
    """

    def __init__(self, folder: Path) -> None:
        """Start the coordinator, whose own folder is `folder / COORDINATOR`. Raises `FederationFailedError`."""
        self._folder = folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._address, self.http_address = _free_addresses(2)
        self.rest = Rest(f"http://{self.http_address}")
        place = ["--folder", str(folder / COORDINATOR), "--listen", self._address, "--http", self.http_address]
        try:
            self._start(COORDINATOR, "choral", "serve", *place)
            self._wait(lambda: bool(self.health()), START_SECONDS, "the coordinator must answer")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def join(self, client_count: int, clients_per_process: int = 1) -> None:
        """Start clients that hold all of the embedded digits, and wait until every one has a session.

        Raises:
            FederationFailedError: A process ended, or `START_SECONDS` have passed.
        """
        folders = [str(self._folder / f"client-{number}") for number in range(client_count)]
        for first in range(0, client_count, clients_per_process):
            group = folders[first : first + clients_per_process]
            if clients_per_process == 1:
                own = ["--data", "digits", "--folder", group[0], "--threads", "1"]
                self._start(f"client-{first}", "choral", "join", self._address, *own)
            else:
                self._start(f"clients-{first}", "benchmarks.crowd", self._address, *group)
        is_complete = f"{client_count} clients must join"
        self._wait(lambda: self.health().get("client_count") == client_count, START_SECONDS, is_complete)

    def play(self, spec: dict[str, Any]) -> list[dict[str, Any]]:
        """Submit a run, wait for its end and return the records of its rounds, oldest first; at most 1,000.

        Raises:
            FederationFailedError: The run paused or failed, a process ended, or `RUN_SECONDS` have passed.
        """
        path = f"/runs/{self.rest.post('/runs', spec)['run_id']}"
        self._wait(lambda: self._state(path) not in ("queued", "running"), RUN_SECONDS, "the run must end")
        if self._state(path) != "finished":
            raise self._failure(f"the run must finish, got: {self.rest.get(path)['status']}")
        return list(self.rest.get(f"{path}/rounds", limit=1000))

    def begin(self, spec: dict[str, Any]) -> str:
        """Submit a run, wait until a round of it is committed, and return its identity. Raises as `play`."""
        run_id = str(self.rest.post("/runs", spec)["run_id"])
        self._wait(
            lambda: self.rest.get(f"/runs/{run_id}")["round_number"] > 0, RUN_SECONDS, "a round must be committed"
        )
        return run_id

    @property
    def coordinator_pid(self) -> int:
        """Number of the coordinator's process."""
        return self._processes[COORDINATOR].pid

    def health(self) -> dict[str, Any]:
        """Return the coordinator's health, or nothing while it does not answer."""
        with contextlib.suppress(RestError):
            return dict(self.rest.get("/health"))
        return {}

    def close(self) -> None:
        """End every process: politely, then by force."""
        processes = list(self._processes.values())
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + _STOP_SECONDS
        for process in processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self, name: str, module: str, *arguments: str) -> None:
        with (self._folder / f"{name}.log").open("wb") as output:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=_REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def _state(self, path: str) -> str:
        return str(self.rest.get(path)["state"])

    def _wait(self, is_done: Callable[[], bool], seconds: float, rule: str) -> None:
        """Look now and then, seldom enough not to be measured, whether something is done."""
        deadline = time.monotonic() + seconds
        while not is_done():
            if time.monotonic() > deadline:
                raise self._failure(f"{rule} within {seconds:g} s, got no end")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._processes[COORDINATOR].wait(_LOOK_SECONDS)
            for name, process in self._processes.items():
                if process.poll() is not None:
                    raise self._failure(f"{name} must go on, got exit status {process.returncode}")

    def _failure(self, problem: str) -> FederationFailedError:
        logs = [(name, (self._folder / f"{name}.log").read_text(errors="replace")[-2000:]) for name in self._processes]
        return FederationFailedError(
            "\n".join([f"Choral: {problem}.", *(f"--- {name}\n{text}" for name, text in logs)])
        )


def _free_addresses(count: int) -> list[str]:
    """Pick ports that are free now; nothing holds them until the coordinator binds them."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [f"127.0.0.1:{open_socket.getsockname()[1]}" for open_socket in sockets]
