"""What commands that serve the REST API have in common: options, signals, and what they say at their start."""

import asyncio
import logging
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.errors import ConfigurationError
from server.store import Store
from wire.protocol import is_loopback

if TYPE_CHECKING:
    from server.web import TLS

log = logging.getLogger(__name__)

HttpAddress = Annotated[str, typer.Option(help="Host and port of the REST API.")]
Certificate = Annotated[Path | None, typer.Option(help="PEM certificate of this process.")]
Key = Annotated[Path | None, typer.Option(help="PEM key of that certificate.")]
Insecure = Annotated[bool, typer.Option("--insecure", help="Allow plain text beyond loopback.")]


def chosen_tls(certificate: Path | None, key: Path | None, client_ca: Path | None = None) -> "TLS | None":
    """Return the certificates that were named, if any. Raises `ConfigurationError` when there is no pair of them."""
    # Here, because the packages of a server may be missing where only the others' are installed.
    from server.web import TLS

    if certificate is None and key is None and client_ca is None:
        return None
    if certificate is None or key is None:
        raise ConfigurationError("TLS: --tls-cert and --tls-key must be given together, got one or only --client-ca.")
    return TLS(certificate, key, client_ca)


def stop_signal() -> asyncio.Event:
    """Return what is set when this process is asked to end."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def tell_of_api(address: str, tls: "TLS | None", store: Store, place: str) -> None:
    """Say where the REST API is, and how somebody is let in as long as nobody is."""
    log.info("REST API at %s://%s/api/v1, its description at /docs", "https" if tls else "http", address)
    if not is_loopback(address) and not await store.tokens():
        log.warning(
            "the REST API lets nobody in yet: make a token with choral token create NAME --role operator and %s", place
        )
