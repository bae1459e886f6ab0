"""Peers in processes of their own: started with an interpreter of one's choice, watched, and ended with all they started.

A peer's module prints a `PeerResult` as the last line of its output, and finds this repository on its path.
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.peer_result import PeerResult

_REPOSITORY = Path(__file__).resolve().parents[1]
_SAMPLE_SECONDS = 0.1
_STOP_SECONDS = 10.0
_IS_INSTALLED = "import importlib.util, sys; sys.exit(not all(map(importlib.util.find_spec, sys.argv[1:])))"


class PeerMissingError(RuntimeError):
    """A peer is not installed in the environment that was asked for. Nothing was started."""


class PeerFailedError(RuntimeError):
    """A peer was started and did not finish its rounds. Its processes have ended."""


@contextlib.contextmanager
def exit_on_error() -> Iterator[None]:
    """End this process with a peer's error on stderr and without a traceback; for command lines."""
    # So that a polite end, too, ends the processes that were started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    except (PeerMissingError, PeerFailedError) as error:
        sys.exit(str(error))


@dataclass(frozen=True, slots=True)
class Peer:
    """How a peer is run.

    Attributes:
        module: Its module here, whose `main` is called.
        packages: What must be installed for it, as it is imported.
        requirement: What `pip install` must be given for it.
        environment: Variables it gets beside those of this process. "{home}" stands for a temporary folder.
    """

    name: str
    module: str
    packages: Sequence[str] = ()
    requirement: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    def is_installed(self, python: str) -> bool:
        """Whether `python`, an interpreter's path, has what this peer needs."""
        with contextlib.suppress(OSError):
            return subprocess.run([python, "-c", _IS_INSTALLED, *self.packages], capture_output=True).returncode == 0
        return False

    def run(self, python: str, arguments: Sequence[str], timeout_seconds: float, processes: int = 1) -> PeerResult:
        """Run the peer to its end, and return what its first process printed, with the memory of all of them.

        Args:
            python: Interpreter of the environment that the peer is installed in.
            arguments: Command line of the module. "{rank}" stands for the number of the process.
            timeout_seconds: Limit for everything.
            processes: Processes of the module, which find each other.

        Raises:
            PeerMissingError: The peer is not installed there. Nothing was started.
            PeerFailedError: A process failed, printed no result or ran out of time. All processes have ended.
        """
        line, peak_bytes = self._finished(python, arguments, timeout_seconds, processes)
        try:
            result = PeerResult(**json.loads(line))
        except (TypeError, ValueError) as error:
            raise self.no_result(line) from error
        return dataclasses.replace(result, rss_mb=max(result.rss_mb, peak_bytes / 1e6))

    def last_line(self, python: str, arguments: Sequence[str], timeout_seconds: float) -> str:
        """Run a peer that has a result of another kind to its end, and return the last line that it printed; see `run`."""
        return self._finished(python, arguments, timeout_seconds, 1)[0]

    def no_result(self, line: str) -> PeerFailedError:
        """Return the error for a last line of output that is no result."""
        return PeerFailedError(f"{self.name}: the last line of output must be a result, got {line[:200]!r}.")

    def _finished(
        self, python: str, arguments: Sequence[str], timeout_seconds: float, processes: int
    ) -> tuple[str, int]:
        """Return the last line that the first process printed, and the peak of the memory of all of them in bytes."""
        if not self.is_installed(python):
            raise PeerMissingError(
                f"{self.name}: {', '.join(self.packages)} must be installed beside the interpreter, got {python}. Run"
                f" `pip install '{self.requirement}'` there, or in an environment of its own whose interpreter you then name."
            )
        # A short path: Ray's sockets lie below it.
        with (
            tempfile.TemporaryDirectory(prefix="peer-") as home,
            contextlib.closing(_Family(self, Path(home), time.monotonic() + timeout_seconds)) as family,
        ):
            for rank in range(processes):
                family.start(python, rank, [argument.replace("{rank}", str(rank)) for argument in arguments])
            return family.finish()


@dataclass(slots=True)
class _Family:
    """A peer's processes and their descendants, and a folder for what they write."""

    peer: Peer
    home: Path
    deadline: float
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _descendants: set[psutil.Process] = field(default_factory=set)

    def start(self, python: str, rank: int, arguments: Sequence[str]) -> None:
        environment = {name: value.replace("{home}", str(self.home)) for name, value in self.peer.environment.items()}
        module = self.peer.module
        with (self.home / f"{rank}.out").open("wb") as output, (self.home / f"{rank}.log").open("wb") as log:
            self._processes.append(
                subprocess.Popen(
                    # Imported and not run as __main__, so that what it hands to other processes goes by its name.
                    [python, "-c", f"import {module}; {module}.main()", *arguments],
                    cwd=self.home,
                    env={**os.environ, "PYTHONPATH": str(_REPOSITORY), **environment},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=log,
                    start_new_session=True,
                )
            )

    def finish(self) -> tuple[str, int]:
        """Wait until all processes have ended, and return the first one's last line and the peak of their memory in bytes."""
        peak_bytes = 0
        while any(process.poll() is None for process in self._processes):
            if time.monotonic() > self.deadline:
                raise self._failure("the run must end before the timeout, got no end")
            peak_bytes = max(peak_bytes, self._sample())
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._processes[0].wait(timeout=_SAMPLE_SECONDS)
            self._check()
        self._check()
        lines = (self.home / "0.out").read_text().splitlines()
        if not lines:
            raise self._failure("the last line of output must be a result, got none")
        return lines[-1], peak_bytes

    def _sample(self) -> int:
        """Return the resident memory of all processes in bytes."""
        family = _family(self._processes)
        self._descendants |= family
        return sum(map(_resident_bytes, family))

    def _check(self) -> None:
        if failed := [process.returncode for process in self._processes if process.poll()]:
            raise self._failure(f"each process must end with exit status 0, got {failed[0]}")

    def _failure(self, problem: str) -> PeerFailedError:
        logs = [(path.name, path.read_text(errors="replace")[-3000:]) for path in sorted(self.home.glob("*.log"))]
        return PeerFailedError(
            "\n".join([f"{self.peer.name}: {problem}.", *(f"--- {name}\n{text}" for name, text in logs)])
        )

    def close(self) -> None:
        """End every process that was started and every process that those started."""
        family = self._descendants | _family(self._processes)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        _, alive = psutil.wait_procs(family, timeout=_STOP_SECONDS)
        for survivor in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                survivor.kill()
        for started in self._processes:
            started.wait()


def _family(processes: Sequence[subprocess.Popen[bytes]]) -> set[psutil.Process]:
    """Return the processes that run, and their descendants."""
    family: set[psutil.Process] = set()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(process.pid)
            family |= {root, *root.children(recursive=True)}
    return family


def _resident_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
