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

from choral.commands.own import Own, add_all
from choral.rest import Rest, RestError
from choral.tables import add_row, table_of
from privacy.secagg.combinations import check_masking
from wire.spec import read_spec
from wire.tensors import HAS_TORCH

WATCH_SECONDS = 0.5

app = typer.Typer(no_args_is_help=True, help="Watch and steer runs.\n\nExample: choral runs list")

Url = Annotated[str, typer.Option("--url", envvar="CHORAL_URL", help="The coordinator's REST API.")]
Token = Annotated[str, typer.Option("--token", envvar="CHORAL_TOKEN", help="Its bearer token.", show_default=False)]
TlsCa = Annotated[
    Path | None,
    typer.Option("--tls-ca", envvar="CHORAL_TLS_CA", help="PEM authority that signed the coordinator's certificate."),
]
RunId = Annotated[str, typer.Argument(help="The run's identity, or the beginning of it.")]
LOCAL_URL = "http://127.0.0.1:8080"


def submit(
    path: Annotated[Path, typer.Argument(help="The spec, YAML or JSON.")],
    url: Url = LOCAL_URL,
    token: Token = "",
    tls_ca: TlsCa = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the run until it ends.")] = False,
    own: Own = None,
) -> None:
    """Submit a run.

    Example: choral submit run.yaml --watch
    """
    add_all(own)
    spec = read_spec(path)
    if HAS_TORCH:
        # Here, because it imports torch. What is not checked here the coordinator checks, or a client.
        from models import check_spec

        check_spec(spec)
    check_masking(spec)
    with Rest(url, token, tls_ca) as rest:
        run = rest.post("/runs", json.loads(spec.canonical_json()))
        identity = run["run_id"]
        typer.echo(f"Run {identity} ({spec.name}): {run['status']}\nWatch it with: choral runs watch {identity}")
        if watch:
            _watch(rest, identity)


@app.command("list")
def list_runs(url: Url = LOCAL_URL, token: Token = "", tls_ca: TlsCa = None) -> None:
    """List the runs of a coordinator.

    Example: choral runs list
    """
    table = table_of("run", "name", "rounds", "submitted", "status", wrapped=("name", "status"))
    with Rest(url, token, tls_ca) as rest:
        found = _all(rest, "/runs", order="oldest")
    for run in found:
        rounds = f"{run['round_number']}/{run['spec']['rounds']}"
        add_row(table, run["run_id"], run["spec"]["name"], rounds, _when(run["submitted_time"]), run["status"])
    Console().print(table)


@app.command("show")
def show(run_id: RunId, url: Url = LOCAL_URL, token: Token = "", tls_ca: TlsCa = None) -> None:
    """Show one run: what it does now, what it waits for, and its last rounds.

    Example: choral runs show 3f2a
    """
    with Rest(url, token, tls_ca) as rest:
        run = _run(rest, run_id)
        records = rest.get(f"/runs/{run['run_id']}/rounds", after=max(0, run["round_number"] - 10))
    console = Console()
    console.print(f"[bold]{run['spec']['name']}[/bold] ({run['run_id']}): {run['state']}", highlight=False)
    console.print(f"Now: {run['status']}", highlight=False, markup=False)
    console.print(
        f"Submitted {_when(run['submitted_time'])}; {run['round_number']} of {run['spec']['rounds']} rounds committed; "
        f"model {run['model_sha256'][:16] or 'none yet'}",
        highlight=False,
    )
    if records:
        console.print(rounds_table(records))


@app.command("rounds")
def rounds(
    run_id: RunId,
    url: Url = LOCAL_URL,
    token: Token = "",
    tls_ca: TlsCa = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """List all rounds of a run, with contributions, refusals and evaluations that failed.

    Example: choral runs rounds 3f2a --json
    """
    with Rest(url, token, tls_ca) as rest:
        records = all_rounds(rest, _run(rest, run_id)["run_id"])
    if as_json:
        typer.echo(json.dumps(records, indent=2))
        return
    console = Console()
    console.print(rounds_table(records))
    for record in records:
        # Coordinators of earlier releases tell nothing of evaluations.
        for what, found in (("refused", record["refusals"]), ("not evaluated", record.get("evaluation_failures", []))):
            for one in found:
                reason = one["reason"].replace("_", " ")
                text = f"round {record['number']}: {one['client_id'][:8]} {what}, {reason}: {one['detail']}"
                console.print(text, highlight=False, markup=False)


@app.command("watch")
def watch(run_id: RunId, url: Url = LOCAL_URL, token: Token = "", tls_ca: TlsCa = None) -> None:
    """Follow a run until it ends or pauses.

    Example: choral runs watch 3f2a
    """
    with Rest(url, token, tls_ca) as rest:
        _watch(rest, _run(rest, run_id)["run_id"])


@app.command("pause")
def pause(run_id: RunId, url: Url = LOCAL_URL, token: Token = "", tls_ca: TlsCa = None) -> None:
    """Pause a run at its last committed round; resuming plays the round in progress again.

    Example: choral runs pause 3f2a
    """
    _steer(Rest(url, token, tls_ca), run_id, "pause")


@app.command("resume")
def resume(run_id: RunId, url: Url = LOCAL_URL, token: Token = "", tls_ca: TlsCa = None) -> None:
    """Let a paused run go on.

    Example: choral runs resume 3f2a
    """
    _steer(Rest(url, token, tls_ca), run_id, "resume")


@app.command("stop")
def stop(run_id: RunId, url: Url = LOCAL_URL, token: Token = "", tls_ca: TlsCa = None) -> None:
    """End a run for good; its last committed model stays.

    Example: choral runs stop 3f2a
    """
    _steer(Rest(url, token, tls_ca), run_id, "stop")


@app.command("model")
def model(
    run_id: RunId,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write it.")] = Path("model.safetensors"),
    url: Url = LOCAL_URL,
    token: Token = "",
    tls_ca: TlsCa = None,
) -> None:
    """Download a run's last committed model.

    Example: choral runs model 3f2a -o model.safetensors
    """
    console = Console(stderr=True)
    bars = Progress(console=console, transient=True, disable=not console.is_terminal)
    with Rest(url, token, tls_ca) as rest, bars as progress:
        run = _run(rest, run_id)
        bar = progress.add_task("model", total=None)
        for done, total in rest.download(f"/runs/{run['run_id']}/model", output):
            progress.update(bar, completed=done, total=total)
    typer.echo(f"{output}: the model after round {run['round_number']}")


@app.command("card")
def card(
    run_id: RunId,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write it. Default: the screen.")
    ] = None,
    url: Url = LOCAL_URL,
    token: Token = "",
    tls_ca: TlsCa = None,
) -> None:
    """Print the card of a run's model as JSON: what it was made from, by whom, how it is protected, and how good it is.

    Example: choral runs card 3f2a -o card.json
    """
    with Rest(url, token, tls_ca) as rest:
        text = json.dumps(rest.get(f"/runs/{_run(rest, run_id)['run_id']}/card"), indent=2, ensure_ascii=False)
    if output is None:
        typer.echo(text)
        return
    try:
        output.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise RestError(f"File {output}: must be writable, got: {error.strerror}.") from error
    typer.echo(f"{output}: the card of the model")


