"""What it costs a coordinator to be looked at: rounds with and without 200 viewers, and its REST API while rounds run.

Real processes on loopback: one coordinator with 200 runs in its store, clients that train no epochs, and those who look on
(`benchmarks.viewer_load`). Rounds without training are the shortest there are: whatever the viewers cost weighs most on them.
"""

import argparse
import asyncio
import itertools
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from benchmarks import machine
from benchmarks.federation import COORDINATOR, Federation, FederationFailedError
from benchmarks.round import TABLE_WIDTH
from benchmarks.viewers_figures import Asked, Result, Stretch, figures, tables
from tests.browser.seeding import add_clients, add_run, store_in

RUN_COUNT = 200
STORED_ROUNDS = 20
CLIENT_COUNT = 4
VIEWER_COUNT = 200

PAIRS = 4
"""Times that a stretch without viewers stands beside one with them."""

STRETCH_SECONDS = 5.0
SETTLE_SECONDS = 1.0
"""Time after a change before anything is counted, and time that the last events have to reach the viewers."""

RATE = 200.0
ASKED_TIMES = 3
SPEC: dict[str, Any] = {
    "name": "watched",
    "learner": {"name": "mlp", "inputs": [1, 8, 8], "hidden": [3495], "classes": 10},
    "rounds": 1_000_000,
    "cohort": {"size": CLIENT_COUNT, "retries": 0},
    "local": {"epochs": 0},
    "server": {"optimizer": {"name": "sgd", "learning_rate": 1.0, "weight_decay": 0.001}},
    "evaluate": {"every": 0},
}
"""As the small workload of `benchmarks.round`."""

MIX = (
    "/runs?order=newest&offset=0&limit=25",
    "/runs/{live}",
    "/runs/{live}/metrics?points=400",
    "/runs/{stored}/metrics?names=accuracy&points=40",
    "/runs/{live}/summaries?after=0&limit=50",
    "/runs?order=newest&offset=0&limit=25",
    "/runs/{live}",
    "/runs/{stored}/metrics?names=loss&points=400",
    "/clients?limit=50",
    "/health",
    "/runs?order=newest&offset=0&limit=25",
    "/runs/{live}",
    "/runs/{live}/metrics?points=400",
    "/runs/{stored}/metrics?names=accuracy&points=40",
    "/runs/{live}/rounds/1/timeline",
    "/runs?order=newest&offset=0&limit=25",
    "/runs/{stored}/summaries?after=0&limit=50",
    "/runs/{stored}/metrics?names=accuracy&points=40",
    "/events?limit=200&order=newest",
    "/runs/{live}/participation?limit=10",
)
"""What dashboards ask for, in turn: the list of runs with its curves, the page of the run that is played, clients and health."""


class Load:
    """A process of those who look on. Use as a context manager."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.viewer_load", *arguments],
            cwd=Path(__file__).resolve().parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Load":
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise FederationFailedError("Those who look on: must be connected, got an end.")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def end(self) -> Any:
        """Let them leave, and return what they saw."""
        output, _ = self._process.communicate(timeout=60.0)
        if self._process.returncode:
            raise FederationFailedError("Those who look on: must go on to their end, got a failure.")
        return json.loads(output)


class Watch:
    """Measures stretches of one run."""

    def __init__(self, federation: Federation, run_id: str) -> None:
        self._federation = federation
        self._run_id = run_id
        self._process = psutil.Process(federation.coordinator_pid)

    def quiet(self) -> Stretch:
        """Measure a stretch in which nobody looks on."""
        return self._stretch(STRETCH_SECONDS)

    def viewed(self) -> tuple[Stretch, int]:
        """Measure a stretch with viewers. Returns the fewest rounds that one of them was told of."""
        with Load("watch", self._federation.http_address, str(VIEWER_COUNT)) as load:
            stretch = self._stretch(STRETCH_SECONDS)
            time.sleep(SETTLE_SECONDS)
            return stretch, load.end()["fewest"]

    def asked(self, stored: Sequence[str]) -> tuple[Stretch, Asked]:
        """Measure a stretch in which the REST API is asked."""
        ids = itertools.cycle(stored)
        paths = [path.format(live=self._run_id, stored=next(ids)) for _ in range(len(stored)) for path in MIX]
        seconds = STRETCH_SECONDS + 2 * SETTLE_SECONDS
        with Load("ask", self._federation.http_address, str(RATE), str(seconds), *paths) as load:
            stretch, found = self._stretch(STRETCH_SECONDS), load.end()
        answers = [(MIX[place % len(MIX)], seconds) for place, seconds in found["answered"]]
        return stretch, Asked(answers, [seconds for _, seconds in found["late"]])

    def _stretch(self, seconds: float) -> Stretch:
        time.sleep(SETTLE_SECONDS)
        before, began = self._cpu_seconds(), time.time()
        time.sleep(seconds)
        return Stretch(began, time.time(), self._cpu_seconds() - before)

    def _cpu_seconds(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def end(self) -> list[float]:
        """Stop the run and return when each of its rounds ended, in order."""
        path, ends = f"/runs/{self._run_id}", list[float]()
        self._federation.rest.post(f"{path}/stop")
        while page := self._federation.rest.get(f"{path}/summaries", after=len(ends), limit=1000):
            ends += [summary["ended_time"] for summary in page]
        return ends


def measure() -> Result:
    """Measure everything.

    Raises:
        FederationFailedError: A process ended, too few rounds were played, or a viewer missed one. All processes have ended.
    """
    with tempfile.TemporaryDirectory(prefix="choral-viewers-") as name:
        folder = Path(name)
        (folder / COORDINATOR).mkdir()
        stored = asyncio.run(seed(folder / COORDINATOR))
        with Federation(folder) as federation:
            federation.join(CLIENT_COUNT)
            watch = Watch(federation, federation.begin(SPEC))
            pairs = []
            for number in range(PAIRS):
                # Who comes first changes, so that neither gains by a drift.
                if number % 2:
                    viewed, quiet = watch.viewed(), watch.quiet()
                else:
                    quiet, viewed = watch.quiet(), watch.viewed()
                pairs.append((quiet, *viewed))
            stall = federation.health()["longest_stall_seconds"]
            asked = [watch.asked(stored) for _ in range(ASKED_TIMES)]
            ends = watch.end()
    for _, stretch, told in pairs:
        if told < (played := len(stretch.rounds(ends))):
            raise FederationFailedError(f"Viewers: each must be told of all {played} rounds, got one with {told}.")
    return Result([pair[:2] for pair in pairs], [one for one, _ in asked], [one for _, one in asked], ends, stall)


async def seed(folder: Path) -> list[str]:
    """Write runs into the store of a coordinator that is not there yet, and return the identities of some."""
    store = await store_in(folder)
    await add_clients(store)
    run_ids = [await add_run(store, number, STORED_ROUNDS) for number in range(RUN_COUNT)]
    await store.close()
    return run_ids[-25:]


def main() -> None:
    """Read the command line, measure, print the tables and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.viewers", description="Time rounds that are looked at.")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    # So that a polite end, too, ends the processes that were started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console() if sys.stdout.isatty() else Console(width=TABLE_WIDTH)
    console.print(machine.describe(), highlight=False)
    with console.status(f"{CLIENT_COUNT} clients, {VIEWER_COUNT} viewers"):
        result = measure()
    for table in tables(result, VIEWER_COUNT, RATE):
        console.print(table)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures(result), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
