"""Serving HTTP from a process of ours: addresses, certificates, and what may leave the machine in plain text."""

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from server.errors import ConfigurationError
from wire.protocol import is_loopback

SHUTDOWN_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class TLS:
    """Paths of PEM files. With `client_ca`, clients must show a certificate that it signed."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


class Web(uvicorn.Server):
    """uvicorn without its signal handlers: the process has its own."""

    def __init__(self, app: FastAPI, tls: TLS | None) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            # There is none to run, and its end is a traceback where this process ends over an error of its own.
            lifespan="off",
            ssl_certfile=str(tls.certificate) if tls else None,
            ssl_keyfile=str(tls.key) if tls else None,
            timeout_graceful_shutdown=int(SHUTDOWN_SECONDS),
        )
        super().__init__(config)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them alone."""
        yield


def check_exposure(addresses: dict[str, str], tls: TLS | None, is_insecure: bool) -> None:
    """Refuse plain text beyond loopback unless it was asked for.

    Args:
        addresses: Host and port by what is served there.
        tls: Certificates, if there are any.
        is_insecure: It was asked for.

    Raises:
        ConfigurationError: Updates or tokens would cross a network unprotected.
    """
    if tls is not None or is_insecure:
        return
    for name, address in addresses.items():
        if not is_loopback(address):
            raise ConfigurationError(
                f"{name} address: must be on loopback without TLS, got {address}. Give --tls-cert and --tls-key, or --insecure."
            )


def bound_socket(name: str, address: str) -> socket.socket:
    """Return a socket that listens at an address of this machine. Raises `ConfigurationError`, which calls it by its name."""
    host, port = _host_and_port(name, address)
    try:
        bound = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ConfigurationError(
            f"{name} address: must be free and of this machine, got {address}: {error.strerror}."
        ) from error
    # Its connections inherit it. Without, an answer's body waits 40 ms for the browser's receipt of its head.
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return bound


def taken_address(address: str, port: int) -> str:
    """Return an address with the port that was taken."""
    return f"{address.rpartition(':')[0]}:{port}"


def _host_and_port(name: str, address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigurationError(f"{name} address: must be HOST:PORT with a port of 0 to 65535, got {address!r}.")
    return host.strip("[]"), int(port)
