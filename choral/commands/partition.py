"""`choral partition`: deal one data set to clients, and see what each of them gets."""

from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from client.data import load, load_keys, parse_source
from models.learner import Examples
from simulation import partition as partitions
from simulation.classes import class_counts, class_skew
from simulation.partition import Partition
from simulation.picture import draw_partition
from simulation.schemes import ByKey, parse_scheme


def partition(
    data: Annotated[str, typer.Option(help="The data: KIND[:PATH][,key=value...], as for choral join.")],
    scheme: Annotated[
        str,
        typer.Option(
            "--partition",
            help="iid; by-key; dirichlet,alpha=A[,over=clients]; shards,per_client=K; or power-law,exponent=E. "
            "All take minimum=M, the fewest examples of a client. Series are dealt by-key alone.",
        ),
    ] = "iid",
    clients: Annotated[int | None, typer.Option(help="Clients; by-key without it: one for each key.")] = None,
    seed: Annotated[
        int, typer.Option(help="Seed of every draw. That of a run spec shows what choral simulate deals.")
    ] = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture: .png, .svg or .pdf.")] = Path(
        "partition.png"
    ),
) -> None:
    """Deal one data set to the clients of a simulation, and draw clients by classes; their sizes alone where there are no classes.

    Example: choral partition --data digits --clients 20 --partition dirichlet,alpha=0.3 --seed 7 --output partition.png
    """
    chosen = parse_scheme(scheme)
    source = parse_source(data)
    examples = load(source)
    keys = load_keys(source) if isinstance(chosen, ByKey) else None
    parts = partitions.partition(examples, chosen, clients, seed, keys)
    title = f"{chosen}\n{_counted(len(parts.rows), 'client')} of {source.name}, seed {seed}"
    draw_partition(output, examples, parts, title)
    _show(Console(), examples, parts)
    typer.echo(f"{output}: the picture")


def _show(console: Console, examples: Examples, parts: Partition) -> None:
    """Print a line of totals and a table of what a client has."""
    found = class_counts(examples, parts)
    totals = [_counted(len(parts.rows), "client"), _counted(len(examples), "example")]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    for heading in ("per client", "min", "median", "max"):
        table.add_column(heading, justify="left" if heading == "per client" else "right", no_wrap=True)
    table.add_row("examples", *_spread(parts.sizes))
    if found is not None:
        classes, counts = found
        table.add_row("classes", *_spread((counts > 0).sum(axis=1)))
        totals += [_counted(len(classes), "class", "es"), f"class skew {class_skew(counts):.2f} (0 alike, 1 apart)"]
    console.print(", ".join(totals), highlight=False, markup=False, soft_wrap=True)
    console.print(table)


def _spread(values: npt.NDArray[np.int64]) -> tuple[str, str, str]:
    return str(values.min()), f"{np.median(values):g}", str(values.max())


def _counted(count: int, noun: str, plural: str = "s") -> str:
    return f"{count} {noun}{plural * (count != 1)}"
