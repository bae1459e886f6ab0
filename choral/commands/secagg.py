"""`choral secagg`: what secure aggregation will need, before anyone runs it."""

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from choral.tables import table_of
from privacy.errors import SecureAggregationError
from privacy.secagg.costs import Load, Speeds, client_load, coordinator_load, measure_speeds, vector_bytes_of
from privacy.secagg.masks import RING_TYPES
from privacy.secagg.parameters import Parameters, parameters_for

app = typer.Typer(
    help="Plan secure aggregation.\n\nExample: choral secagg plan --clients 200 --corrupt 0.1 --dropout 0.1",
    no_args_is_help=True,
)


@app.command("plan")
def plan(
    clients: Annotated[int, typer.Option(help="Clients in a round.")],
    corrupt: Annotated[float, typer.Option(help="The part of them that may conspire with the coordinator, 0 to 1.")],
    dropout: Annotated[float, typer.Option(help="The part of them that may leave after sharing, 0 to below 1.")],
    parameters: Annotated[int, typer.Option(help="Parameters of the model.")] = 1_000_000,
    ring_bits: Annotated[int, typer.Option(help="Bits of an element: 16, 32 or 64.")] = 32,
    minimum_honest: Annotated[int, typer.Option(help="Honest clients that every opened sum must hold.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Print graph and threshold for a round, whom it bears, and what it costs; times are measured on this machine.

    Example: choral secagg plan --clients 200 --corrupt 0.1 --dropout 0.1
    """
    _check_sizes(parameters, ring_bits, minimum_honest)
    found = parameters_for(clients, _parts_per_million("corrupt", corrupt), _parts_per_million("dropout", dropout))
    if (fewest := found.fewest_survivors(minimum_honest)) > clients:
        raise SecureAggregationError(
            f"Secure aggregation of {clients} clients: client_count must be at least {fewest}, for {minimum_honest} "
            f"honest beside {found.corrupt_count} corrupt, got {clients}. Take more clients, or lower --minimum-honest."
        )
    vector_bytes, speeds = vector_bytes_of(parameters, ring_bits, clients), measure_speeds()
    loads = {"client": client_load(found, vector_bytes), "coordinator": coordinator_load(found, vector_bytes)}
    if as_json:
        costs = {
            party: {**asdict(load), "cpu_seconds": load.seconds(speeds, vector_bytes)} for party, load in loads.items()
        }
        sizes = {"fewest_survivors": fewest, "vector_bytes": vector_bytes}
        typer.echo(json.dumps({**asdict(found), **sizes, **costs, "measured_seconds": asdict(speeds)}, indent=2))
        return
    console = Console()
    _show_graph(console, found, minimum_honest)
    console.print(f"\nA round of {parameters:,} parameters in a ring of {ring_bits} bits:\n", highlight=False)
    _show_costs(console, loads, speeds, vector_bytes)
    console.print(f"\nThe coordinator's costs are with {found.missing_count} dropouts after sharing.", highlight=False)
    _show_speeds(console, speeds)


def _check_sizes(parameter_count: int, ring_bits: int, minimum_honest: int) -> None:
    if parameter_count < 1:
        problem = f"parameters must be 1 or more, got {parameter_count}"
    elif ring_bits not in RING_TYPES:
        problem = f"ring_bits must be one of {', '.join(map(str, RING_TYPES))}, got {ring_bits}"
    elif minimum_honest < 2:
        problem = f"minimum_honest must be 2 or more, got {minimum_honest}"
    else:
        return
    raise SecureAggregationError(f"Secure aggregation: {problem}. Change the option.")


def _parts_per_million(name: str, fraction: float) -> int:
    if not 0 <= fraction <= 1:
        raise SecureAggregationError(f"Secure aggregation: {name} must be 0 to 1, got {fraction:g}. Change the option.")
    return round(fraction * 1_000_000)


def _show_graph(console: Console, parameters: Parameters, minimum_honest: int) -> None:
    kind = "complete" if parameters.is_complete else "ring in a random order"
    fewest = parameters.fewest_survivors(minimum_honest)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_row("clients", f"{parameters.client_count}")
    table.add_row("graph", f"{kind}, {parameters.degree} neighbours each")
    table.add_row("threshold", f"{parameters.threshold} of {parameters.degree + 1} shares open a secret")
    table.add_row("corrupt clients", f"{parameters.corrupt_count} at most, with the coordinator")
    table.add_row("dropouts", f"{parameters.missing_count} at most, once the roster is fixed")
    table.add_row("survivors", f"{fewest} at least, {minimum_honest} or more of them honest")
    console.print(table, highlight=False)


def _show_costs(console: Console, loads: dict[str, Load], speeds: Speeds, vector_bytes: int) -> None:
    table = table_of("", *loads)
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("mask streams", *(f"{load.streams:,}" for load in loads.values()))
    table.add_row("agreed keys", *(f"{load.agreements:,}" for load in loads.values()))
    table.add_row("checked signatures", *(f"{load.verifications:,}" for load in loads.values()))
    table.add_row("MB sent", *(f"{load.sent_bytes / 1e6:,.2f}" for load in loads.values()))
    table.add_row("MB received", *(f"{load.received_bytes / 1e6:,.2f}" for load in loads.values()))
    table.add_row("CPU seconds", *(f"{load.seconds(speeds, vector_bytes):,.3f}" for load in loads.values()))
    console.print(table)


def _show_speeds(console: Console, speeds: Speeds) -> None:
    rates = [
        f"masks {1e-9 / speeds.mask_byte:.1f} GB/s",
        f"key {speeds.agreement * 1e6:.0f} us",
        f"signature {speeds.signature * 1e6:.0f} us",
        f"check {speeds.verification * 1e6:.0f} us",
    ]
    console.print("CPU seconds are of one core, by its speed measured here and now:", highlight=False)
    console.print(f"{', '.join(rates)}.", highlight=False)
    console.print("Left out: the model's download, Shamir's shares, sums of uploads, framing.", highlight=False)
