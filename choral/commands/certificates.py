"""`choral certificates`: the certificates that a coordinator and its clients need for TLS, from a private authority."""

from pathlib import Path
from typing import Annotated

import typer

from privacy.certificates import Authority, Wanted


def certificates(
    folder: Annotated[Path, typer.Argument(help="Where they lie: authority/, coordinator/ and clients/.")],
    host: Annotated[
        list[str], typer.Option("--host", help="A name or address by which the coordinator is reached; repeat it.")
    ],
    client: Annotated[
        list[str] | None, typer.Option("--client", help="A client that gets one too, for mutual TLS; repeat it.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, help="How long a new certificate is valid.")] = 365,
) -> None:
    """Make the certificates of a federation. Call it again to renew those that have less than a third of their life left.

    Example: choral certificates tls --host fed.example.org --client site-0
    """
    made = Authority(folder / "authority").certify(folder, Wanted(host, client or [], days))
    for path in made:
        typer.echo(f"{path}: valid for {days} days")
    if not made:
        typer.echo(f"{folder}: every certificate is good for some time yet")
