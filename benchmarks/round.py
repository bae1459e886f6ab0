"""Rounds without training: what the service itself costs, beside a bare gRPC stream and Flower in deployment mode.

Real processes on loopback: one coordinator, and clients that train no epochs, so a round is the model going down, a
contribution of the same size coming up, the exact sum, the server step, the checkpoint and the commit. The server step
decays the weights a little: every round has a model of its own, which every client has to download.
"""

import argparse
import itertools
import json
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import flower_deployment, machine, stream
from benchmarks.federation import Federation, FederationFailedError
from benchmarks.flower_deployment import FlowerResult

INPUTS = [1, 8, 8]
CLASSES = 10
STREAM_CLIENTS = 8
"""Most clients for which the stream and Flower are measured too: both start at least a process for each."""

TABLE_WIDTH = 110
"""Columns of the output where no terminal says how many there are."""

FLOWER_ROUNDS = 4
FLOWER_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Workload:
    """One federation and its run.

    Attributes:
        hidden: Widths of the model's hidden layers; they decide its size.
        rounds: Rounds that are counted; one more goes before them.
        clients_per_process: 1 starts `choral join` for each client, more starts `benchmarks.crowd`.
    """

    name: str
    client_count: int
    hidden: Sequence[int]
    rounds: int
    clients_per_process: int = 1

    @property
    def byte_count(self) -> int:
        """Size of the model, and of a contribution, in bytes."""
        widths = [INPUTS[1] * INPUTS[2], *self.hidden, CLASSES]
        return 4 * sum(width * following + following for width, following in itertools.pairwise(widths))

    @property
    def spec(self) -> dict[str, Any]:
        """The run's spec."""
        return {
            "name": f"round-{self.name}",
            "learner": {"name": "mlp", "inputs": INPUTS, "hidden": list(self.hidden), "classes": CLASSES},
            "rounds": 1 + self.rounds,
            "cohort": {"size": self.client_count, "retries": 0},
            "local": {"epochs": 0},
            "server": {"optimizer": {"name": "sgd", "learning_rate": 1.0, "weight_decay": 0.001}},
            "evaluate": {"every": 0},
        }


WORKLOADS = (
    Workload("small", client_count=4, hidden=[3495], rounds=30),
    Workload("large", client_count=4, hidden=[1018] * 25, rounds=5),
    Workload("wide", client_count=64, hidden=[3495], rounds=5, clients_per_process=16),
)


@dataclass(frozen=True, slots=True)
class Rounds:
    """What the coordinator said of a run.

    Attributes:
        seconds: Median from the end of one round to the end of the next.
        phase_seconds: Median of each phase of a round.
        rss_over_idle_mb: Peak memory less that of the same coordinator before its first run, in MB (10^6 bytes).
        stall_seconds: Longest time that the event loop was busy with one thing, from its start on.
    """

    seconds: float
    phase_seconds: Mapping[str, float]
    rss_over_idle_mb: float
    stall_seconds: float


@dataclass(frozen=True, slots=True)
class Result:
    """Everything that was measured of one workload. What was not run is None."""

    workload: Workload
    rounds: Rounds
    stream_seconds: float | None
    flower: FlowerResult | None


def measure(workload: Workload, flower_python: str | None) -> Result:
    """Measure a workload: stream, rounds, stream again, Flower.

    Raises:
        FederationFailedError: A process ended, or the rounds were not what they must be. All processes have ended.
    """
    has_peers = workload.client_count <= STREAM_CLIENTS
    before = _stream_seconds(workload) if has_peers else []
    rounds = _play(workload)
    streams = before + (_stream_seconds(workload) if has_peers else [])
    flower = None
    if has_peers and flower_python is not None:
        count, size = workload.client_count, workload.byte_count
        flower = flower_deployment.measure(count, size, FLOWER_ROUNDS, FLOWER_SECONDS, flower_python)
    return Result(workload, rounds, statistics.mean(streams) if streams else None, flower)


def figures(results: Mapping[str, Result]) -> dict[str, float | None]:
    """Return what `--json` writes, by name."""
    small, large, wide = (results.get(name) for name in ("small", "large", "wide"))
    stalls = [result.rounds.stall_seconds for result in results.values()]
    return {
        "small_round_seconds": small.rounds.seconds if small else None,
        "small_flower_seconds": small.flower.round_seconds if small and small.flower else None,
        "large_round_seconds": large.rounds.seconds if large else None,
        "large_stream_seconds": large.stream_seconds if large else None,
        "large_flower_seconds": large.flower.round_seconds if large and large.flower else None,
        "large_rss_over_idle_mb": large.rounds.rss_over_idle_mb if large else None,
        "wide_round_seconds": wide.rounds.seconds if wide else None,
        "loop_stall_seconds": max(stalls, default=None),
    }


def _stream_seconds(workload: Workload) -> list[float]:
    return [stream.measure(workload.client_count, workload.byte_count, workload.rounds)]


