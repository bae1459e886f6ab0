"""The picture of an attention: source above, what was made of it at the left, brighter where more was looked at."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from choral.pictures import COLOURS, INK, new_picture

NUMBERED = 12
"""Most codes of either side for which weights are also written as numbers."""


def draw_attention(
    path: Path, weights: npt.NDArray[np.float32], sources: Sequence[str], outputs: Sequence[str], title: str
) -> None:
    """Draw how much of its attention each output spent on each part of the source.

    Args:
        path: A .png, .svg or .pdf file to write.
        weights: float32 (outputs, sources), 0 to 1.
        sources: What to write above the columns.
        outputs: What to write beside the rows.
        title: Above the picture.

    Raises:
        PictureError: The name ends otherwise, or the file cannot be written.
    """
    size = (min(40.0, max(4.0, 1.8 + 0.45 * len(sources))), min(40.0, max(3.0, 1.4 + 0.4 * len(outputs))))
    with new_picture(path, size, title) as figure:
        axes = figure.subplots()
        shown = axes.imshow(weights, cmap=COLOURS, vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(sources)), sources, parse_math=False)
        axes.set_yticks(range(len(outputs)), outputs, parse_math=False)
        axes.xaxis.tick_top()
        axes.tick_params(length=0, colors=INK)
        axes.spines[:].set_visible(False)
        if max(weights.shape) <= NUMBERED:
            for (row, column), weight in np.ndenumerate(weights):
                colour = "white" if weight < 0.55 else "black"
                axes.text(column, row, f"{weight:.2f}", ha="center", va="center", color=colour, fontsize=7)
        bar = figure.colorbar(shown, ax=axes, pad=0.02)
        bar.ax.tick_params(colors=INK, labelsize=8)
