"""`choral api`: serve the REST API and the dashboard beside a coordinator, in a process of its own."""

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
from wire.memory import keep_start_from_collector

if TYPE_CHECKING:
    from server.replicas.replica import ReplicaConfig

log = logging.getLogger(__name__)


def api(
    store: Annotated[
        str,
        typer.Option(
            envvar="CHORAL_STORE",
            help="redis://HOST:PORT/0 as the coordinator has it, or file:PATH of a file with that.",
            show_default=False,
        ),
    ] = "",
    http: HttpAddress = "127.0.0.1:8080",
    folder: Annotated[
        Path | None,
        typer.Option(help="The coordinator's folder, where models are to be downloaded here too; it is only read."),
    ] = None,
    tls_cert: Certificate = None,
    tls_key: Key = None,
    insecure: Insecure = False,
    log_format: Format = LogFormat.TEXT,
    own: Own = None,
) -> None:
    """Serve the REST API and the dashboard beside a coordinator that keeps its state in Redis; start as many as you like.

    Example: choral api --store redis://127.0.0.1:6379/0 --http 127.0.0.1:8081
    """
    # Here, because the packages of a server may be missing where only the others' are installed.
    from server.replicas.replica import ReplicaConfig

    log_as(log_format)
    add_all(own)
    tls = chosen_tls(tls_cert, tls_key)
    asyncio.run(_serve(ReplicaConfig(store, http, folder, tls, insecure)))


async def _serve(config: "ReplicaConfig") -> None:
    from server.replicas.replica import serve_api

    stop = stop_signal()
    async with serve_api(config) as replica:
        keep_start_from_collector()
        await tell_of_api(replica.http_address, config.tls, replica.store, "the same --store")
        await stop.wait()
        log.info("shutting down")
