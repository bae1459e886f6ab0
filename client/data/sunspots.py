"""The embedded sunspots: a yearly count of 1700 to 2008 that goes up and down in about 11 years.

Source: SILSO, "Yearly mean sunspot number", Royal Observatory of Belgium; the series as of 2008. https://www.sidc.be/SILSO/
"""

from pathlib import Path

import numpy as np

from client.data.keys import Keys
from client.data.options import SunspotsOptions
from client.data.windows import cut_windows
from models.errors import DataError
from models.learner import Examples

SUNSPOTS_FILE = Path(__file__).with_name("sunspots.csv")
MEAN = 49.752104
DEVIATION = 40.387085
"""Values are less their mean, in units of their deviation: a mean squared error of 1 is the series' own variance."""


def load_sunspots(options: SunspotsOptions) -> Examples:
    """Cut the windows of each span of years, earliest first.

    Returns:
        Inputs float32 (windows, window, 1) and targets float32 (windows, horizon), in deviations from the mean, and their timeline.

    Raises:
        DataError: The spans are too short for one window.
    """
    counts = np.loadtxt(SUNSPOTS_FILE, delimiter=",", usecols=[1], ndmin=2)  # (years, 1)
    spans = np.arange(len(counts)) * options.spans // len(counts)
    shortest = len(counts) // options.spans
    width = options.window + options.horizon
    examples = cut_windows(((counts - MEAN) / DEVIATION).astype(np.float32), spans, options.window, options.horizon)
    if shortest < width or examples is None:
        raise DataError(
            f"Sunspots: spans must have at least {width} years each for a window and its horizon, got {shortest}. "
            "Lower spans, window or horizon."
        )
    return examples


def sunspot_keys(options: SunspotsOptions) -> Keys:
    """Return the span of each window that `load_sunspots` cuts, int64 (windows,), from 0: the natural key."""
    timeline = load_sunspots(options).timeline
    assert timeline is not None
    return timeline.series.numpy()
