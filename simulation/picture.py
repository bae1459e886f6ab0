"""A partition as a picture, clients by classes: stacked bars for some tens of clients, a heat map for up to 10,000 and more."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from models.learner import Examples
from simulation.classes import class_counts
from simulation.dirichlet import Counts
from simulation.errors import PartitionError
from simulation.partition import Partition

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
BAR_LIMIT = 40
"""Most clients that get a bar each."""

LINE_LIMIT = 400
"""Most lines of a heat map; more clients share lines."""

LOG_RATIO = 20
"""Sizes of many clients get a logarithmic axis when the largest is that many times the median."""

INK = "#334155"
FAINT = "#e2e8f0"
PLAIN = "#4477aa"
# Told apart with any kind of colour blindness. Source: Paul Tol, "Colour Schemes", 2021, section 3 (bright and muted).
# https://personal.sron.nl/~pault/
COLOURS = (
    "#332288",
    "#88ccee",
    "#44aa99",
    "#117733",
    "#999933",
    "#ddcc77",
    "#cc6677",
    "#882255",
    "#aa4499",
    "#bbbbbb",
)


def draw_partition(path: Path, examples: Examples, parts: Partition, title: str) -> None:
    """Draw which classes each client holds, and how many examples; sizes alone where targets are no classes.

    Args:
        path: A .png, .svg or .pdf file to write.
        examples: What `parts` was made of.
        parts: Which examples each client holds.
        title: Above the picture.

    Raises:
        PartitionError: matplotlib is not installed, or the file cannot be written.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise PartitionError(
            f"Picture {path}: name must end with one of {', '.join(SUFFIXES)}, got {path.name!r}. Rename it."
        )
    try:
        # Here, because it takes a second that no other command should pay. Without pyplot, which looks for a screen.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise PartitionError(
            f"Picture {path}: package {error.name} must be installed, got none. Run pip install 'choral[simulation]'."
        ) from error
    found = class_counts(examples, parts)
    has_bars = len(parts.rows) <= BAR_LIMIT and (found is None or len(found[0]) <= len(COLOURS))
    height = 1.6 + 0.22 * max(8, len(parts.rows)) if has_bars else 7.0
    figure = Figure(figsize=(9, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    if has_bars:
        _draw_bars(figure, parts, found)
    elif found is None:
        _draw_sizes(figure.subplots(), parts.sizes)
    else:
        _draw_heat_map(figure, parts, *found)
    figure.suptitle(title, color=INK, fontweight="bold")
    try:
        figure.savefig(path)
    except OSError as error:
        raise PartitionError(f"Picture {path}: file must be writable, got {error.strerror}. Choose another.") from error


def _draw_bars(figure: "Figure", parts: Partition, found: tuple[Counts, Counts] | None) -> None:
    """Draw a bar a client, in parts of a colour a class."""
    axes = figure.subplots()
    numbers = np.arange(len(parts.rows))
    if found is None:
        axes.barh(numbers, parts.sizes, color=PLAIN)
    else:
        classes, counts = found
        starts = counts.cumsum(axis=1) - counts
        for position, name in enumerate(classes):
            axes.barh(
                numbers,
                counts[:, position],
                left=starts[:, position],
                height=0.85,
                color=COLOURS[position],
                edgecolor="white",
                linewidth=0.4,
                label=str(name),
            )
        figure.legend(loc="outside right center", title="class", frameon=False, labelcolor=INK)
    axes.set_yticks(numbers, parts.client_ids, fontsize=8)
    axes.set_ylim(len(parts.rows) - 0.5, -0.5)
    axes.set_xlim(right=1.02 * int(parts.sizes.max()))
    axes.set_xlabel("examples", color=INK)
    axes.locator_params(axis="x", integer=True)
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    _quieten(axes)


def _draw_heat_map(figure: "Figure", parts: Partition, classes: Counts, counts: Counts) -> None:
    """Draw a line a client, in a colour for each class's share of it, and the sizes beside."""
    left, right = figure.subplots(1, 2, width_ratios=(5, 1), sharey=True)
    shares = counts / counts.sum(axis=1, keepdims=True)
    order = np.arange(len(shares))
    label = "client"
    if parts.scheme.needs_classes:
        order = np.lexsort((-shares.max(axis=1), shares.argmax(axis=1)))
        label = "clients, ordered by their largest class"
    # Clients that share a line are averaged here: an image that is scaled down would mix classes too.
    groups = np.array_split(shares[order], min(LINE_LIMIT, len(shares)))
    image = left.imshow(
        np.stack([group.mean(axis=0) for group in groups]),
        cmap="cividis",
        vmin=0,
        aspect="auto",
        interpolation="nearest",
        extent=(-0.5, len(classes) - 0.5, len(shares), 0),
    )
    step = -(-len(classes) // 25)
    left.set_xticks(range(0, len(classes), step), [str(name) for name in classes[::step]])
    left.set_xlabel("class", color=INK)
    left.set_ylabel(label, color=INK)
    if len(shares) <= BAR_LIMIT:
        left.set_yticks(np.arange(len(shares)) + 0.5, [parts.client_ids[client] for client in order], fontsize=8)
    bar = figure.colorbar(image, ax=left, location="left", pad=0.02, shrink=0.6)
    bar.set_label(_share_label(len(shares)), color=INK)
    bar.ax.tick_params(colors=INK)
    _draw_sizes(right, parts.sizes[order])
    right.set_ylabel("")
    for axes in (left, right):
        _quieten(axes)


def _share_label(client_count: int) -> str:
    together = client_count / LINE_LIMIT
    return "share of the client's examples" + (f" (mean of {together:.0f} clients a line)" if together > 1.5 else "")


def _draw_sizes(axes: "Axes", sizes: Counts) -> None:
    """Draw the number of examples of each client as an outline that is filled."""
    edges: npt.NDArray[np.int64] = np.arange(len(sizes) + 1)
    axes.stairs(sizes, edges, orientation="horizontal", fill=True, color=PLAIN)
    axes.set_ylim(len(sizes), 0)
    axes.set_ylabel("client", color=INK)
    if sizes.max() > LOG_RATIO * np.median(sizes):
        axes.set_xscale("log")
        axes.set_xlim(left=0.5)
        axes.set_xlabel("examples, log", color=INK)
    else:
        axes.set_xlim(left=0)
        axes.set_xlabel("examples", color=INK)
        axes.locator_params(axis="x", integer=True, nbins=4)
    _quieten(axes)


def _quieten(axes: "Axes") -> None:
    axes.tick_params(colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
