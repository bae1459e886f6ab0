"""`choral simulate`: a whole federation in this process, from the spec that a deployment would run."""

import logging
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from choral.commands.own import Own, add_all
from choral.trackers import MLflowAddress, TensorBoardFolder, TrackedSimulation, chosen
from server.records import RoundRecord
from simulation.history import seconds_of, simulated_seconds_of
from simulation.simulate import RESULTS
from simulation.simulate import simulate as play
from wire.spec import read_spec


def simulate(
    spec: Annotated[Path, typer.Argument(help="The run spec, as for choral submit.")],
    clients: Annotated[int | None, typer.Option(help="Clients; by-key without it: one for each key.")] = None,
    partition: Annotated[str, typer.Option(help="How the data is dealt to them; see choral partition --help.")] = "iid",
    data: Annotated[str, typer.Option(help="The data: KIND[:PATH][,key=value...], as for choral join.")] = "digits",
    engine: Annotated[
        str,
        typer.Option(
            help="serial (the reference), vectorized (many clients at a time), processes (a worker for each core or GPU), "
            "ray (workers on a cluster), or auto, which chooses and says why."
        ),
    ] = "auto",
    held_out: Annotated[
        float, typer.Option(help="Part of each client's data that is held out, as by choral join.")
    ] = 0.2,
    own_data: Annotated[
        str | None, typer.Option("--own-data", help="The coordinator's own data, for evaluate.on: coordinator.")
    ] = None,
    folder: Annotated[Path, typer.Option("--folder", help="Where state and results go.")] = Path("simulated"),
    device: Annotated[str, typer.Option(help="Where clients train: auto, cpu, cuda, cuda:N or mps.")] = "auto",
    threads: Annotated[
        int | None,
        typer.Option(
            help="Threads for training on a CPU, of each worker. Default: 1, for vectorized one for each core."
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Workers of processes and ray. Default: one for each core or GPU.")
    ] = None,
    block: Annotated[
        str,
        typer.Option(
            help="Most clients that vectorized trains at a time, a number, or auto: as many as fit into memory."
        ),
    ] = "auto",
    ray_address: Annotated[
        str | None, typer.Option(help="A Ray cluster to join. Default: one of its own on this machine.")
    ] = None,
    tensorboard: TensorBoardFolder = None,
    mlflow: MLflowAddress = "",
    own: Own = None,
) -> None:
    """Simulate a federation on this machine. Cut off, the same command goes on from the last round.

    Example: choral simulate run.yaml --clients 100 --partition dirichlet,alpha=0.3
    """
    # Rounds are shown here one by one: the log need not tell of each again.
    logging.getLogger("server.rounds").setLevel(logging.WARNING)
    add_all(own)
    most = _most_clients(block)
    total = read_spec(spec).rounds
    tracked = TrackedSimulation(chosen(tensorboard, mlflow), read_spec(spec), folder)
    console = Console()
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("reading the data, then round 1", total=total)

        def show(record: RoundRecord) -> None:
            line = f"round {record.number}: {_sentence(record)}"
            tracked.add(record)
            progress.update(bar, completed=record.number, description=line)
            if not console.is_terminal:
                typer.echo(line)

        setting: dict[str, object] = {"data": data, "clients": clients, "partition": partition, "engine": engine}
        setting |= {"held_out": held_out, "own_data": own_data, "device": device, "threads": threads}
        setting |= {"block": most, "workers": workers, "ray_address": ray_address}
        try:
            result = play(spec, folder, show, **setting)
        except KeyboardInterrupt:
            typer.echo(f"Interrupted. The same command goes on from the last round in {folder}.", err=True)
            raise
        progress.update(bar, total=len(result.rounds))
    tracked.end(result.run, result.folder / "model.safetensors")
    reason = f" {result.run.reason}" if result.run.reason else ""
    seconds = sum(map(seconds_of, result.rounds))
    typer.echo(f"{len(result.rounds)} of {total} rounds in {seconds:.1f} s.{reason}")
    if result.run.spec.simulation is not None:
        simulated = timedelta(seconds=round(sum(map(simulated_seconds_of, result.rounds))))
        typer.echo(f"On the simulation's clock they took {simulated}.")
    typer.echo(f"In {folder}: {', '.join(RESULTS)}.")


def _most_clients(block: str) -> int | None:
    if block != "auto" and not block.isdecimal():
        raise typer.BadParameter(f"--block must be a number of clients or auto, got {block!r}.")
    return None if block == "auto" else int(block)


def _sentence(record: RoundRecord) -> str:
    count = len(record.contributions)
    asked = len(record.selected)
    clients = ("" if count == asked else f"{count} of ") + f"{asked} client{'s' * (asked != 1)}"
    metrics = {name: value for name, value in record.metrics.items() if not name.startswith(("refused_", "train_"))}
    shown = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in metrics.items()]
    refused = [f"{len(record.refusals)} refused"] if record.refusals else []
    simulated = [f"{seconds:.0f} simulated s"] if (seconds := simulated_seconds_of(record)) else []
    return ", ".join([clients, *refused, *shown, *simulated, f"{seconds_of(record):.2f} s"])
