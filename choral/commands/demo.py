"""`choral demo`: real data and real processes on this machine, within a minute or so."""

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from choral.demo.outcome import show_outcome
from choral.demo.plan import CLIENT_LIMIT, Plan
from choral.demo.play import play
from choral.demo.screen import Screen
from client.device import set_threads


def demo(
    clients: Annotated[
        int, typer.Option(min=2, max=CLIENT_LIMIT, help="Clients; each holds one writer's digits.")
    ] = CLIENT_LIMIT,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of federated training.")] = 25,
    learner: Annotated[str, typer.Option(help="cnn or mlp.")] = "cnn",
    secure: Annotated[
        bool,
        typer.Option("--secure", help="Enrol the clients and mask their updates: the coordinator learns sums alone."),
    ] = False,
    folder: Annotated[Path, typer.Option("--folder", help="Where model, history, plot and logs go.")] = Path("demo"),
) -> None:
    """Train on handwritten digits over a coordinator and 11 clients on this machine, and see why one federates.

    Example: choral demo --clients 5 --rounds 10
    """
    plan = Plan(clients, rounds, learner, secure)
    _end_in_order()
    # As in the clients, so that the three models differ in nothing but their data.
    set_threads(1)
    console = Console()
    learns = ", and the coordinator learns sums of their updates alone" if secure else ""
    console.print(
        f"{clients} clients on this machine, each with the handwritten digits of about one writer, train one {learner.upper()} for "
        f"{rounds} round{'s' * (rounds > 1)} over gRPC. No digit leaves its client{learns}.",
        highlight=False,
        soft_wrap=True,
    )
    with Screen(console, rounds) as screen:
        outcome = play(plan, folder, screen)
    show_outcome(console, outcome, folder)


def _end_in_order() -> None:
    """Let SIGTERM and SIGHUP unwind the stack as Ctrl-C does, so that every started process is ended."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _exit)


def _exit(number: int, _: FrameType | None) -> NoReturn:
    sys.exit(128 + number)
