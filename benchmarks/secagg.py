"""What secure aggregation costs a client and the coordinator, beside the memory traffic and the cipher that bound it, and beside Flower's.

Whole sessions are played, every message of every client, between this process and one for the coordinator. Time is CPU time, so that it is
that of one machine's core whatever else runs there. `benchmarks/secagg_figures.py` says what is compared with what.
"""

import argparse
import json
import signal
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import demo_ratio, flower_secagg, machine, mask_rates, secagg_session
from benchmarks.mask_rates import Rates
from benchmarks.peer_process import PeerFailedError
from benchmarks.secagg_figures import (
    CLIENT_COUNTS,
    MAIN,
    PARAMETER_COUNTS,
    Figure,
    Measured,
    cases,
    figures,
    rss_models,
)
from benchmarks.secagg_result import Case, SessionResult, median_result

MAIN_REPEATS = 3
"""Sessions of the case that most figures are of; the others are played once."""

RATE_REPEATS = 7
DEMO_REPEATS = 2
FLOWER_FULL_COUNTS: Mapping[Case, int] = {Case(10, 1_000_000, 1): 9, MAIN: 2}
"""The cases that Flower is measured at, and how many clients make all their masks."""

TABLE_WIDTH = 110
"""Columns of the output where no terminal says how many there are."""


def sessions(wanted: Iterable[Case], main_repeats: int, console: Console) -> dict[Case, SessionResult]:
    """Play every case, and the main one again at the end; return the medians."""
    found: dict[Case, list[SessionResult]] = {case: [] for case in wanted}
    with console.status("sessions") as status:
        for case in [*found, *[MAIN] * (main_repeats - 1)]:
            status.update(title(case))
            found[case].append(secagg_session.measure(case))
    return {case: median_result(results) for case, results in found.items()}


def peer_sessions(wanted: Collection[Case], python: str, console: Console) -> tuple[dict[Case, SessionResult], bool]:
    """Measure Flower at the cases that it is measured at and that are wanted; tell whether one of them failed, too."""
    found = {}
    cases_here = [case for case in FLOWER_FULL_COUNTS if case in wanted]
    with console.status("Flower") as status:
        for case in cases_here:
            status.update(f"Flower: {title(case)}")
            threshold = secagg_session.parameters_of(case).graph(case.client_count).threshold
            try:
                found[case] = flower_secagg.measure(case, threshold, FLOWER_FULL_COUNTS[case], python)
            except PeerFailedError as error:
                console.print(f"{title(case)} is left out. {error}", markup=False, highlight=False)
    return found, len(found) < len(cases_here)


def rate_table(rates: Mapping[int, Rates]) -> Table:
    """Return how fast masks are made, beside what bounds them."""
    columns = ("parameters", "masks added", "keystream", "memcpy", "memcpy of a vector", "masks / memcpy", "quantise")
    table = _empty_table(*columns)
    for count, rate in rates.items():
        speeds = [f"{speed / 1e9:.1f} GB/s" for speed in (rate.masks, rate.keystream, rate.memcpy, rate.vector_memcpy)]
        seconds = f"{1e3 * rate.quantise_seconds:.1f} ms"
        table.add_row(f"{count:,}", *speeds, f"{rate.masks_over_memcpy:.2f}", seconds)
    return table


def cpu_table(results: Mapping[Case, SessionResult], rates: Mapping[int, Rates]) -> Table:
    """Return the CPU time of each case, beside that of a copy and of the keystream of as many bytes as its masks have."""
    table = _empty_table(
        "parameters", "clients", "gone", "client", "memcpy", "keystream", "coordinator", "memcpy", "keystream"
    )
    for case, result in results.items():
        rate, row = rates[case.parameter_count], []
        for seconds, streams in (
            (result.client_total, case.client_streams),
            (result.coordinator_total, case.coordinator_streams),
        ):
            size = streams * case.vector_bytes
            row += [_seconds(seconds), _seconds(size / rate.memcpy), _seconds(size / rate.keystream)]
        table.add_row(f"{case.parameter_count:,}", str(case.client_count), str(case.gone_count), *row)
    return table


def traffic_table(results: Mapping[Case, SessionResult]) -> Table:
    """Return bytes of a client and the coordinator's memory."""
    columns = ("parameters", "clients", "gone", "vector", "client sends", "receives", "coordinator's RSS", "in vectors")
    table = _empty_table(*columns)
    for case, result in results.items():
        assert result.peak_bytes is not None
        sizes = (case.vector_bytes, result.sent_bytes, result.received_bytes, result.peak_bytes)
        models = rss_models(case, result)
        row = [f"{case.parameter_count:,}", str(case.client_count), str(case.gone_count), *map(_megabytes, sizes)]
        table.add_row(*row, f"{models:.2f}")
    return table


