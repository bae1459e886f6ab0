"""Flower's round, for comparison: deployment mode on loopback, insecure, every setting at its default.

One `flower-superlink`, one `flower-supernode` per client and `flwr run` with the app in `flower_app/`, all in a
temporary home. Telemetry, the update check and the installation of an app's dependencies are off, so that nothing
leaves the machine.

Source: Beutel et al., "Flower: A Friendly Federated Learning Research Framework", arXiv 2020.
https://arxiv.org/abs/2007.14390 and https://flower.ai/docs/framework/
"""

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_APP = Path(__file__).resolve().parent / "flower_app"
_COMMANDS = ("flower-superlink", "flower-supernode", "flwr")
_SAMPLE_SECONDS = 0.25
_STOP_SECONDS = 10.0


class FlowerMissingError(RuntimeError):
    """Flower is not installed in the environment that was asked for."""


class FlowerFailedError(RuntimeError):
    """Flower was started and did not finish its rounds. Its processes have ended."""


@dataclass(frozen=True, slots=True)
class FlowerResult:
    """What was measured: seconds of a round, and the largest memory of the server side in MB (10^6 bytes).

    The server side is the SuperLink with its child processes, the ServerApp among them.
    """

    round_seconds: float
    server_rss_mb: float


def is_installed(python: str = sys.executable) -> bool:
    """Whether Flower's commands lie beside `python`, an interpreter's path."""
    return all((Path(python).parent / command).is_file() for command in _COMMANDS)


def measure(
    client_count: int, byte_count: int, rounds: int, timeout_seconds: float, python: str = sys.executable
) -> FlowerResult:
    """Run rounds of FedAvg between clients that train nothing.

    The ServerApp times its rounds itself. The first one, which also waits for the clients and installs the app, is left
    out when there are more.

    Args:
        client_count: SuperNodes, 1 or more; all of them take part in every round.
        byte_count: Size of the model, one float32 array, in bytes; 4 or more.
        rounds: Rounds to run, 1 or more.
        timeout_seconds: Limit for everything, starts included.
        python: Interpreter of the environment that Flower is installed in.

    Returns:
        Median over the rounds, and memory sampled four times a second.

    Raises:
        ValueError: An argument is below its range. Nothing was started.
        FlowerMissingError: Flower is not installed beside `python`. Nothing was started.
        FlowerFailedError: A process ended early, the run failed or time ran out. All processes have ended.
    """
    for name, value, least in (("client_count", client_count, 1), ("byte_count", byte_count, 4), ("rounds", rounds, 1)):
        if value < least:
            raise ValueError(f"Flower: {name} must be at least {least}, got {value}.")
    if not is_installed(python):
        raise FlowerMissingError(
            f"Flower: {', '.join(_COMMANDS)} must lie beside the interpreter, got {python}. Run"
            " `pip install flwr==1.41.0` there, or in an environment of its own whose interpreter you then name."
        )
    with (
        tempfile.TemporaryDirectory(prefix="choral-flower-") as home,
        contextlib.closing(_Deployment(Path(home), python, time.monotonic() + timeout_seconds)) as deployment,
    ):
        seconds, peak_bytes = deployment.run(client_count, byte_count, rounds)
    return FlowerResult(statistics.median(seconds[1:] or seconds), peak_bytes / 1e6)


