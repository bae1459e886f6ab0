"""The command line. Errors are one sentence and an exit code; a traceback only with --debug."""

import logging
import sys
from typing import Annotated

import typer
from rich.console import Console

from choral.commands import api, certificates, enroll, runs, secagg, serve, specs, token
from choral.logs import is_json, log_text
from wire import RELEASE
from wire.errors import ChoralError
from wire.tensors import HAS_TORCH

log = logging.getLogger(__name__)

EXTRAS = {
    "torch": {"torch", "torchmetrics"},
    "client": {"PIL", "pyarrow", "tenacity"},
    "server": {"cachetools", "fastapi", "prometheus_client", "psutil", "redis", "starlette", "uvicorn"},
    "simulation": {"matplotlib"},
    "ray": {"ray"},
    "bayes": {"pgmpy"},
    "llm": {"peft", "transformers"},
    "tensorboard": {"tensorboard"},
    "mlflow": {"mlflow"},
}
"""Packages by the extra of Choral's that brings them, as they are imported. A test compares this with pyproject.toml."""

app = typer.Typer(
    name="choral",
    help="Train one model on data that stays where it is.\n\nExample: choral demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _lack_torch() -> None:
    raise ModuleNotFoundError("No module named 'torch'", name="torch")


app.command("serve")(serve.serve)
app.command("api")(api.api)
if HAS_TORCH:
    from choral.commands import attention, demo, encode, join, maps, partition, query, sample, simulate, zoo

    app.command("demo")(demo.demo)
    app.command("join")(join.join)
    app.command("simulate")(simulate.simulate)
    app.command("partition")(partition.partition)
    app.add_typer(zoo.app, name="models")
    app.command("sample")(sample.sample)
    app.command("query")(query.query)
    app.command("encode")(encode.encode)
    app.command("maps")(maps.maps)
    app.command("attention")(attention.attention)
else:
    # They cannot even be imported, and say what to install whatever they are given.
    _anything = {"allow_extra_args": True, "ignore_unknown_options": True}
    for _name in ("demo", "join", "simulate", "partition", "models", "sample", "query", "encode", "maps", "attention"):
        app.command(_name, help="Needs torch.", add_help_option=False, context_settings=_anything)(_lack_torch)
app.add_typer(enroll.app, name="enroll")
app.command("certificates")(certificates.certificates)
app.add_typer(token.app, name="token")
app.command("submit")(runs.submit)
app.add_typer(runs.app, name="runs")
app.command("clients")(runs.clients)
app.add_typer(specs.app, name="spec")
app.add_typer(secagg.app, name="secagg")


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"choral {RELEASE}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and debugging messages.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the release and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Take what holds for every command."""
    log_text(debug)


def main() -> None:
    """Run the command line."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        if is_json():
            log.error("%s", _explained(error))
        else:
            text = f"[red]Error:[/red] {_escaped(_explained(error))}"
            Console(stderr=True, soft_wrap=True).print(text, highlight=False)
        sys.exit(1)


def _explained(error: Exception) -> str:
    """Return an error as a sentence for the person who can mend it."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, ChoralError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        for extra, packages in EXTRAS.items():
            if package in packages:
                return f"Package {package}: must be installed, got none. Run pip install 'choral[{extra}]'."
    text = " ".join(str(error).split()).rstrip(".")
    return (
        f"Unexpected {type(error).__name__}{': ' * bool(text)}{text}. Run again with choral --debug for the traceback."
    )


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")
