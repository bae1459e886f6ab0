"""What the demo leaves behind: three numbers, `summary.json`, a plot, and what to try next."""

import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from choral.demo.plan import UNSEEN_BLOCKS, Plan

FILES = ("model.safetensors", "history.csv", "history.png", "summary.json", "run.yaml")
"""What the demo writes, beside logs."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Accuracies on the digits of unseen form blocks, 0 to 1.

    Attributes:
        alone: Of each client's own model.
        federated: Of the federation's model.
        pooled: Of a model trained on all data in one place.
        seconds: From the start to the three numbers; the plot takes another second or so.
    """

    plan: Plan
    alone: tuple[float, ...]
    federated: float
    pooled: float
    rounds: int
    seconds: float

    @property
    def alone_mean(self) -> float:
        """Mean over the clients."""
        return sum(self.alone) / len(self.alone)


def write_summary(path: Path, outcome: Outcome) -> None:
    """Write `summary.json`."""
    summary = {
        "learner": outcome.plan.learner,
        "clients": outcome.plan.client_count,
        "rounds": outcome.rounds,
        "alone": outcome.alone_mean,
        "federated": outcome.federated,
        "pooled": outcome.pooled,
        "seconds": round(outcome.seconds, 1),
    }
    path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def show_outcome(console: Console, outcome: Outcome, folder: Path) -> None:
    """Print the three numbers, where the files are, and what to try next."""
    table = Table(
        title=f"Accuracy on form blocks {_listed(UNSEEN_BLOCKS)}, which nobody trained on", title_justify="left"
    )
    table.add_column("trained on")
    table.add_column("accuracy", justify="right")
    worst, best = min(outcome.alone), max(outcome.alone)
    table.add_row(f"one client's digits alone (mean; {worst:.1%} to {best:.1%})", f"{outcome.alone_mean:.1%}")
    table.add_row("[bold]federated: no digit leaves its client[/bold]", f"[bold]{outcome.federated:.1%}[/bold]")
    table.add_row("all clients' digits pooled in one place", f"{outcome.pooled:.1%}")
    console.print(table)
    above_alone, above_pooled = outcome.federated - outcome.alone_mean, outcome.federated - outcome.pooled
    for line in (
        f"Federated is {_compared(above_alone)} a client alone and {_compared(above_pooled)} pooled. It took {outcome.seconds:.0f} s.",
        "",
        f"In {folder}: {', '.join(FILES)}, logs.",
        "",
        *next_steps(folder, outcome.plan.is_secure),
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def next_steps(folder: Path, is_secure: bool = False) -> list[str]:
    """Return what to try after the demo, as commands that can be copied."""
    choral, here = _command(), shlex.quote(str(folder))
    if is_secure:
        return [
            "Try next:",
            f"  {choral} demo    # the same without masks",
            f"  {choral} secagg plan --clients 11 --corrupt 0.1 --dropout 0.2    # what they bear and cost",
            f"  {choral} enroll --help    # a roster of your own, which coordinator and clients of {here}/run.yaml need",
        ]
    client = f"{choral} join 127.0.0.1:7070 --folder {here}"
    return [
        "Try next:",
        f"  {choral} demo --learner mlp    # another model",
        f"  {choral} demo --clients 3      # what do more clients bring?",
        "  A federation of your own, each line in a terminal:",
        f"  {choral} serve --folder {here}/coordinator",
        f"  {client}/site-0 --name ana --data digits,blocks=0",
        f"  {client}/site-1 --name ben --data digits,blocks=1",
        f"  {client}/site-2 --name cem --data digits,blocks=2",
        f"  {choral} submit {here}/run.yaml --watch",
        "  While it trains, end a client with Ctrl-C: after 10 s the run goes on without it, and takes it back when it rejoins.",
        "  Or kill the coordinator and start it again: the run goes on where it was.",
    ]


def _command() -> str:
    """Return how this person can call `choral` from the current folder."""
    if shutil.which("choral"):
        return "choral"
    script = Path(sys.executable).with_name("choral")
    if not script.exists():
        return f"{shlex.quote(sys.executable)} -m choral"
    return shlex.quote(str(script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script))


def _compared(difference: float) -> str:
    return f"{abs(100 * difference):.1f} points {'above' if difference >= 0 else 'below'}"


def _listed(numbers: Sequence[int]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
