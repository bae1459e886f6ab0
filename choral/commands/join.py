"""`choral join`: run an edge client."""

import asyncio
import contextlib
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from choral.commands.own import Own, add_all
from choral.loading import load_visibly
from choral.logs import Format, LogFormat, log_as
from client.connection import Endpoint
from client.device import choose_device, set_threads
from client.errors import RejectedError
from client.policy import Policy, read_policy
from models import warm_up
from privacy.enrolment import EnrolmentFile
from wire.memory import keep_freed_slices
from wire.protocol import is_loopback

if TYPE_CHECKING:
    from client.agent import Agent


def join(
    address: Annotated[str, typer.Argument(help="Host and port of the coordinator.")],
    data: Annotated[
        str, typer.Option(help="Local data: KIND[:PATH][,key=value...], such as csv:patients.csv,target=outcome.")
    ],
    folder: Annotated[Path, typer.Option("--folder", help="Where this client's key lies; one per client.")] = Path(
        "client-state"
    ),
    name: Annotated[str, typer.Option(help="A name for people; default: the host's.")] = "",
    held_out: Annotated[
        float,
        typer.Option(help="Part of the data that is held out for evaluation: at random; of series, what came last."),
    ] = 0.2,
    split_seed: Annotated[int, typer.Option(help="Seed of that split.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads for training on a CPU; default: all cores.")
    ] = None,
    policy: Annotated[Path | None, typer.Option(help="YAML file of what this site allows.")] = None,
    roster: Annotated[
        Path | None, typer.Option(help="JSON file of who may take part, this client among them (choral enroll).")
    ] = None,
    tls_ca: Annotated[
        Path | None, typer.Option(help="PEM authority that signed the coordinator's certificate.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM certificate of this client (mutual TLS).")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM key of that certificate.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Allow plain text beyond loopback.")] = False,
    log_format: Format = LogFormat.TEXT,
    own: Own = None,
) -> None:
    """Run an edge client: it joins a coordinator with its own data, works for it, and comes back whenever the connection breaks.

    Example: choral join 127.0.0.1:7070 --data digits,blocks=3 --folder site-3
    """
    # Here, because the packages of a client may be missing where only the others' are installed.
    from client.agent import Agent, AgentConfig

    log_as(log_format)
    add_all(own)
    if tls_ca is None and not insecure and not is_loopback(address):
        raise RejectedError(
            f"Coordinator address: must be on loopback without TLS, got {address}. Give --tls-ca, or --insecure."
        )
    enrolment = EnrolmentFile(roster, folder / "enrolment.json") if roster else None
    local = load_visibly(data, held_out, split_seed)
    warm_up()
    keep_freed_slices()
    config = AgentConfig(
        endpoint=Endpoint(address, tls_ca, tls_cert, tls_key),
        folder=folder,
        name=name or socket.gethostname()[:64],
        device=choose_device(device),
        thread_count=set_threads(threads),
        policy=read_policy(policy) if policy else Policy(),
        enrolment=enrolment,
    )
    asyncio.run(_run(Agent(config, local)))


async def _run(agent: "Agent") -> None:
    running = asyncio.create_task(agent.run())
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await running
