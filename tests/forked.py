"""Python programs in processes that are forked from one that has torch and the zoo already, because importing them takes seconds each time.

They are processes as others are: with an id, signals, files and memory of their own, and everything but that import is theirs.
"""

import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import signal
import subprocess
import sys
import traceback
from functools import cache
from multiprocessing.context import ForkServerContext

import pytest

PRELOADED = ["choral.cli", "client.agent", "server.coordinator", "torch._dynamo", "uvicorn.protocols.http.h11_impl"]
"""None of them starts a thread or opens a connection, which a child would lack.

torch's compiler is what the first step of an optimizer imports, which takes half as long as torch itself.
"""


@cache
def _context() -> ForkServerContext:
    """Return what forks, from a process that torch gave one thread: more would not be there after a fork."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        multiprocessing.forkserver.ensure_running()
    return context


def run(arguments: list[str], log: str, folder: str, environment: dict[str, str]) -> None:
    """Run a program as `python ARGUMENTS` would, in this process: "-m MODULE ...", "-c CODE ..." or "SCRIPT ..."."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (sys.__stdout__.fileno(), sys.__stderr__.fileno()):  # type: ignore[union-attr]
        os.dup2(descriptor, number)
    os.close(descriptor)
    # As in a terminal, even where what started the tests ignores it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path.insert(0, folder)
    try:
        _run(arguments)
    except KeyboardInterrupt:
        # As Python's own main does, so that who waits for it sees the signal.
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)


def _run(arguments: list[str]) -> None:
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        exec(arguments[1], {"__name__": "__main__"})
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


class Forked:
    """A program that was forked. It is used as a `subprocess.Popen` is."""

    def __init__(self, arguments: list[str], log: str, folder: str, environment: dict[str, str]) -> None:
        self._process = _context().Process(target=run, args=(arguments, log, folder, environment))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Return the exit code; None while it runs."""
        return self._process.exitcode

    def wait(self, seconds: float | None = None) -> int:
        """Wait for its end and return the exit code. Raises `subprocess.TimeoutExpired`."""
        self._process.join(seconds)
        if (code := self._process.exitcode) is None:
            raise subprocess.TimeoutExpired(["forked"], seconds or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """kill -9."""
        self.send_signal(signal.SIGKILL)