@dataclass(slots=True)
class _Deployment:
    """Flower's processes, and a home directory for their configuration and logs."""

    home: Path
    python: str
    deadline: float
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _descendants: set[psutil.Process] = field(default_factory=set)

    def run(self, client_count: int, byte_count: int, rounds: int) -> tuple[list[float], int]:
        """Return the seconds of each round and the peak of the server side's memory in bytes."""
        port, *node_ports = _free_ports(1 + client_count)
        superlink = f"127.0.0.1:{port}"
        (self.home / "config.toml").write_text(
            f'[superlink]\ndefault = "loopback"\n\n[superlink.loopback]\naddress = "{superlink}"\ninsecure = true\n'
        )
        self._start("flower-superlink", "--insecure", "--disable-runtime-dependency-installation", "--port", str(port))
        self._wait_for_port(port)
        for number, node_port in enumerate(node_ports):
            partition = f"partition-id={number} num-partitions={client_count}"
            node = ["--insecure", "--superlink", superlink, "--port", str(node_port), "--node-config", partition]
            self._start("flower-supernode", *node, log=f"flower-supernode-{number}")
        result = self.home / "seconds.json"
        config = f"client-count={client_count} byte-count={byte_count} rounds={rounds} result-path='{result}'"
        self._start("flwr", "run", str(_APP), "--run-config", config, "--stream")
        peak_bytes = max(self._samples(), default=0)
        if not result.exists():
            raise self._failure("the run must write its figures, got none")
        return json.loads(result.read_text()), peak_bytes

    def _start(self, command: str, *arguments: str, log: str = "") -> None:
        scripts = Path(self.python).absolute().parent
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FLWR_")}
        environment |= {
            "HOME": str(self.home),
            "FLWR_HOME": str(self.home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            # Flower starts its own commands by name.
            "PATH": f"{scripts}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        }
        name = log or command
        with (self.home / f"{name}.log").open("wb") as output:
            self._processes[name] = subprocess.Popen(
                [scripts / command, *arguments],
                cwd=self.home,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _wait_for_port(self, port: int) -> None:
        while not self._is_over("flower-superlink"):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
                return
        raise self._failure("the SuperLink must serve its port, got an exit")

    def _samples(self) -> Iterator[int]:
        """Yield the server side's memory in bytes until `flwr run` has ended."""
        superlink = psutil.Process(self._processes["flower-superlink"].pid)
        while not self._is_over("flwr"):
            for name, process in self._processes.items():
                if name != "flwr" and process.poll() is not None:
                    raise self._failure(f"{name} must outlive the run, got exit status {process.returncode}")
            server_side = {superlink, *superlink.children(recursive=True)}
            self._descendants |= server_side
            yield sum(map(_resident_bytes, server_side))

    def _is_over(self, name: str) -> bool:
        """Wait for a moment, and tell whether a process has ended."""
        if time.monotonic() > self.deadline:
            raise self._failure("the run must end before the timeout, got no end")
        try:
            self._processes[name].wait(timeout=_SAMPLE_SECONDS)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _failure(self, problem: str) -> FlowerFailedError:
        logs = [(name, (self.home / f"{name}.log").read_text(errors="replace")[-2000:]) for name in self._processes]
        return FlowerFailedError("\n".join([f"Flower: {problem}.", *(f"--- {name}\n{text}" for name, text in logs)]))

    def close(self) -> None:
        """End every process that was started and every process that those started."""
        roots = [psutil.Process(process.pid) for process in self._processes.values() if process.poll() is None]
        family = self._descendants.union(roots, *(root.children(recursive=True) for root in roots))
        for root in roots:
            root.terminate()
        _, alive = psutil.wait_procs(family, timeout=_STOP_SECONDS)
        for survivor in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                survivor.kill()
        for process in self._processes.values():
            process.wait()


def _resident_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def _free_ports(count: int) -> list[int]:
    """Pick ports that are free now; nothing holds them until Flower binds them."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [open_socket.getsockname()[1] for open_socket in sockets]


def main() -> None:
    """Read the command line, measure and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flower_deployment", description="Time Flower's rounds.")
    parser.add_argument("--clients", type=int, default=4, help="SuperNodes")
    parser.add_argument("--bytes", type=int, default=1_000_000, help="size of the model")
    parser.add_argument("--rounds", type=int, default=3, help="rounds to run; the first is left out of the median")
    parser.add_argument("--timeout", type=float, default=300.0, help="limit for everything, in seconds")
    parser.add_argument("--python", default=sys.executable, help="interpreter that flwr is installed beside")
    arguments = parser.parse_args()
    result = measure(arguments.clients, arguments.bytes, arguments.rounds, arguments.timeout, arguments.python)
    print(
        f"{arguments.clients} clients, {arguments.bytes:,} bytes: {result.round_seconds:.2f} s a round,"
        f" {result.server_rss_mb:,.0f} MB on the server side"
    )


if __name__ == "__main__":
    main()
