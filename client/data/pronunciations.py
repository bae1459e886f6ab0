"""The embedded pronunciations: 3,000 English spellings and the phones they are spoken with.

Source: Carnegie Mellon University, "The CMU Pronouncing Dictionary". http://www.speech.cs.cmu.edu/cgi-bin/cmudict
"""

import lzma
from pathlib import Path

import numpy as np
import torch

from client.data.keys import Keys
from client.data.options import PronunciationsOptions
from client.data.pairs import as_bytes
from client.data.sequences import padded
from models.learner import Examples

PRONUNCIATIONS_FILE = Path(__file__).with_name("g2p_3000.txt.xz")

# fmt: off
PHONES = (
    "AA", "AE", "AH", "AO", "AW", "AY", "B", "CH", "D", "DH", "EH", "ER", "EY", "F", "G", "HH", "IH", "IY", "JH", "K",
    "L", "M", "N", "NG", "OW", "OY", "P", "R", "S", "SH", "T", "TH", "UH", "UW", "V", "W", "Y", "Z", "ZH",
)
# fmt: on
"""ARPAbet's phones, without stress, in the order of their numbers."""


def load_pronunciations(options: PronunciationsOptions) -> Examples:
    """Read the pairs with the chosen first letters, in the order of the file.

    Returns:
        Inputs int64 (pairs, 7), bytes of the spelling; targets int64 (pairs, 9), numbers of `PHONES`; both end in `PADDING`. The
        lengths are those of the longest of all 3,000 pairs, so that they do not depend on the letters.
    """
    numbers = {phone: number for number, phone in enumerate(PHONES)}
    spellings, spoken = zip(*_pairs(), strict=True)
    inputs = padded([as_bytes(spelling) for spelling in spellings])
    targets = padded([np.array([numbers[phone] for phone in phones.split()], dtype=np.int64) for phones in spoken])
    is_chosen = np.isin(_letters(), options.letters)
    return Examples(torch.from_numpy(inputs[is_chosen]), torch.from_numpy(targets[is_chosen]))


def pronunciation_keys(options: PronunciationsOptions) -> Keys:
    """Return the first letter of each spelling that `load_pronunciations` reads, (pairs,): the natural key."""
    letters = _letters()
    return letters[np.isin(letters, options.letters)]


def _pairs() -> list[tuple[str, str]]:
    """Return spellings and their phones, which spaces separate."""
    with lzma.open(PRONUNCIATIONS_FILE, "rt", encoding="utf-8") as file:
        parts = [line.rstrip("\n").split("\t") for line in file]
    return [(spelling, phones) for spelling, phones in parts]


def _letters() -> Keys:
    return np.array([spelling[0] for spelling, _ in _pairs()], dtype=np.str_)
