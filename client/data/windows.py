"""Windows of series: what was measured in a stretch of time, each with what followed it."""

import numpy as np
import numpy.typing as npt
import torch

from models.learner import Examples, Timeline


def cut_windows(
    values: npt.NDArray[np.float32], series: npt.NDArray[np.int64], window: int, horizon: int
) -> Examples | None:
    """Cut every window of every series, one a step. None crosses from one series to another.

    Args:
        values: In the order of series, and of time within each, (steps, columns).
        series: The series of each step, from 0 and without gaps, (steps,).
        window: Steps of one input, at least 1.
        horizon: Steps after it that its targets are, at least 1.

    Returns:
        Inputs float32 (windows, window, columns), targets float32 (windows, horizon * columns), the nearest step first.
        A series shorter than `window + horizon` gives no window; None if all are.
    """
    width = window + horizon
    ends = np.bincount(series).cumsum()
    parts = [part for part in np.split(values, ends[:-1]) if len(part) >= width]
    if not parts:
        return None
    views = [np.lib.stride_tricks.sliding_window_view(part, width, axis=0) for part in parts]
    cut = np.concatenate([view.swapaxes(1, 2) for view in views])  # (windows, width, columns)
    counts = np.maximum(np.bincount(series) - width + 1, 0)
    steps = np.arange(len(cut)) - np.repeat(counts.cumsum() - counts, counts) + window
    timeline = Timeline(torch.from_numpy(np.repeat(np.arange(len(counts)), counts)), torch.from_numpy(steps), horizon)
    inputs, targets = cut[:, :window].copy(), cut[:, window:].reshape(len(cut), -1).copy()
    return Examples(torch.from_numpy(inputs), torch.from_numpy(targets), timeline)
