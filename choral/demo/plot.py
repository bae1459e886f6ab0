"""`history.png`: accuracy and loss over the rounds, against the three numbers of the demo."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from choral.demo.history import Round
from choral.demo.outcome import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#334155"
FAINT = "#e2e8f0"
CURVE = "#93b4f5"
COLOURS = {"alone": "#c2410c", "federated": "#1d4ed8", "pooled": "#475569"}


def write_plot(path: Path, rounds: Sequence[Round], outcome: Outcome) -> None:
    """Plot accuracy and loss over the rounds, with the three numbers as lines."""
    # Here, because it takes a second that no other command should pay. Without pyplot, which looks for a screen.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(8, 5))
    _plot_accuracy(left, rounds, outcome)
    _plot_losses(right, rounds)
    for axes in (left, right):
        axes.set_xlabel("round", color=INK)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.tick_params(colors=INK)
        axes.grid(axis="y", color=FAINT, linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
    plan = outcome.plan
    title = f"{plan.learner.upper()} on handwritten digits: {plan.client_count} clients, about one writer each"
    figure.suptitle(title, color=INK, fontweight="bold")
    figure.savefig(path)


def _plot_accuracy(axes: "Axes", rounds: Sequence[Round], outcome: Outcome) -> None:
    """Draw the held-out accuracy as a curve, and each of the three numbers as a line with its name."""
    held_out = [float("nan") if row.accuracy is None else 100 * row.accuracy for row in rounds]
    axes.plot(
        [row.round for row in rounds],
        held_out,
        color=CURVE,
        **_style(rounds),
        label="federated, on digits that clients hold out",
    )
    levels = {"alone": outcome.alone_mean, "federated": outcome.federated, "pooled": outcome.pooled}
    highest = max(levels, key=lambda name: levels[name])
    # Above the highest line and below the others there is room for a name, however close they lie.
    for name, level in levels.items():
        axes.axhline(100 * level, color=COLOURS[name], linewidth=1.6, linestyle=(0, (5, 3)))
        axes.annotate(
            f"{name} {level:.1%}",
            (1, 100 * level),
            xycoords=("axes fraction", "data"),
            xytext=(-4, 3 if name == highest else -3),
            textcoords="offset points",
            ha="right",
            va="bottom" if name == highest else "top",
            color=COLOURS[name],
            fontweight="bold",
        )
    lowest = 100 * min(*levels.values(), rounds[-1].accuracy or 1.0)
    axes.set_ylim(max(0.0, lowest - 12), 101)
    axes.set_ylabel("accuracy, %", color=INK)
    axes.set_title("dashed: on form blocks that nobody trained on", color=INK, fontsize=10, loc="left")
    axes.legend(loc="lower left", frameon=False, labelcolor=INK)


def _plot_losses(axes: "Axes", rounds: Sequence[Round]) -> None:
    curves = {
        "local training": ([row.train_loss for row in rounds], COLOURS["pooled"]),
        "digits that clients hold out": ([row.loss for row in rounds], CURVE),
    }
    for name, (values, colour) in curves.items():
        known = [float("nan") if value is None else value for value in values]
        axes.plot([row.round for row in rounds], known, color=colour, **_style(rounds), label=name)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("loss", color=INK)
    axes.legend(loc="upper right", frameon=False, labelcolor=INK)


def _style(rounds: Sequence[Round]) -> dict[str, Any]:
    return {"linewidth": 1.8, "marker": "o" if len(rounds) <= 40 else "", "markersize": 3.5}