def _play(workload: Workload) -> Rounds:
    with tempfile.TemporaryDirectory(prefix="choral-round-") as folder, Federation(Path(folder)) as federation:
        federation.join(workload.client_count, workload.clients_per_process)
        idle = federation.health()
        records = federation.play(workload.spec)
        health = federation.health()
    _check(records, workload)
    counted = records[1:]
    ends = [record["ended_time"] for record in records]
    phases = {
        name: statistics.median(record["phase_seconds"][name] for record in counted)
        for name in counted[0]["phase_seconds"]
    }
    return Rounds(
        seconds=statistics.median(end - start for start, end in itertools.pairwise(ends)),
        phase_seconds=phases,
        rss_over_idle_mb=(health["peak_rss_bytes"] - idle["rss_bytes"]) / 1e6,
        stall_seconds=health["longest_stall_seconds"],
    )


def _check(records: Sequence[Mapping[str, Any]], workload: Workload) -> None:
    """Check that every round moved what it is said to have moved."""
    sizes = {tuple(part["byte_count"] for part in record["contributions"]) for record in records}
    models = {record["model_sha256"] for record in records}
    if sizes != {(workload.byte_count,) * workload.client_count} or len(models) != 1 + workload.rounds:
        raise FederationFailedError(
            f"Choral: each of {1 + workload.rounds} rounds must have {workload.client_count} contributions of"
            f" {workload.byte_count} bytes and a model of its own, got contributions {sizes} and {len(models)} models."
        )


def _table(results: Sequence[Result]) -> Table:
    table = Table("workload", "figure", "measured", "ratio", "target", "")
    for column in table.columns:
        column.no_wrap = True
    for result in results:
        workload = result.workload
        title = f"{workload.client_count} clients, {workload.byte_count / 1e6:.0f} MB"
        for figure, value, ratio, target, is_met in _rows(result):
            mark = "" if is_met is None else "[green]met[/green]" if is_met else "[red]missed[/red]"
            table.add_row(title, figure, value, ratio, target, mark)
            title = ""
        table.add_section()
    return table


def _rows(result: Result) -> Iterator[tuple[str, str, str, str, bool | None]]:
    """Yield figure, value, ratio, target, and whether it is met."""
    rounds, name, seconds = result.rounds, result.workload.name, result.rounds.seconds
    limit = {"small": 0.05, "wide": 1.5}.get(name)
    yield "round, median", _s(seconds), "", f"<= {limit:g} s" if limit else "", seconds <= limit if limit else None
    if result.stream_seconds is not None:
        ratio, is_large = seconds / result.stream_seconds, name == "large"
        target = ("<= 1.5x", ratio <= 1.5) if is_large else ("", None)
        yield "bare gRPC stream", _s(result.stream_seconds), f"{ratio:.2f}x of it", *target
    if result.flower is not None:
        ratio, is_small = result.flower.round_seconds / seconds, name == "small"
        target = (">= 100x", ratio >= 100) if is_small else ("", None)
        yield "Flower 1.41", _s(result.flower.round_seconds), f"{ratio:.0f}x as fast", *target
    is_large, over = name == "large", rounds.rss_over_idle_mb
    target = ("< 600 MB", over < 600) if is_large else ("", None)
    yield "coordinator, peak RSS over idle", f"{over:.0f} MB", "", *target
    if result.flower is not None:
        yield "Flower's server side, RSS", f"{result.flower.server_rss_mb:.0f} MB", "", "", None
    stall = rounds.stall_seconds
    yield "event loop, longest stall", f"{1000 * stall:.0f} ms", "", "<= 50 ms", stall <= 0.05
    for phase, part in rounds.phase_seconds.items():
        yield f"  of a round: {phase}", _s(part), f"{100 * part / seconds:.0f} %", "", None


def _s(seconds: float) -> str:
    return f"{seconds:.3f} s"


def _flower_python(arguments: argparse.Namespace, console: Console) -> str | None:
    if arguments.without_flower:
        return None
    if flower_deployment.is_installed(arguments.flower_python):
        return str(arguments.flower_python)
    console.print(f"Flower is not installed beside {arguments.flower_python}: measured without it.", highlight=False)
    return None


def main() -> None:
    """Read the command line, measure, print the table and write the figures."""
    names = [workload.name for workload in WORKLOADS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.round", description="Time rounds without training.")
    parser.add_argument("--only", default=",".join(names), help="workloads, separated by commas; default: all")
    parser.add_argument("--without-flower", action="store_true", help="leave Flower out")
    parser.add_argument("--flower-python", default=sys.executable, help="interpreter that flwr is installed beside")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    wanted = arguments.only.split(",")
    if unknown := set(wanted) - set(names):
        parser.error(f"--only must be among {', '.join(names)}, got {', '.join(sorted(unknown))}")
    # So that a polite end, too, ends the processes that were started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console() if sys.stdout.isatty() else Console(width=TABLE_WIDTH)
    flower_python = _flower_python(arguments, console)
    console.print(machine.describe(), highlight=False)
    results = {}
    for workload in WORKLOADS:
        if workload.name in wanted:
            with console.status(f"{workload.name}: {workload.client_count} clients"):
                results[workload.name] = measure(workload, flower_python)
    console.print(_table(list(results.values())))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures(results), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
