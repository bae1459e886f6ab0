"""Pictures of what models make: of one example, or of nothing."""

import contextlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from torch import Tensor

from choral.errors import PictureError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
COLUMNS = 16
"""Most maps side by side."""

COLOURS = "cividis"
"""Darker is less, also in grey and with any kind of colour blindness."""

INK = "#334155"

Pixels = npt.NDArray[np.float32]


def check_picture(path: Path) -> None:
    """Check that a picture can have this name. Raises `PictureError`."""
    if path.suffix.lower() not in SUFFIXES:
        raise PictureError(
            f"Picture {path}: name must end with one of {', '.join(SUFFIXES)}, got {path.name!r}. Rename it."
        )


def draw_maps(path: Path, image: Tensor, maps: Mapping[str, Tensor], title: str) -> None:
    """Draw an image, and below it a grid of the activation maps of each layer, in one scale of colours a layer.

    Args:
        path: A .png, .svg or .pdf file to write.
        image: float32 (channels, height, width), 0 to 1, of 1 or 3 channels.
        maps: float32 (channels, height, width) by layer.
        title: Above the picture.

    Raises:
        PictureError: The name ends otherwise, or the file cannot be written.
    """
    columns = min(COLUMNS, max(8, *(len(layer) for layer in maps.values())))
    grids = {name: mosaic(layer.numpy(), columns) for name, layer in maps.items()}
    heights = [1.2, *(0.5 + 8.0 * grid.shape[0] / grid.shape[1] for grid in grids.values())]
    with new_picture(path, (9.6, 0.6 + sum(heights)), title) as figure:
        top, *rest = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        pixels = image.permute(1, 2, 0).numpy()  # (height, width, channels)
        top.imshow(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels, cmap="gray", vmin=0, vmax=1)
        top.set_title(f"image, {_times(image.shape)}", color=INK, fontsize=9)
        top.set_axis_off()
        for axes, (name, layer) in zip(rest, maps.items(), strict=True):
            shown = axes.imshow(grids[name], cmap=COLOURS, vmin=min(0.0, float(layer.min())), interpolation="nearest")
            axes.set_title(f"{name}, {_times(layer.shape)}", color=INK, fontsize=9)
            axes.set_axis_off()
            bar = figure.colorbar(shown, ax=axes, shrink=0.8, aspect=12, pad=0.01)
            bar.ax.tick_params(colors=INK, labelsize=7)


def draw_samples(path: Path, images: Tensor, title: str, columns: int | None = None) -> None:
    """Draw images side by side.

    Args:
        path: A .png, .svg or .pdf file to write.
        images: float32 (count, channels, height, width), 0 to 1, of 1 or 3 channels.
        title: Above the picture.
        columns: Images in a row. Default: as many as rows, at most 16.

    Raises:
        PictureError: The name ends otherwise, or the file cannot be written.
    """
    columns = columns or min(COLUMNS, math.ceil(math.sqrt(len(images))))
    planes = [mosaic(plane.numpy(), columns) for plane in images.unbind(1)]
    pixels = np.stack(planes, axis=-1)  # (height, width, channels)
    shown = pixels[:, :, 0] if pixels.shape[2] == 1 else np.nan_to_num(pixels, nan=1.0)
    height = 0.6 + 6.0 * pixels.shape[0] / pixels.shape[1]
    with new_picture(path, (6.0, height), title) as figure:
        axes = figure.subplots()
        axes.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_axis_off()


def draw_points(path: Path, points: Tensor, title: str) -> None:
    """Draw points of a plane, float32 (count, 2). Arguments and errors as `draw_samples`."""
    with new_picture(path, (5.0, 5.0), title) as figure:
        axes = figure.subplots()
        across, up = points.numpy().T
        axes.scatter(across, up, s=8, color=INK, alpha=0.6, linewidths=0)
        axes.set_aspect("equal", adjustable="datalim")


@contextlib.contextmanager
def new_picture(path: Path, size: tuple[float, float], title: str) -> Iterator["Figure"]:
    """Yield a figure to draw on, which is then written to `path`."""
    check_picture(path)
    # Here, because it takes a second that no other command should pay. Without pyplot, which looks for a screen.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    yield figure
    figure.suptitle(title, color=INK, fontweight="bold", parse_math=False)
    try:
        figure.savefig(path)
    except OSError as error:
        raise PictureError(f"Picture {path}: file must be writable, got {error.strerror}. Choose another.") from error


def mosaic(maps: Pixels, columns: int) -> Pixels:
    """Lay maps, (channels, height, width), side by side in rows of `columns`, with NaN between them and at the end."""
    channels, height, width = maps.shape
    gap = max(1, width // 12)
    rows = -(-channels // columns)
    grid = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap), np.nan, dtype=np.float32)
    for channel, values in enumerate(maps):
        row, column = divmod(channel, columns)
        top, left = row * (height + gap), column * (width + gap)
        grid[top : top + height, left : left + width] = values
    return grid


def _times(shape: tuple[int, ...]) -> str:
    """Return a shape in words, such as "16 channels of 8 x 8"."""
    channels, height, width = shape
    return f"{channels} channel{'s' * (channels != 1)} of {height} x {width}"
