"""A federation of real processes on loopback, for tests: one coordinator, some clients, and what kills them."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import load_file

from choral.commands.runs import all_rounds
from choral.rest import Rest, RestError
from privacy.keys import load_identity
from server.checkpoints import checkpoint_path
from tests.forked import Forked
from wire.identity import client_id_of

HERE = Path(__file__).parent
START_SECONDS = 90.0
POLL_SECONDS = 0.02

Value = TypeVar("Value")


def free_port() -> int:
    """Return a port that is free on loopback, below those that the system deals out: nobody takes it while its owner is away."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def wait_until(condition: Callable[[], Value | None], what: str, seconds: float = START_SECONDS) -> Value:
    """Return the first true value of `condition`; fail when none comes within the bound."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(POLL_SECONDS)
    return value


def tensor_bytes(path: Path) -> bytes:
    """Return the tensors of a safetensors file as bytes, in the order of their names."""
    tensors = load_file(path)
    return b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))


class Process:
    """One process with its output in a file. Every process is ended by its own id."""

    def __init__(self, arguments: list[str], log: Path, is_forked: bool = False) -> None:
        """Start a program; a forked one is Python and has torch already, see forked.py."""
        self.log = log
        self._file = log.open("ab")
        folder = str(HERE.parent)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": folder}
        if is_forked:
            assert arguments[0] == sys.executable
            self._process: subprocess.Popen[bytes] | Forked = Forked(arguments[1:], str(log), folder, environment)
            return
        self._process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=self._file,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment,
        )

    @property
    def pid(self) -> int:
        """Identity of the process."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def close(self) -> None:
        """Kill it if it still runs, and close its log."""
        if self.is_alive:
            self._process.kill()
            self._process.wait()
        self._file.close()

    @property
    def output(self) -> str:
        """What it has printed."""
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """kill -9, and wait for the end."""
        self.close()

    def end(self) -> int:
        """Ask it to end, and return its exit code; kill it when it does not."""
        if self.is_alive:
            self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._file.close()
        return code

    def interrupt(self) -> None:
        """Ctrl-C."""
        self._process.send_signal(signal.SIGINT)

    def pause(self) -> None:
        """Hold it where it is until `resume`."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    def wait(self, seconds: float = START_SECONDS) -> int:
        """Wait for it to end by itself and return its exit code."""
        return self._process.wait(seconds)


def finished(
    arguments: list[str], log: Path, seconds: float = START_SECONDS, is_forked: bool = True
) -> tuple[int, str]:
    """Run Python with arguments to its end; return its exit code and all that it printed."""
    process = Process([sys.executable, *arguments], log, is_forked)
    try:
        return process.wait(seconds), process.output
    finally:
        process.close()


class Federation:
    """One coordinator and its clients in a folder. Use as a context manager: whatever still runs is ended."""

    def __init__(self, folder: Path, *coordinator_options: str) -> None:
        self.folder = folder
        self.address = f"127.0.0.1:{free_port()}"
        self.http_address = f"127.0.0.1:{free_port()}"
        self.rest = Rest(f"http://{self.http_address}")
        self.python = [sys.executable]
        """What runs the coordinator; see slim.py for one without torch."""
        self.coordinator: Process | None = None
        self.clients: dict[str, Process] = {}
        self._options = coordinator_options
        self._processes: list[Process] = []

    def __enter__(self) -> "Federation":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.close()
        self.rest.close()

    @property
    def coordinator_folder(self) -> Path:
        """Where the coordinator keeps its state."""
        return self.folder / "coordinator"

    def client_id(self, name: str) -> str:
        """Return a client's identity, from its key."""
        key = load_identity(self.folder / name / "identity.pem")
        return client_id_of(key.public_key().public_bytes_raw())

    def model_bytes(self, run_id: str) -> bytes:
        """Return the tensors of a run's last model as bytes, in the order of their names."""
        run = self.run(run_id)
        return tensor_bytes(checkpoint_path(self.coordinator_folder / "runs" / run_id, run["round_number"]))

    def start_coordinator(self, *faults: str, wait: bool = True) -> Process:
        """Start the coordinator; with faults, one that kills itself at a moment (see faulty_coordinator.py)."""
        program = [str(HERE / "faulty_coordinator.py"), *faults] if faults else ["-m", "choral"]
        arguments = ["serve", "--folder", str(self.folder / "coordinator")]
        addresses = ["--listen", self.address, "--http", self.http_address]
        command = [*self.python, *program, *arguments, *addresses, *self._options]
        self.coordinator = self._start(command, "coordinator.log", is_forked=self.python == [sys.executable])
        if wait:
            coordinator = self.coordinator
            wait_until(lambda: self.is_healthy() or not coordinator.is_alive, "the coordinator to start")
            assert coordinator.is_alive, coordinator.output
        return self.coordinator

    def start_client(self, name: str, data: str, *options: str, fault: str = "") -> Process:
        """Start a client; its key and models lie in a folder of its name. With a fault, see faulty_client.py."""
        program = [str(HERE / "faulty_client.py"), fault] if fault else ["-m", "choral"]
        folder = ["--folder", str(self.folder / name), "--name", name, "--threads", "1"]
        command = [sys.executable, *program, "join", self.address, "--data", data, *folder, *options]
        self.clients[name] = self._start(command, f"{name}.log", is_forked=True)
        return self.clients[name]

    def start_digits_clients(self, count: int) -> None:
        """Start clients that hold one form block each and come back soon."""
        for block in range(count):
            self.start_client(f"site-{block}", f"digits,blocks={block}", fault="never")

    def is_healthy(self) -> bool:
        """Whether the REST API answers."""
        try:
            return bool(self.rest.get("/health")["status"] == "ok")
        except RestError:
            return False

    def wait_for_clients(self, count: int) -> None:
        """Wait until so many clients have a session."""
        wait_until(lambda: self.rest.get("/health")["client_count"] == count, f"{count} clients")

    def submit(self, spec: dict[str, Any]) -> str:
        """Submit a run and return its identity."""
        return str(self.rest.post("/runs", spec)["run_id"])

    def run(self, run_id: str) -> dict[str, Any]:
        """Return a run."""
        return dict(self.rest.get(f"/runs/{run_id}"))

    def rounds(self, run_id: str) -> list[dict[str, Any]]:
        """Return all rounds of a run."""
        return all_rounds(self.rest, run_id)

    def wait_for_end(self, run_id: str, state: str = "finished", seconds: float = START_SECONDS) -> dict[str, Any]:
        """Wait until a run has a state, and return it; the coordinator may be away in between."""

        def ended() -> dict[str, Any] | None:
            try:
                run = self.run(run_id)
            except RestError:
                return None
            return None if run["state"] in ("queued", "running") else run

        run = wait_until(ended, f"run {run_id} to be {state}", seconds)
        assert run["state"] == state, run["status"]
        return run

    def _start(self, command: list[str], log: str, is_forked: bool) -> Process:
        process = Process(command, self.folder / log, is_forked)
        self._processes.append(process)
        return process
