"""The command line's side of the REST API."""

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import httpx

from wire.errors import ChoralError
from wire.protocol import is_loopback

TIMEOUT_SECONDS = 30.0


class RestError(ChoralError):
    """The coordinator cannot be reached over REST, or refused a request. Nothing was changed."""


class Rest:
    """A coordinator's REST API. Use as a context manager, or close it."""

    def __init__(self, url: str, token: str = "", tls_ca: Path | None = None) -> None:
        """Talk to the API at an address.

        Args:
            url: Such as "http://127.0.0.1:8080".
            token: The bearer token that it asks for, if any.
            tls_ca: PEM file of the authority that signed its certificate; None: those that this machine trusts.

        Raises:
            RestError: The address, the token or the file cannot be used.
        """
        token = token.strip()  # one from a file may have the end of its line
        if not (token.isascii() and token.isprintable()):
            raise RestError("Token: must be printable ASCII characters in one line, got others.")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._url = url
        try:
            if httpx.URL(url).scheme not in ("http", "https"):
                raise RestError(f"Coordinator: address must begin with http:// or https://, got {url!r}.")
            # A proxy, which the environment may name, is on another machine: there loopback is its own.
            is_direct = is_loopback(f"{httpx.URL(url).host}:0")
            base_url = f"{url.rstrip('/')}/api/v1"
            self._client = httpx.Client(
                base_url=base_url,
                headers=headers,
                timeout=TIMEOUT_SECONDS,
                trust_env=not is_direct,
                verify=_trusted(tls_ca),
            )
        except httpx.InvalidURL as error:
            raise self._unreachable(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def get(self, path: str, **query: Any) -> Any:
        """Return the JSON at `path`. Raises `RestError`."""
        return self._request("GET", path, params=query)

    def post(self, path: str, body: object = None) -> Any:
        """Post `body` as JSON and return the answer. Raises `RestError`."""
        return self._request("POST", path, json=body)

    def download(self, path: str, target: Path) -> Iterator[tuple[int, int]]:
        """Download a file and yield (bytes so far, bytes in all). Raises `RestError`; `target` may then be incomplete."""
        try:
            with self._client.stream("GET", path) as response:
                if response.is_error:
                    response.read()
                    raise _problem(response)
                total = int(response.headers.get("content-length", 0))
                with target.open("wb") as file:
                    for part in response.iter_bytes(1 << 20):
                        file.write(part)
                        yield file.tell(), total
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        except OSError as error:
            raise RestError(f"File {target}: must be writable, got: {error.strerror}.") from error

    def _request(self, method: str, path: str, **arguments: Any) -> Any:
        try:
            response = self._client.request(method, path, **arguments)
            if response.is_error:
                raise _problem(response)
            return response.json()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> RestError:
        text = str(error)
        if "Hostname mismatch" in text or "IP address mismatch" in text:
            hint = "Give a name that its certificate has."
        elif "certificate has expired" in text:
            hint = "Renew it with choral certificates, and start the coordinator again."
        elif "certificate is not yet valid" in text:
            hint = "Compare this machine's clock with that of the machine that made it."
        elif "CERTIFICATE_VERIFY_FAILED" in text:
            hint = "Give the authority that signed its certificate with --tls-ca."
        elif isinstance(error, httpx.RemoteProtocolError) and self._url.startswith("http://"):
            hint = "If it uses TLS, give https://."
        else:
            hint = "Is `choral serve` running there?"
        return RestError(f"Coordinator {self._url}: must be reachable, got: {text.rstrip('.')}. {hint}")


def _trusted(tls_ca: Path | None) -> ssl.SSLContext:
    """Return whose certificates are believed: one authority's, else those that the environment or certifi names, on loopback too."""
    source = f"TLS authority {tls_ca}" if tls_ca else "TLS authority of SSL_CERT_FILE or SSL_CERT_DIR"
    try:
        return ssl.create_default_context(cafile=tls_ca) if tls_ca else httpx.create_ssl_context()
    except OSError as error:  # ssl.SSLError is one
        raise RestError(f"{source}: must be a readable PEM file of certificates, got: {error.strerror}.") from error


def _problem(response: httpx.Response) -> RestError:
    try:
        return RestError(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return RestError(f"Coordinator: answered {response.status_code} {response.reason_phrase}.")