def clients(url: Url = LOCAL_URL, token: Token = "", tls_ca: TlsCa = None) -> None:
    """List the clients that a coordinator knows.

    Example: choral clients
    """
    table = table_of("client", "name", "device", "data", "examples", "held out", "doing", wrapped=("name",))
    with Rest(url, token, tls_ca) as rest:
        found = _all(rest, "/clients")
    for client in found:
        doing = f"{client['phase']} {client['fraction']:.0%}" if client["phase"] else "idle"
        if not client["is_connected"]:
            doing = f"left {_when(client['last_seen_time'])}"
        counts = (str(client["example_count"]), str(client["held_out_count"]))
        add_row(table, client["client_id"][:8], client["name"], client["device"], client["data_kind"], *counts, doing)
    Console().print(table)


def all_rounds(rest: Rest, run_id: str) -> list[dict[str, Any]]:
    """Return every stored round of a run."""
    records: list[dict[str, Any]] = []
    while page := rest.get(f"/runs/{run_id}/rounds", after=records[-1]["number"] if records else 0, limit=1000):
        records += page
    return records


def rounds_table(records: list[dict[str, Any]]) -> Table:
    """Return rounds as a table: clients, refusals, metrics, bytes and seconds. It fits into 80 columns."""
    table = table_of("round", "clients", "refused", "accuracy", "loss", "train loss", "received", "seconds")
    for record in records:
        metrics, parts = record["metrics"], record["contributions"]
        seconds = (record["ended_time"] or time.time()) - record["started_time"]
        add_row(
            table,
            str(record["number"]) if record["state"] == "committed" else f"{record['number']} {record['state']}",
            f"{len(parts)}/{len(record['selected'])}",
            str(len(record["refusals"])),
            "" if metrics.get("accuracy") is None else f"{metrics['accuracy']:.1%}",
            _loss(metrics.get("loss")),
            _loss(metrics.get("train_loss")),
            _size(sum(part["byte_count"] for part in parts)),
            f"{seconds:.1f}" if seconds < 1000 else f"{seconds:.0f}",
        )
    return table


def _watch(rest: Rest, run_id: str) -> None:
    console = Console()
    column = TextColumn("{task.description}", markup=False)
    with Progress(SpinnerColumn(), column, console=console, transient=True) as progress:
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
    console.print(f"Run {run_id}: {run['status']}", highlight=False, markup=False)


def _steer(api: Rest, run_id: str, command: str) -> None:
    with api as rest:
        run = rest.post(f"/runs/{_run(rest, run_id)['run_id']}/{command}")
    typer.echo(f"Run {run['run_id']} ({run['spec']['name']}): {run['status']}")


def _run(rest: Rest, beginning: str) -> dict[str, Any]:
    """Return the one run whose identity begins so."""
    found = [run for run in _all(rest, "/runs", search=beginning) if run["run_id"].startswith(beginning)]
    if len(found) != 1:
        raise RestError(
            f"Run {beginning!r}: must be the beginning of one run's identity, got {len(found)} that match. See: choral runs list"
        )
    return dict(found[0])


def _all(rest: Rest, path: str, **query: Any) -> list[dict[str, Any]]:
    """Return a list that comes in pages, whole."""
    found: list[dict[str, Any]] = []
    while page := rest.get(path, offset=len(found), limit=1000, **query):
        found += page
    return found


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%m-%d %H:%M")


def _size(byte_count: float) -> str:
    """Return a size with three digits or so, such as "0.02 MB" or "12.3 GB"."""
    value, units = byte_count / 1e6, ["MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    decimals = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{decimals}f} {units[0]}"


def _loss(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.2e}"
