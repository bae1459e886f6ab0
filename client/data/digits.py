"""The embedded digits: 1,797 handwritten digits in 14 form blocks, about one writer each.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits
"""

from pathlib import Path

import numpy as np
import torch

from client.data.keys import Keys
from client.data.options import DigitsOptions
from models.learner import Examples

DIGITS_FILE = Path(__file__).with_name("digits_by_writer.npz")
_LARGEST_VALUE = 16.0


def load_digits(options: DigitsOptions) -> Examples:
    """Read the digits of the chosen form blocks, in the order of the file.

    Returns:
        Inputs float32 (digits, 1, 8, 8) from 0 to 1, targets int64 (digits,) from 0 to 9.
    """
    with np.load(DIGITS_FILE, allow_pickle=False) as arrays:
        is_chosen = np.isin(arrays["w"], options.blocks)
        pixels = arrays["x"][is_chosen].reshape(-1, 1, 8, 8)
        digits = arrays["y"][is_chosen]
    return Examples(
        torch.from_numpy(pixels.astype(np.float32) / _LARGEST_VALUE), torch.from_numpy(digits.astype(np.int64))
    )


def digit_keys(options: DigitsOptions) -> Keys:
    """Return the form block of each digit that `load_digits` reads, int64 (digits,): the natural key, about one writer each."""
    with np.load(DIGITS_FILE, allow_pickle=False) as arrays:
        blocks: Keys = arrays["w"].astype(np.int64)
    return blocks[np.isin(blocks, options.blocks)]
