"""`choral submit`, `choral runs` and `choral clients`: submit, watch and steer runs over the REST API."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table

from choral.rest import Rest, RestError
from models import check_spec
from wire.spec import read_spec

WATCH_SECONDS = 0.5

app = typer.Typer(no_args_is_help=True, help="Watch and steer runs.\n\nExample: choral runs list")

Url = Annotated[str, typer.Option("--url", envvar="CHORAL_URL", help="The coordinator's REST API.")]
Token = Annotated[str, typer.Option("--token", envvar="CHORAL_TOKEN", help="Its bearer token.", show_default=False)]
RunId = Annotated[str, typer.Argument(help="The run's identity, or the beginning of it.")]
LOCAL_URL = "http://127.0.0.1:8080"


def submit(
    path: Annotated[Path, typer.Argument(help="The spec, YAML or JSON.")],
    url: Url = LOCAL_URL,
    token: Token = "",
    watch: Annotated[bool, typer.Option("--watch", help="Follow the run until it ends.")] = False,
) -> None:
    """Submit a run.

    Example: choral submit run.yaml --watch
    """
    spec = read_spec(path)
    check_spec(spec)
    rest = Rest(url, token)
    run = rest.post("/runs", json.loads(spec.canonical_json()))
    typer.echo(f"Run {run['run_id']} ({spec.name}): {run['status']}. Watch it with: choral runs watch {run['run_id']}")
    if watch:
        _watch(rest, run["run_id"])


@app.command("list")
def list_runs(url: Url = LOCAL_URL, token: Token = "") -> None:
    """List the runs of a coordinator.

    Example: choral runs list
    """
    table = _table("run", "name", "state", "rounds", "submitted", "status")
    for run in Rest(url, token).get("/runs"):
        rounds = f"{run['round_number']}/{run['spec']['rounds']}"
        table.add_row(
            run["run_id"], run["spec"]["name"], run["state"], rounds, _when(run["submitted_time"]), run["status"]
        )
    Console().print(table)


@app.command("show")
def show(run_id: RunId, url: Url = LOCAL_URL, token: Token = "") -> None:
    """Show one run: what it does now, what it waits for, and its last rounds.

    Example: choral runs show 3f2a
    """
    rest = Rest(url, token)
    run = _run(rest, run_id)
    console = Console()
    console.print(f"[bold]{run['spec']['name']}[/bold] ({run['run_id']}): {run['state']}", highlight=False)
    console.print(f"Now: {run['status']}", highlight=False)
    if run["reason"]:
        console.print(f"Reason: {run['reason']}", highlight=False, markup=False)
    console.print(
        f"Rounds: {run['round_number']} of {run['spec']['rounds']}; model {run['model_sha256'][:16] or 'none yet'}"
    )
    records = rest.get(f"/runs/{run['run_id']}/rounds", after=max(0, run["round_number"] - 10))
    if records:
        console.print(rounds_table(records))


@app.command("rounds")
def rounds(
    run_id: RunId,
    url: Url = LOCAL_URL,
    token: Token = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """List all rounds of a run, with contributions and refusals.

    Example: choral runs rounds 3f2a --json
    """
    rest = Rest(url, token)
    records = all_rounds(rest, _run(rest, run_id)["run_id"])
    if as_json:
        typer.echo(json.dumps(records, indent=2))
        return
    console = Console()
    console.print(rounds_table(records))
    for record in records:
        for refusal in record["refusals"]:
            text = f"round {record['number']}: {refusal['client_id'][:8]} refused, {refusal['reason']}: {refusal['detail']}"
            console.print(text, highlight=False, markup=False)


@app.command("watch")
def watch(run_id: RunId, url: Url = LOCAL_URL, token: Token = "") -> None:
    """Follow a run until it ends or pauses.

    Example: choral runs watch 3f2a
    """
    rest = Rest(url, token)
    _watch(rest, _run(rest, run_id)["run_id"])


@app.command("pause")
def pause(run_id: RunId, url: Url = LOCAL_URL, token: Token = "") -> None:
    """Pause a run at its last committed round; resuming plays the round in progress again.

    Example: choral runs pause 3f2a
    """
    _steer(Rest(url, token), run_id, "pause")


@app.command("resume")
def resume(run_id: RunId, url: Url = LOCAL_URL, token: Token = "") -> None:
    """Let a paused run go on.

    Example: choral runs resume 3f2a
    """
    _steer(Rest(url, token), run_id, "resume")


@app.command("stop")
def stop(run_id: RunId, url: Url = LOCAL_URL, token: Token = "") -> None:
    """End a run for good; its last committed model stays.

    Example: choral runs stop 3f2a
    """
    _steer(Rest(url, token), run_id, "stop")


@app.command("model")
def model(
    run_id: RunId,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write it.")] = Path("model.safetensors"),
    url: Url = LOCAL_URL,
    token: Token = "",
) -> None:
    """Download a run's last committed model.

    Example: choral runs model 3f2a -o model.safetensors
    """
    rest = Rest(url, token)
    run = _run(rest, run_id)
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("model", total=None)
        for done, total in rest.download(f"/runs/{run['run_id']}/model", output):
            progress.update(bar, completed=done, total=total)
    typer.echo(f"{output}: the model after round {run['round_number']}")


def clients(url: Url = LOCAL_URL, token: Token = "") -> None:
    """List the clients that a coordinator knows.

    Example: choral clients
    """
    table = _table("client", "name", "here", "device", "data", "examples", "held out", "doing")
    for client in Rest(url, token).get("/clients"):
        doing = f"{client['phase']} {client['fraction']:.0%}" if client["phase"] else ""
        here = "yes" if client["is_connected"] else f"since {_when(client['last_seen_time'])} no"
        counts = (str(client["example_count"]), str(client["held_out_count"]))
        table.add_row(
            client["client_id"][:8], client["name"], here, client["device"], client["data_kind"], *counts, doing
        )
    Console().print(table)


def all_rounds(rest: Rest, run_id: str) -> list[dict[str, Any]]:
    """Return every stored round of a run."""
    records: list[dict[str, Any]] = []
    while page := rest.get(f"/runs/{run_id}/rounds", after=records[-1]["number"] if records else 0, limit=1000):
        records += page
    return records


def rounds_table(records: list[dict[str, Any]]) -> Table:
    """Return rounds as a table: clients, refusals, metrics, bytes and seconds."""
    table = _table("round", "state", "clients", "refused", "accuracy", "loss", "train loss", "received", "seconds")
    for record in records:
        metrics, parts = record["metrics"], record["contributions"]
        seconds = (record["ended_time"] or time.time()) - record["started_time"]
        table.add_row(
            str(record["number"]),
            record["state"],
            f"{len(parts)}/{len(record['selected'])}",
            str(len(record["refusals"])),
            _number(metrics.get("accuracy"), "{:.1%}"),
            _number(metrics.get("loss"), "{:.4f}"),
            _number(metrics.get("train_loss"), "{:.4f}"),
            f"{sum(part['byte_count'] for part in parts) / 1e6:.2f} MB",
            f"{seconds:.2f}",
        )
    return table


def _watch(rest: Rest, run_id: str) -> None:
    console = Console()
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), console=console, transient=True) as progress:
        line, shown = progress.add_task("starting"), 0
        while True:
            run = rest.get(f"/runs/{run_id}")
            progress.update(line, description=f"{run['round_number']}/{run['spec']['rounds']} rounds; {run['status']}")
            for record in rest.get(f"/runs/{run_id}/rounds", after=shown):
                if record["state"] == "committed":
                    shown = record["number"]
                    metrics = ", ".join(f"{name} {value:.4g}" for name, value in sorted(record["metrics"].items()))
                    progress.console.print(
                        f"round {shown}: {len(record['contributions'])} clients, {metrics}", highlight=False
                    )
            if run["state"] not in ("queued", "running"):
                break
            time.sleep(WATCH_SECONDS)
    console.print(f"Run {run_id}: {run['status']}", highlight=False)


def _steer(rest: Rest, run_id: str, command: str) -> None:
    run = rest.post(f"/runs/{_run(rest, run_id)['run_id']}/{command}")
    typer.echo(f"Run {run['run_id']} ({run['spec']['name']}): {run['status']}")


def _run(rest: Rest, beginning: str) -> dict[str, Any]:
    """Return the one run whose identity begins so."""
    found = [run for run in rest.get("/runs") if run["run_id"].startswith(beginning)]
    if len(found) != 1:
        raise RestError(
            f"Run {beginning!r}: must be the beginning of one run's identity, got {len(found)} that match. See: choral runs list"
        )
    return dict(found[0])


def _table(*headings: str) -> Table:
    table = Table()
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    return table


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _number(value: float | None, form: str) -> str:
    return form.format(value) if value is not None else ""
