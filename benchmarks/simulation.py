"""Simulations beside their peers: local steps a second, time to the first round and memory, on the cores of this machine.

Each measurement is one fresh process. What is compared trains the same model on the same clients with the same steps, and is measured in
turn; `benchmarks/simulation_figures.py` says what is compared with what.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import contenders, first_round, flower_simulation, machine, pfl_simulation, population
from benchmarks.contenders import Contender, Key, Place, Spread, Value, automatic, in_turn
from benchmarks.peer_process import Peer, PeerFailedError
from benchmarks.peer_result import PeerResult
from benchmarks.population import PopulationResult
from benchmarks.simulation_figures import FIRST_ROUNDS, Figure, Results, contenders_of, figures, flat, summary
from benchmarks.simulation_workloads import WORKLOADS

ROUNDS: Mapping[str, int] = {"digits-cnn": 101, "digits-cnn-100": 31, "digits-mlp": 201, "pfl-cifar": 3}
REPEATS: Mapping[str, int] = {"digits-cnn": 3, "digits-cnn-100": 3, "digits-mlp": 7, "pfl-cifar": 4}
"""By workload."""

FIRST_ROUND_REPEATS = 3
POPULATIONS = (100, 1_000, 10_000)
POPULATION_ROUNDS = 21
POPULATION_REPEATS = 3
PARTS = ("first-round", *WORKLOADS, "population")

TABLE_WIDTH = 110
"""Columns of the output where no terminal says how many there are."""


@dataclass(slots=True)
class Bench:
    """Measures what is wanted, and says what it is at.

    Attributes:
        repeats: Measurements of each; None for as many as each part has by itself.
        has_failed: Whether something could not be measured.
    """

    console: Console
    place: Place
    wanted: Collection[str]
    repeats: int | None = None
    has_failed: bool = field(default=False, init=False)

    def first_rounds(self) -> dict[str, list[float]]:
        """Return the seconds to the first round, by figure."""
        engines = {name: engine for name, (engine, _) in FIRST_ROUNDS.items()}
        return self._in_turn(
            "first-round", engines, lambda name: first_round.measure(engines[name]), FIRST_ROUND_REPEATS
        )

    def workloads(self) -> dict[str, dict[Contender, list[PeerResult]]]:
        """Return all measurements of each contender, by workload."""
        return {
            name: self._in_turn(
                name,
                [contender for contender in contenders_of(name) if self.place.has(contender)],
                partial(contenders.measure, workload=workload, rounds=ROUNDS[name], place=self.place),
                REPEATS[name],
            )
            for name, workload in WORKLOADS.items()
        }

    def populations(self) -> dict[int, list[PopulationResult]]:
        """Return all measurements of each population, by its clients."""
        measure = partial(population.measure, rounds=POPULATION_ROUNDS, folder=self.place.folder)
        return self._in_turn("population", POPULATIONS, measure, POPULATION_REPEATS)

    def _in_turn(
        self, part: str, keys: Iterable[Key], measure: Callable[[Key], Value], repeats: int
    ) -> dict[Key, list[Value]]:
        """Measure a part, if it is wanted."""
        if part not in self.wanted:
            return {}
        with self.console.status(part) as status:

            def measure_shown(key: Key) -> Value:
                status.update(f"{part}: {_title(key)}")
                return measure(key)

            return in_turn(keys, measure_shown, self.repeats or repeats, self._tell)

    def _tell(self, key: object, error: PeerFailedError) -> None:
        self.has_failed = True
        self.console.print(f"{_title(key)} is left out. {error}", markup=False, highlight=False)


def workload_table(results: Results) -> Table:
    """Return what was measured of each contender."""
    table = _empty_table("workload", "contender", "steps/s", "lowest to highest", "start", "peak RSS")
    for name, measured in results.items():
        title, automatically = name, automatic(WORKLOADS[name])
        for contender, repeats in measured.items():
            steps, start, memory = summary(repeats).values()
            assert steps is not None
            assert start is not None
            assert memory is not None
            mark = " (auto)" if contender == automatically else ""
            spread = f"{steps.low:,.0f} to {steps.high:,.0f}"
            own = [f"{steps.value:,.0f}", spread, f"{start.value:.1f} s", f"{memory.value:,.0f} MB"]
            table.add_row(title, contender.title + mark, *own)
            title = ""
        table.add_section()
    return table


def figure_table(found: Iterable[Figure]) -> Table:
    """Return the figures that were measured, and their targets."""
    table = _empty_table("figure", "measured", "lowest to highest", "target", "")
    for figure in found:
        if figure.measured is None:
            continue
        mark = {None: "", True: "[green]met[/green]", False: "[red]missed[/red]"}[figure.is_met]
        unit, sign = (" s", "<=") if figure.is_seconds else ("x", ">=")
        value, low, high = figure.measured.value, figure.measured.low, figure.measured.high
        target = "" if figure.target is None else f"{sign} {figure.target:g}{unit}"
        table.add_row(figure.name, f"{value:.2f}{unit}", f"{low:.2f} to {high:.2f}{unit}", target, mark)
    return table


def population_table(results: Mapping[int, Sequence[PopulationResult]]) -> Table:
    """Return what was measured of each population."""
    table = _empty_table("population", "round", "lowest to highest", "RSS after round 1", "20 rounds later", "its data")
    for count, repeats in results.items():
        rounds = Spread.of([1000 * result.round_seconds for result in repeats])
        result = population.median(repeats)
        table.add_row(
            f"{count:,} clients",
            f"{rounds.value:.0f} ms",
            f"{rounds.low:.0f} to {rounds.high:.0f} ms",
            f"{result.rss_mb:,.0f} MB",
            f"{result.growth_mb:+,.0f} MB",
            f"{result.data_mb:,.1f} MB",
        )
    return table


def _empty_table(*columns: str) -> Table:
    table = Table(*columns)
    for column in table.columns:
        column.no_wrap = True
    return table


def _title(key: object) -> str:
    match key:
        case Contender():
            return key.title
        case int():
            return f"{key:,} clients"
    return str(key)


def _installed(peer: Peer, python: str, is_left_out: bool, console: Console) -> str | None:
    """Return the interpreter of a peer, or None if it is left out or not installed there."""
    if is_left_out or peer.is_installed(python):
        return None if is_left_out else python
    console.print(f"{peer.name} is not installed beside {python}: measured without it.", highlight=False)
    return None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulation", description="Time simulations.")
    parser.add_argument("--only", default=",".join(PARTS), help=f"among {', '.join(PARTS)}, separated by commas")
    parser.add_argument("--without-flower", action="store_true", help="leave Flower out")
    parser.add_argument("--flower-python", default=sys.executable, help="interpreter that flwr is installed beside")
    parser.add_argument("--without-pfl", action="store_true", help="leave pfl-research out")
    parser.add_argument("--pfl-python", default=sys.executable, help="interpreter that pfl is installed beside")
    parser.add_argument("--repeats", type=int, choices=range(1, 100), metavar="N", help="measurements of each")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    arguments.only = arguments.only.split(",")
    if unknown := set(arguments.only) - set(PARTS):
        parser.error(f"--only must be among {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    return arguments


def main() -> None:
    """Read the command line, measure, print the tables and write the figures."""
    arguments = _arguments()
    # So that a polite end, too, ends the processes that were started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # The peers would take a GPU by themselves.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    console = Console() if sys.stdout.isatty() else Console(width=TABLE_WIDTH)
    console.print(machine.describe(), highlight=False)
    with tempfile.TemporaryDirectory(prefix="choral-simulation-") as folder:
        place = Place(
            Path(folder),
            _installed(flower_simulation.PEER, arguments.flower_python, arguments.without_flower, console),
            _installed(pfl_simulation.PEER, arguments.pfl_python, arguments.without_pfl, console),
        )
        bench = Bench(console, place, arguments.only, arguments.repeats)
        first_rounds, results, populations = bench.first_rounds(), bench.workloads(), bench.populations()
    found = figures(results, first_rounds)
    tables = [
        (any(results.values()), workload_table(results)),
        (any(figure.measured for figure in found), figure_table(found)),
        (bool(populations), population_table(populations)),
    ]
    for has_rows, table in tables:
        if has_rows:
            console.print(table)
    console.print(machine.describe(), highlight=False)
    if arguments.json is not None:
        values = {figure.name: None if figure.measured is None else figure.measured.value for figure in found}
        values |= flat(results) | population.flat({count: populations.get(count, ()) for count in POPULATIONS})
        arguments.json.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    if bench.has_failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
