"""Whether the process beside this one does its work, for health checks of containers: exit status 0 if it does, else 1 and a sentence.

    python -m choral.health coordinator https://127.0.0.1:8080    its REST API answers
    python -m choral.health api https://127.0.0.1:8080            it answers, whether a coordinator does or not
    python -m choral.health client client-state                   the client of that folder has a session with its coordinator

Not a command of `choral`, whose imports take seconds: this is called twice a minute for years.
"""

import http.client
import json
import ssl
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from client.presence import is_present
from wire.errors import ChoralError

TIMEOUT_SECONDS = 5.0
USAGE = "Usage: python -m choral.health coordinator URL | api URL | client FOLDER"


class UnhealthyError(ChoralError):
    """The process does not do its work, or not as far as can be told."""


def main() -> None:
    """Check what the arguments name, and exit."""
    try:
        match sys.argv[1:]:
            case ["coordinator", url]:
                line = coordinator_line(url)
            case ["api", url]:
                line = api_line(url)
            case ["client", folder]:
                line = client_line(Path(folder))
            case _:
                sys.exit(USAGE)
    except UnhealthyError as error:
        sys.exit(f"Error: {error}")
    sys.stdout.write(f"{line}\n")


def coordinator_line(url: str) -> str:
    """Return what the coordinator at an address says of its health.

    Raises:
        UnhealthyError: It does not answer, or is not well.
    """
    return f"ok, {_answer('Coordinator', url, '/api/v1/health')['client_count']} clients connected"


def api_line(url: str) -> str:
    """Return that an API replica at an address answers; the coordinator's health is none of its own.

    Raises:
        UnhealthyError: It does not.
    """
    _answer("API replica", url, "/api/v1/spec/schema")
    return "ok, serving"


def _answer(who: str, url: str, path: str) -> Any:
    connection = _connection(url)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        if response.status != 200:
            raise UnhealthyError(f"{who} {url}: must answer 200, got {response.status} {response.reason}.")
        return json.load(response)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UnhealthyError(f"{who} {url}: must answer as one, got: {error}.") from error
    finally:
        connection.close()


def client_line(folder: Path) -> str:
    """Return that a client has a session.

    Raises:
        UnhealthyError: It has none, or its folder cannot be read.
    """
    try:
        if is_present(folder):
            return "ok, connected"
    except OSError as error:
        raise UnhealthyError(f"Folder {folder}: must be readable, got: {error.strerror}.") from error
    raise UnhealthyError(f"Client in {folder}: must have a session with its coordinator, got none.")


def _connection(url: str) -> http.client.HTTPConnection:
    address = urlsplit(url)
    if address.scheme == "http":
        return http.client.HTTPConnection(address.netloc, timeout=TIMEOUT_SECONDS)
    # Asked from beside the coordinator, whose certificate names the hosts by which others reach it.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(address.netloc, timeout=TIMEOUT_SECONDS, context=context)


if __name__ == "__main__":
    main()
