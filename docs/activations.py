"""The activations of the zoo as a picture: each one's output and the gradient that training uses.

Run from the root of the repository, with the extra `simulation`: python -m docs.activations
"""

from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from models.activations import ACTIVATIONS

PICTURE = Path(__file__).with_name("activations.png")
INK, FAINT = "#334155", "#e2e8f0"
OUTPUT, GRADIENT = "#4477aa", "#cc6677"


def draw_activations() -> Figure:
    """Return a panel for each activation, from -3 to 3."""
    inputs = torch.linspace(-3, 3, 1201, requires_grad=True)
    figure = Figure(figsize=(11, 5.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = iter(figure.subplots(2, 4, sharex=True, sharey=True).flat)
    for (name, activation), panel in zip(ACTIVATIONS.items(), panels, strict=False):
        outputs = activation()(inputs)
        (gradient,) = torch.autograd.grad(outputs.sum(), inputs)
        points = inputs.detach().numpy()
        panel.plot(points, outputs.detach().numpy(), color=OUTPUT, linewidth=2.2, label="output")
        panel.plot(points, gradient.numpy(), color=GRADIENT, linewidth=1.4, linestyle="--", label="gradient")
        panel.set_title(name, color=INK, fontweight="bold", fontsize=11)
        panel.set_ylim(-1.15, 3.05)
        panel.grid(color=FAINT, linewidth=0.8)
        panel.tick_params(colors=INK, labelsize=8, labelbottom=True, labelleft=True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.spines[["left", "bottom"]].set_color(FAINT)
    for panel in panels:
        panel.axis("off")
    lines, labels = figure.axes[0].get_legend_handles_labels()
    figure.axes[-1].legend(lines, labels, loc="center", frameon=False, labelcolor=INK)
    return figure


if __name__ == "__main__":
    draw_activations().savefig(PICTURE)
