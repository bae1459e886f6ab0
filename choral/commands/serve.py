"""`choral serve`: run a coordinator."""

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from choral.commands.listening import (
    Certificate,
    HttpAddress,
    Insecure,
    Key,
    chosen_tls,
    stop_signal,
    tell_of_api,
)
from choral.commands.own import Own, add_all
from choral.logs import Format, LogFormat, log_as
from choral.trackers import MLflowAddress, TensorBoardFolder, chosen
from wire.memory import keep_freed_slices, keep_start_from_collector
from wire.tensors import HAS_TORCH

if TYPE_CHECKING:
    from models import Examples
    from server.coordinator import CoordinatorConfig

log = logging.getLogger(__name__)


def serve(
    folder: Annotated[Path, typer.Option("--folder", help="Where state and models lie.")] = Path("coordinator"),
    listen: Annotated[str, typer.Option(help="Host and port for clients (gRPC).")] = "127.0.0.1:7070",
    http: HttpAddress = "127.0.0.1:8080",
    store: Annotated[
        str,
        typer.Option(
            envvar="CHORAL_STORE",
            help="redis://HOST:PORT/0 to keep state in Redis, or file:PATH of a file with that; default: SQLite in the folder.",
            show_default=False,
        ),
    ] = "",
    data: Annotated[str, typer.Option(help="The coordinator's own data, for evaluate.on: coordinator.")] = "",
    concurrent_runs: Annotated[int, typer.Option(min=1, help="Runs played at a time, with disjoint cohorts.")] = 1,
    upload_slots: Annotated[
        int, typer.Option(min=1, help="Uploads received at a time; each takes a model's size of memory.")
    ] = 2,
    tls_cert: Certificate = None,
    tls_key: Key = None,
    client_ca: Annotated[Path | None, typer.Option(help="PEM authority of client certificates (mutual TLS).")] = None,
    roster: Annotated[
        Path | None, typer.Option(help="JSON file of who may take part (choral enroll); default: everybody.")
    ] = None,
    insecure: Insecure = False,
    tensorboard: TensorBoardFolder = None,
    mlflow: MLflowAddress = "",
    log_format: Format = LogFormat.TEXT,
    own: Own = None,
) -> None:
    """Run a coordinator: it waits for clients and for runs, and plays them.

    Example: choral serve --folder coordinator --listen 127.0.0.1:7070
    """
    # Here, because the packages of a coordinator may be missing where only the others' are installed.
    from server.coordinator import CoordinatorConfig

    log_as(log_format)
    add_all(own)
    keep_freed_slices()
    config = CoordinatorConfig(
        folder=folder,
        store=store,
        address=listen,
        http_address=http,
        tls=chosen_tls(tls_cert, tls_key, client_ca),
        is_insecure=insecure,
        upload_places=upload_slots,
        concurrent_runs=concurrent_runs,
        roster=roster,
        trackers=chosen(tensorboard, mlflow),
    )
    asyncio.run(_serve(config, _examples(data) if data else None))


def _examples(data: str) -> "Examples":
    # Here, because a coordinator without data needs no torch.
    from choral.loading import load_visibly

    return load_visibly(data, 0.0, 0).training


async def _serve(config: "CoordinatorConfig", own_data: "Examples | None") -> None:
    from server.coordinator import serve as serve_coordinator

    stop = stop_signal()
    async with serve_coordinator(config, own_data) as coordinator:
        if not HAS_TORCH:
            log.info(
                "torch is not installed: a client draws each first model, and runs that need more of torch here are refused"
            )
        log.info("clients join at %s", coordinator.address)
        place = "the same --store" if config.store else f"--folder {config.folder}"
        keep_start_from_collector()
        await tell_of_api(coordinator.http_address, config.tls, coordinator.store, place)
        await stop.wait()
        log.info("shutting down; runs go on at the next start")
