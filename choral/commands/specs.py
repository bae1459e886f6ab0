"""`choral spec`: whether a spec is sound."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from choral.commands.own import Own, add_all
from privacy.secagg.combinations import check_masking
from privacy.secagg.parameters import parameters_for
from wire.spec import RunSpec, read_spec

app = typer.Typer(no_args_is_help=True, help="Check run specs.\n\nExample: choral spec check run.yaml")


@app.command("check")
def check(path: Annotated[Path, typer.Argument(help="The spec, YAML or JSON.")], own: Own = None) -> None:
    """Check a run spec: its keys, values and combinations, the learner's parameters and the optimizers.

    Example: choral spec check run.yaml
    """
    # Here, because it imports torch.
    from models import check_spec

    add_all(own)
    spec = read_spec(path)
    check_spec(spec)
    check_masking(spec)
    cohort = spec.cohort.size or f"{spec.cohort.fraction:.0%} of the clients present"
    Console().print(
        f"{path}: sound. {spec.name}: learner {spec.learner.name}, up to {spec.rounds} rounds, cohort {cohort}, "
        f"quorum {spec.cohort.fewest}."
    )
    if spec.secure is not None:
        graph = parameters_for(spec.cohort.size or spec.cohort.fewest, spec.secure.corrupt_ppm, spec.secure.dropout_ppm)
        Console().print(
            f"Of {graph.client_count} clients in secure aggregation, {graph.corrupt_count} may conspire with the coordinator and "
            f"{graph.missing_count} may fall out once all are ready."
        )


@app.command("schema")
def schema() -> None:
    """Print the JSON Schema of a run spec.

    Example: choral spec schema > spec.schema.json
    """
    typer.echo(json.dumps(RunSpec.model_json_schema(), indent=2))
