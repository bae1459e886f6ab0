"""`choral token`: who may use a coordinator's REST API and dashboard, decided where its state lies."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from choral.tables import add_row, table_of
from server.access.tokens import create_token
from server.errors import ConfigurationError
from server.folder import STORE_FILE
from server.records import Role, TokenRecord
from server.store import Store, open_store

app = typer.Typer(
    no_args_is_help=True,
    help="Decide who may use the REST API.\n\nExample: choral token create ana --role viewer --days 90",
)

Folder = Annotated[Path, typer.Option("--folder", help="The coordinator's folder.")]
StoreUrl = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="CHORAL_STORE",
        help="redis://HOST:PORT/0 where the coordinator keeps its state in Redis, or file:PATH of a file with that.",
        show_default=False,
    ),
]
Name = Annotated[str, typer.Argument(help="The token's name.")]
FOLDER = Path("coordinator")


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="A name for people, 1 to 64 printable characters.")],
    role: Annotated[Role, typer.Option(help="viewer may look at everything, operator do everything.")],
    days: Annotated[int | None, typer.Option(help="Days for which it holds; default: until it is revoked.")] = None,
    folder: Folder = FOLDER,
    store: StoreUrl = "",
) -> None:
    """Make a token and print it, this once. A coordinator that runs takes it at once.

    Example: choral token create ana --role viewer --days 90
    """
    if not store:
        folder.mkdir(parents=True, exist_ok=True)
    address = _address(folder, store)

    async def run() -> tuple[TokenRecord, str]:
        async with _opened(address) as opened:
            return await create_token(opened, name, role, days)

    token, secret = asyncio.run(run())
    end = "" if token.expires_time is None else f" until {_when(token.expires_time)} UTC"
    typer.echo(f"Token {token.name} ({token.role.value}){end}. Keep it: it is shown this once.", err=True)
    typer.echo(secret)


@app.command("list")
def list_tokens(folder: Folder = FOLDER, store: StoreUrl = "") -> None:
    """List the tokens, without their secrets: until when they hold, and when they were last used.

    Example: choral token list
    """
    address = _address(folder, store)

    async def run() -> list[TokenRecord]:
        async with _opened(address) as opened:
            return list(await opened.tokens())

    table = table_of("name", "role", "created", "until", "last used", wrapped=("name",))
    for token in asyncio.run(run()):
        end = "" if token.expires_time is None else _when(token.expires_time)
        if token.expires_time is not None and token.expires_time <= time.time():
            end = "expired"
        used = "never" if token.last_used_time is None else _when(token.last_used_time)
        add_row(table, token.name, token.role.value, _when(token.created_time), end, used)
    Console().print(table)


@app.command("revoke")
def revoke(name: Name, folder: Folder = FOLDER, store: StoreUrl = "") -> None:
    """Revoke a token: from now on it lets nobody in.

    Example: choral token revoke ana
    """
    address = _address(folder, store)

    async def run() -> bool:
        async with _opened(address) as opened:
            await opened.remove_token(name)
            return bool(await opened.tokens())

    is_any_left = asyncio.run(run())
    typer.echo(f"Token {name}: revoked")
    if not is_any_left:
        typer.echo("No token is left: beyond loopback nobody is let in, and on loopback nobody is asked for one.")


def _address(folder: Path, url: str) -> str:
    """Return where the store is: at `url`, else in a folder."""
    if not url and not folder.is_dir():
        raise ConfigurationError(f"Folder {folder}: must be a coordinator's, got none. Give --folder, or --store.")
    return url or str(folder / STORE_FILE)


@contextlib.asynccontextmanager
async def _opened(address: str) -> AsyncIterator[Store]:
    store = await open_store(address)
    try:
        yield store
    finally:
        await store.close()


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