def stage_table(case: Case, result: SessionResult) -> Table:
    """Return where the time of one case goes."""
    table = _empty_table(f"{title(case)}: stage", "CPU")
    for who, seconds in (("client", result.client_seconds), ("coordinator", result.coordinator_seconds)):
        for stage, value in seconds.items():
            table.add_row(f"{who}: {stage}", f"{1e3 * value:.1f} ms")
        table.add_section()
    return table


def flower_table(results: Mapping[Case, SessionResult], peers: Mapping[Case, SessionResult]) -> Table:
    """Return Choral's and Flower's CPU time at the same cases."""
    table = _empty_table("case", "side", "Choral", "Flower", "ratio")
    for case, theirs in peers.items():
        ours = results[case]
        pairs = {
            "client": (ours.client_total, theirs.client_total),
            "coordinator": (ours.coordinator_total, theirs.coordinator_total),
        }
        for side, (our, their) in pairs.items():
            table.add_row(title(case), side, _seconds(our), _seconds(their), f"{their / our:.0f}x")
    return table


def figure_table(found: Iterable[Figure]) -> Table:
    """Return the figures that were measured, and their targets."""
    table = _empty_table("figure", "measured", "target", "")
    for figure in found:
        if figure.value is None:
            continue
        mark = {None: "", True: "[green]met[/green]", False: "[red]missed[/red]"}[figure.is_met]
        target = f"{'<=' if figure.is_limit else '>='} {figure.target:g}{figure.unit}"
        table.add_row(figure.name, f"{figure.value:.3g}{figure.unit}", target, mark)
    return table


def title(case: Case) -> str:
    """Return a case's name for people."""
    return f"{case.client_count} clients, {case.parameter_count:,} parameters, {case.gone_count} gone"


def _empty_table(*columns: str) -> Table:
    table = Table(*columns)
    for column in table.columns:
        column.no_wrap = True
    return table


def _seconds(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms" if seconds < 0.1 else f"{seconds:.2f} s"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.3f} MB"


def _flower_python(arguments: argparse.Namespace, console: Console) -> str | None:
    """Return the interpreter that Flower is installed beside, or None if it is left out or not installed there."""
    python = str(arguments.flower_python)
    if arguments.without_flower or flower_secagg.PEER.is_installed(python):
        return None if arguments.without_flower else python
    console.print(f"Flower is not installed beside {python}: measured without it.", highlight=False)
    return None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.secagg", description="Time secure aggregation.")
    parser.add_argument(
        "--quick", action="store_true", help="without the largest vectors and the larger half of Flower"
    )
    parser.add_argument("--without-flower", action="store_true", help="leave Flower out")
    parser.add_argument("--flower-python", default=sys.executable, help="interpreter that flwr is installed beside")
    parser.add_argument("--json", type=Path, help="file for the figures")
    return parser.parse_args()


def measure(arguments: argparse.Namespace, console: Console) -> Measured:
    """Measure what the command line asks for, and print each table as soon as it is measured."""
    parameter_counts = PARAMETER_COUNTS[:2] if arguments.quick else PARAMETER_COUNTS
    wanted = cases(CLIENT_COUNTS, parameter_counts)
    # Many processes that may fail come first, so that no long measurement is lost with them.
    with console.status("the digits demo"):
        ratio = demo_ratio.measure(1 if arguments.quick else DEMO_REPEATS)
    with console.status("rates"):
        rates = {count: mask_rates.Bench(count).measure(RATE_REPEATS) for count in parameter_counts}
    console.print(rate_table(rates))
    found = sessions(wanted, 1 if arguments.quick else MAIN_REPEATS, console)
    for table in (cpu_table(found, rates), traffic_table(found), stage_table(MAIN, found[MAIN])):
        console.print(table)
    python = _flower_python(arguments, console)
    peers = [case for case in wanted if not arguments.quick or case.client_count < MAIN.client_count]
    flower, has_failed = peer_sessions(peers, python, console) if python else ({}, False)
    if flower:
        console.print(flower_table(found, flower))
    return Measured(found, rates, flower, ratio, has_failed)


def main() -> None:
    """Read the command line, measure, print the tables and write the figures."""
    arguments = _arguments()
    # So that a polite end, too, ends the processes that were started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console() if sys.stdout.isatty() else Console(width=TABLE_WIDTH)
    console.print(machine.describe(), highlight=False)
    measured = measure(arguments, console)
    found = figures(measured)
    console.print(figure_table(found))
    console.print(machine.describe(), highlight=False)
    if arguments.json is not None:
        values = {figure.name: figure.value for figure in found}
        arguments.json.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    if measured.has_failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
