"""`choral enroll`: who may take part in a federation, decided offline by the officer who holds the enrolment key."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console

from choral.tables import add_row, table_of
from privacy.enrolment import EnrolledClient, today_in_utc
from privacy.keys import load_identity
from privacy.officer import Office

app = typer.Typer(
    no_args_is_help=True, help="Decide offline who may take part in a federation.\n\nExample: choral enroll list"
)

Folder = Annotated[Path, typer.Option("--folder", help="The officer's folder: enrolment key and roster.")]
Passphrase = Annotated[
    str,
    typer.Option(
        "--passphrase", envvar="CHORAL_ENROLMENT_PASSPHRASE", help="Locks the enrolment key.", show_default=False
    ),
]
PublicKey = Annotated[str, typer.Argument(help="Public key, 64 hexadecimal digits.")]
OFFICE = Path("enrolment")


@app.command("init")
def init(
    federation: Annotated[str, typer.Option("--federation", help="The federation's name.")],
    folder: Folder = OFFICE,
    passphrase: Passphrase = "",
) -> None:
    """Make an enrolment key and a roster without clients. Keep the key off the network; nobody but the officer needs it.

    Example: choral enroll init --federation lakes
    """
    office = Office(folder, passphrase)
    office.begin(federation)
    lock = "locked by the passphrase" if passphrase else "not locked by a passphrase"
    typer.echo(f"{office.key_path}: the enrolment key, {lock}; keep it offline\n{office.roster_path}: the roster")


@app.command("key")
def key(
    folder: Annotated[Path, typer.Option("--folder", help="Where the client's key lies.")] = Path("client-state"),
) -> None:
    """Print a client's public key, which the officer enrols; makes the key where there is none.

    Example: choral enroll key --folder site-3
    """
    typer.echo(_public(load_identity(folder / "identity.pem")))


@app.command("coordinator-key")
def coordinator_key(
    folder: Annotated[Path, typer.Option("--folder", help="Where the coordinator's state lies.")] = Path("coordinator"),
) -> None:
    """Print the coordinator's public key, for the roster; makes the key where there is none.

    Example: choral enroll coordinator-key
    """
    typer.echo(_public(load_identity(folder / "coordinator.pem")))


@app.command("add")
def add(
    name: Annotated[str, typer.Argument(help="A name for people, 1 to 64 printable characters.")],
    public_key: PublicKey,
    until: Annotated[
        datetime | None, typer.Option(help="Last day on which the client may take part, in UTC.", formats=["%Y-%m-%d"])
    ] = None,
    folder: Folder = OFFICE,
    passphrase: Passphrase = "",
) -> None:
    """Enrol a client. For one that is enrolled already, set anew until when.

    Example: choral enroll add site-3 "$(choral enroll key --folder site-3)" --until 2031-12-31
    """
    office = Office(folder, passphrase)
    client = office.add(name, public_key, until.date() if until else None)
    end = "" if client.not_after is None else f" until {client.not_after}"
    typer.echo(f"Client {client.client_id} ({name}): enrolled{end}\n{_spread(office)}")


@app.command("set-coordinator")
def set_coordinator(public_key: PublicKey, folder: Folder = OFFICE, passphrase: Passphrase = "") -> None:
    """Name the key with which the coordinator signs.

    Example: choral enroll set-coordinator "$(choral enroll coordinator-key)"
    """
    office = Office(folder, passphrase)
    office.set_coordinator(public_key)
    typer.echo(f"Coordinator: set\n{_spread(office)}")


@app.command("list")
def list_clients(folder: Folder = OFFICE) -> None:
    """List who is enrolled, until when, and who no longer is.

    Example: choral enroll list
    """
    roster = Office(folder).roster()
    typer.echo(f"{roster.federation}, epoch {roster.epoch}")
    typer.echo(f"enrolment key   {roster.enrolment_key}\ncoordinator key {roster.coordinator_key or 'not set'}\n")
    table = table_of("name", "client", "until", "state", wrapped=("name",))
    for client in roster.clients:
        add_row(table, client.name, client.client_id, str(client.not_after or ""), _state(client))
    Console().print(table)


@app.command("revoke")
def revoke(
    name_or_id: Annotated[str, typer.Argument(help="The client's name, or 8 digits or more of its identity.")],
    folder: Folder = OFFICE,
    passphrase: Passphrase = "",
) -> None:
    """Revoke a client for ever: its key is never enrolled again.

    Example: choral enroll revoke site-3
    """
    office = Office(folder, passphrase)
    client = office.revoke(name_or_id)
    typer.echo(f"Client {client.client_id} ({client.name}): revoked\n{_spread(office)}")


def _public(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes_raw().hex()


def _spread(office: Office) -> str:
    return f"Give the coordinator and every client the new {office.roster_path}, epoch {office.roster().epoch}"


def _state(client: EnrolledClient) -> str:
    """Return the first word of what stands against a client: the table has the day."""
    return client.standing(today_in_utc()).partition(" ")[0] or "enrolled"
