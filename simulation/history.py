"""What a simulation leaves for people: a line a round as CSV, and curves as PNG."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from server.records import RoundRecord

INK, FAINT = "#334155", "#e2e8f0"
COLOURS = ("#1d4ed8", "#c2410c", "#475569", "#0f766e", "#7e22ce")

WIDEST = 3
"""Most panels beside each other."""

PHASES = {f"simulated_{phase}_seconds": phase for phase in ("select", "train", "evaluate")}
"""Columns of the phases in which simulated time passes."""


def write_history(path: Path, rounds: Sequence[RoundRecord]) -> None:
    """Write a line a round, oldest first.

    Its columns are the round's number, the clients that were asked and those that contributed, refused contributions, seconds on this
    machine and on the simulation's clock, of which so much to select, train and evaluate, then every metric that some round has, by name.
    """
    names = sorted({name for record in rounds for name in record.metrics if not name.startswith("refused_")})
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["round", "asked", "clients", "refused", "seconds", "simulated_seconds", *PHASES, *names])
        for record in rounds:
            metrics = [f"{record.metrics[name]:.6g}" if name in record.metrics else "" for name in names]
            counts = [record.number, len(record.selected), len(record.contributions), len(record.refusals)]
            phases = [record.phase_seconds.get(phase, 0.0) for phase in PHASES.values()]
            seconds = [seconds_of(record), simulated_seconds_of(record), *phases]
            writer.writerow([*counts, *(f"{value:.3f}" for value in seconds), *metrics])


def write_plot(path: Path, rounds: Sequence[RoundRecord], title: str) -> None:
    """Draw whatever was evaluated over the rounds, in panels of what can be read on one scale."""
    # Here, because it takes a second. Without pyplot, which looks for a screen.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = panels_of(rounds)
    lines = max(1, math.ceil(len(panels) / WIDEST))
    columns = max(1, math.ceil(len(panels) / lines))
    figure = Figure(figsize=(5 * columns, 4 * lines), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    places = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes in places[max(1, len(panels)) :]:
        axes.remove()
    for axes, panel in zip(places, panels, strict=False):
        for colour, name in zip(COLOURS * len(panel), panel, strict=False):
            points = [(record.number, record.metrics[name]) for record in rounds if name in record.metrics]
            marker = "o" if len(points) <= 40 else ""
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=3.5, label=_words(name))
        axes.set_xlabel("round", color=INK)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.tick_params(colors=INK)
        axes.grid(axis="y", color=FAINT, linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, labelcolor=INK)
    figure.suptitle(title, color=INK, fontweight="bold")
    figure.savefig(path, format="png")


def panels_of(rounds: Sequence[RoundRecord]) -> list[list[str]]:
    """Return the metrics that are drawn together: parts of 1, such as accuracies; each that has a scale of its own; and the losses."""
    values: dict[str, list[float]] = {}
    for record in rounds:
        for name, value in record.metrics.items():
            if not name.startswith("refused_"):
                values.setdefault(name, []).append(value)
    losses = sorted(name for name in values if name.endswith("loss"))
    others = sorted(values.keys() - set(losses))
    parts = [name for name in others if all(0 <= value <= 1 for value in values[name])]
    panels = [parts, *([name] for name in others if name not in parts), losses]
    return [panel for panel in panels if panel]


def seconds_of(record: RoundRecord) -> float:
    """Return how long a committed round took, with the pause if it was cut off and taken up again."""
    return (record.ended_time or record.started_time) - record.started_time


def simulated_seconds_of(record: RoundRecord) -> float:
    """Return how long a round took on the simulation's clock."""
    return sum(record.phase_seconds.values())


def _words(name: str) -> str:
    """Return a metric's name for people, with where it was measured."""
    if name.startswith("train_"):
        return f"{name.removeprefix('train_')} in local training"
    return f"{name.replace('_', ' ')}, held out"
