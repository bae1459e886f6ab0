"""The demo's processes: a coordinator and clients on loopback, each ended by its own identity whatever happens."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import choral
from choral.demo.errors import DemoError
from choral.rest import Rest, RestError
from privacy.keys import load_identity
from privacy.officer import Office

END_SECONDS = 2.0
"""Time that processes have to take their leave; then they are killed. Nothing that they keep is needed any more."""

LOG_LINES = 8
"""Lines of a log that an error shows."""

HOME = Path(choral.__file__).resolve().parent.parent
"""Where Choral's packages lie. Processes start here, so that no file of the user's can hide one of them."""


class Process:
    """`choral` with arguments, its output in a file."""

    def __init__(self, name: str, arguments: list[str], log: Path) -> None:
        """Start it. `name` is what errors call it."""
        self.name = name
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "choral", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=HOME,
                env=_environment(),
            )

    @property
    def pid(self) -> int:
        """Its identity."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether it runs no more."""
        return self._process.poll() is not None

    def check(self) -> None:
        """Raise `DemoError` with the last lines of its log if it has ended."""
        if (code := self._process.poll()) is not None:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
            reason = f"exit code {code}" if code >= 0 else f"signal {-code}"
            raise DemoError(
                f"{self.name}: process must run until the demo ends it, got {reason}. "
                f"The last lines of {self.log}:\n" + "\n".join(f"  {line}" for line in lines or ["(nothing)"])
            )

    def ask_to_end(self) -> None:
        """Send SIGTERM if it still runs."""
        if not self.has_ended:
            self._process.send_signal(signal.SIGTERM)

    def wait(self, seconds: float) -> None:
        """Wait for its end, at most so long."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)

    def kill(self) -> None:
        """End it at once if it still runs."""
        if not self.has_ended:
            self._process.kill()
            self._process.wait()


class Federation:
    """A coordinator and its clients. A context manager: leaving it ends every process, whatever the reason."""

    def __init__(self, state: Path, logs: Path) -> None:
        """Prepare a federation; nothing starts yet.

        Args:
            state: Empty folder for keys, models and the store.
            logs: Folder for what the processes print; logs of an earlier demo are removed.
        """
        self._state = state.resolve()
        self._logs = logs.resolve()
        self._address, http_address = _free_addresses()
        self._http_address = http_address
        self._coordinator: Process | None = None
        self.rest = Rest(f"http://{http_address}")
        self.clients: list[Process] = []
        self._lost: list[Process] = []
        self._roster: list[str] = []
        self._logs.mkdir(parents=True, exist_ok=True)
        for log in (*self._logs.glob("client-*.log"), self._logs / "coordinator.log"):
            log.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        processes = [*self.clients, *([self._coordinator] if self._coordinator else [])]
        try:
            for process in processes:
                process.ask_to_end()
            deadline = time.monotonic() + END_SECONDS
            for process in processes:
                process.wait(max(0.0, deadline - time.monotonic()))
        finally:
            for process in processes:
                process.kill()
            self.rest.close()

    def enrol(self, client_count: int) -> None:
        """Make a roster of the coordinator and so many clients, which they are then started with: as an officer would, in one go."""
        office = Office(self._state / "office")
        office.begin("demo")
        (self._state / "coordinator").mkdir()
        coordinator = load_identity(self._state / "coordinator" / "coordinator.pem")
        office.set_coordinator(coordinator.public_key().public_bytes_raw().hex())
        for client in range(client_count):
            name = f"client-{client}"
            key = load_identity(self._state / name / "identity.pem")
            office.add(name, key.public_key().public_bytes_raw().hex())
        self._roster = ["--roster", str(office.roster_path)]

    def start_coordinator(self) -> None:
        """Start the coordinator on free ports; `is_healthy` tells when it serves."""
        addresses = ["--listen", self._address, "--http", self._http_address]
        arguments = ["serve", "--folder", str(self._state / "coordinator"), *addresses, *self._roster]
        with _held_signals():
            self._coordinator = Process("Coordinator", arguments, self._logs / "coordinator.log")

    def start_client(self, block: int, held_out: float) -> None:
        """Start the client that holds one form block of the digits, and holds a part of it out for evaluation."""
        name = f"client-{block}"
        data = ["--data", f"digits,blocks={block}", "--held-out", str(held_out)]
        own = ["--folder", str(self._state / name), "--name", name, "--device", "cpu", "--threads", "1"]
        arguments = ["join", self._address, *data, *own, *self._roster]
        with _held_signals():
            self.clients.append(Process(f"Client {block}", arguments, self._logs / f"{name}.log"))

    def is_healthy(self) -> bool:
        """Tell whether the coordinator answers. Raises `DemoError` when it has ended."""
        self.check_coordinator()
        with contextlib.suppress(RestError):
            return bool(self.rest.get("/health")["status"] == "ok")
        return False

    def joined_count(self) -> int:
        """Return how many clients are connected. Raises `DemoError` when a process has ended."""
        self.check_coordinator()
        for client in self.clients:
            client.check()
        return int(self.rest.get("/health")["client_count"])

    def newly_lost(self) -> list[Process]:
        """Return the clients that have ended since this was last asked."""
        lost = [client for client in self.clients if client.has_ended and client not in self._lost]
        self._lost += lost
        return lost

    def check_coordinator(self) -> None:
        """Raise `DemoError` when the coordinator has ended."""
        if self._coordinator is not None:
            self._coordinator.check()


@contextlib.contextmanager
def _held_signals() -> Iterator[None]:
    """Let Ctrl-C and its like wait: a process that has begun and is not known here yet would be ended by nobody."""
    held: list[int] = []
    # What is ignored, as after nohup, the new process must ignore, too.
    numbers = [one for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) != signal.SIG_IGN]
    before = {number: signal.signal(number, lambda came, _: held.append(came)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if held:
        signal.raise_signal(held[0])


def _environment() -> dict[str, str]:
    """Return this process's environment without what would change the demo: a token, and proxies between two ends of loopback."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("CHORAL_")}
    return {key: value for key, value in kept.items() if not key.lower().endswith("_proxy")}


def _free_addresses() -> tuple[str, str]:
    """Return two addresses on loopback whose ports are free."""
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        return f"127.0.0.1:{first.getsockname()[1]}", f"127.0.0.1:{second.getsockname()[1]}"
