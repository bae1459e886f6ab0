"""`choral models`: what there is to train, what each learner takes, and whether a learner of one's own is sound."""

import json
import logging
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from choral.commands.own import Own, add_all
from client.data import load, parse_source
from client.device import choose_device
from models import LearnerError, add_own, build_learner, learners
from models.catalogue import about_learner, default_in_words, described_parameters, first_spec
from models.examples import example_of
from models.own import path_of
from models.zoo import MODELS, Model
from wire.errors import ChoralError
from wire.spec import RunSpec, read_spec

app = typer.Typer(help="List the learners, show one, check one of your own.\n\nExample: choral models")


@app.callback(invoke_without_command=True)
def models(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
    own: Own = None,
) -> None:
    """List the learners: what they are for, how large, and which engines of a simulation can train them.

    Example: choral models
    """
    add_all(own)
    if context.invoked_subcommand:
        return
    rows = {name: described(name, model) for name, model in learners().items()}
    if as_json:
        full = {name: {**row, "step_bytes": step_bytes(name)} for name, row in rows.items()}
        typer.echo(json.dumps(full, indent=2))
        return
    console = Console(highlight=False)
    console.print("  learner  what it is\n    parameters  engines  task · data", style="dim")
    for name, row in rows.items():
        count = f"{row['parameter_count']:,}" if row["parameter_count"] else "not here"
        engines = "".join(engine[0] for engine in row["engines"])
        _print_line(console, f"  [bold]{name}[/bold]  {escape(row['summary'])}")
        _print_line(console, f"    {count:>10}  {engines:7}  {escape(row['task'])} · {escape(row['data'])}", "dim")
    console.print("Engines: s serial, p processes, r ray, v vectorized.", style="dim")
    for name, row in rows.items():
        if row["needs"]:
            console.print(f"{name}: {escape(row['needs'])}")
    console.print(
        "\nchoral models show NAME: what it takes.  choral models spec NAME > run.yaml: a spec to begin with."
    )


def _print_line(console: Console, text: str, style: str = "") -> None:
    """Print one line, cut where the terminal ends."""
    console.print(text, style=style, no_wrap=True, overflow="ellipsis")


@app.command("show")
def show(name: Annotated[str, typer.Argument(help="A learner's name.")], own: Own = None) -> None:
    """Show a learner: what it is, its parameters with defaults and ranges, and a spec to copy.

    Example: choral models show cnn
    """
    add_all(own)
    model = _known(name)
    console = Console()
    console.print(f"[bold]{name}[/bold]: {escape(model.summary)}\n")
    console.print(escape(model.explanation), highlight=False, soft_wrap=True)
    table = Table("parameter", "type", "default", "meaning", expand=True)
    for parameter, row in described_parameters(model).items():
        table.add_row(parameter, escape(row["type"]), escape(default_in_words(row)), escape(row["meaning"]))
    console.print(table)
    if size := step_bytes(name):
        console.print(f"Memory: a step of the spec below takes about {size:,} bytes beside the model and the data.\n")
    console.print("A spec to copy, as run.yaml; its first line is the command that runs it:\n")
    typer.echo(_spec_text(name))


@app.command("spec")
def spec(name: Annotated[str, typer.Argument(help="A learner's name.")], own: Own = None) -> None:
    """Print a spec that trains a learner, to begin with.

    Example: choral models spec cnn > run.yaml
    """
    add_all(own)
    _known(name)
    typer.echo(_spec_text(name), nl=False)


@app.command("check")
def check(
    learner: Annotated[str, typer.Argument(help="PATH:CLASS of a learner of your own, or a learner's name.")],
    data: Annotated[
        str | None,
        typer.Option(help="Data that suits it: KIND[:PATH][,key=value...]. Default: its example's, or digits."),
    ] = None,
    spec_path: Annotated[
        Path | None,
        typer.Option("--spec", help="A spec that trains it. Default: its default parameters, SGD 0.1, batches of 16."),
    ] = None,
    device: Annotated[str, typer.Option(help="Where it trains: auto, cpu, cuda, cuda:N or mps.")] = "auto",
) -> None:
    """Check that a learner does what every learner must: the checks that the zoo's own pass.

    Example: choral models check ./mine.py:MyLearner --data digits
    """
    from choral.conformance import CHECKS, Nonconforming, case_of

    name = add_own(learner) if ":" in learner else learner
    example = example_of(name) if name in MODELS else None
    first = first_spec(name)
    checked = read_spec(spec_path) if spec_path else first
    case = case_of(checked, data or (example.source if example else "digits"), choose_device(device))
    if case.spec.learner.name != name:
        raise LearnerError(f"Spec {spec_path}: learner must be {name}, got {case.spec.learner.name}.")
    for quiet in ("client", "server"):
        logging.getLogger(quiet).setLevel(logging.WARNING)
    torch.set_num_threads(1)
    failed = 0
    for rule, run in CHECKS.items():
        try:
            run(case)
            typer.echo(f"ok      {rule}")
        except Nonconforming as error:
            failed += 1
            typer.echo(f"FAILED  {rule}: {error}")
        except Exception as error:  # noqa: BLE001 - a learner of the user's may raise anything
            failed += 1
            typer.echo(f"FAILED  {rule}: {type(error).__name__}: {error}")
    typer.echo(f"{name}: {len(CHECKS) - failed} of {len(CHECKS)} checks passed.")
    if failed:
        raise typer.Exit(1)


def described(name: str, model: Model) -> dict[str, Any]:
    """Return what `choral models --json` says of a learner, but for the memory of a step."""
    about = asdict(about_learner(name, model))
    vectorized = [] if _against(first_spec(name)) else ["vectorized"]
    return {**about, "engines": ["serial", "processes", "ray", *vectorized], "parameters": described_parameters(model)}


def step_bytes(name: str) -> int:
    """Return the bytes that a step of a learner's example takes beside the model and the data; 0 without an example, or what it needs."""
    if name not in MODELS:
        return 0
    example = example_of(name)
    try:
        return build_learner(example.spec.learner).step_bytes(load(parse_source(example.source)), example.spec.local)
    except (ChoralError, ImportError):
        return 0


def _known(name: str) -> Model:
    if (model := (known := learners()).get(name)) is None:
        raise LearnerError(f"Learner: name must be one of {', '.join(sorted(known))}, got {name!r}.")
    return model


def _spec_text(name: str) -> str:
    """Return a spec to save as run.yaml anywhere; its first line runs it there."""
    if name in MODELS:
        return example_of(name).saved_as("run.yaml")
    parts = first_spec(name).model_dump(mode="json", exclude_unset=True)
    source = path_of(name)
    command = ["choral", "simulate", "run.yaml", *(["--learner", source] if source else [])]
    first = f"# {shlex.join([*command, '--data', 'digits', '--clients', '2'])}\n# Take data that suits it.\n"
    # JSON is YAML too.
    return first + "".join(f"{key}: {json.dumps(value)}\n" for key, value in parts.items())


def _against(spec: RunSpec) -> str:
    from simulation.reasons import reason_against

    try:
        return reason_against(spec, torch.device("cpu"))
    except (LearnerError, ImportError) as error:
        return str(error)
