"""`choral models` and `choral spec`: what there is to run, and whether a spec is sound."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from models import MODELS, check_spec
from wire.spec import RunSpec, read_spec

app = typer.Typer(no_args_is_help=True, help="Check run specs.\n\nExample: choral spec check run.yaml")


@app.command("check")
def check(path: Annotated[Path, typer.Argument(help="The spec, YAML or JSON.")]) -> None:
    """Check a run spec: its keys, values and combinations, the learner's parameters and the optimizers.

    Example: choral spec check run.yaml
    """
    spec = read_spec(path)
    check_spec(spec)
    cohort = spec.cohort.size or f"{spec.cohort.fraction:.0%} of the clients present"
    Console().print(
        f"{path}: sound. {spec.name}: learner {spec.learner.name}, up to {spec.rounds} rounds, cohort {cohort}, "
        f"quorum {spec.cohort.fewest}."
    )


@app.command("schema")
def schema() -> None:
    """Print the JSON Schema of a run spec.

    Example: choral spec schema > spec.schema.json
    """
    typer.echo(json.dumps(RunSpec.model_json_schema(), indent=2))


def models(as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False) -> None:
    """List the learners and their parameters.

    Example: choral models
    """
    if as_json:
        typer.echo(json.dumps({name: _described(name) for name in MODELS}, indent=2))
        return
    console = Console()
    for name, model in MODELS.items():
        table = Table(title=f"[bold]{name}[/bold]: {model.summary}", title_justify="left", expand=True)
        for heading in ("parameter", "type", "default", "meaning"):
            table.add_column(heading, no_wrap=heading == "parameter")
        for parameter, row in _described(name)["parameters"].items():
            table.add_row(parameter, row["type"], json.dumps(row["default"]), row["meaning"])
        console.print(table)


def _described(name: str) -> dict[str, Any]:
    model = MODELS[name]
    schema = model.parameters.model_json_schema()
    parameters = {
        key: {"type": _type(value), "default": value.get("default"), "meaning": value.get("description", "")}
        for key, value in schema["properties"].items()
    }
    return {"summary": model.summary, "parameters": parameters}


def _type(schema: dict[str, Any]) -> str:
    """Return a type and its range in words, such as "integer, at least 1"."""
    if "enum" in schema:
        return " or ".join(map(str, schema["enum"]))
    text = str(schema.get("type", "any"))
    if "items" in schema:
        text = f"list of {_type(schema['items'])}"
    ranges = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    return ", ".join([text, *(f"{words} {schema[key]:g}" for key, words in ranges.items() if key in schema)])
