"""The embedded Shakespeare: the first speeches of 12 roles of his plays, 10,000 characters each."""

import json
import lzma
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import torch

from client.data.keys import Keys
from client.data.options import Role, ShakespeareOptions
from client.data.text import cut_text, window_keys
from models.learner import Examples

SHAKESPEARE_FILE = Path(__file__).with_name("shakespeare_12roles.json.xz")


def load_shakespeare(options: ShakespeareOptions) -> Examples:
    """Cut the speeches of the chosen roles, in the order of the file, into windows of bytes as `load_text` does.

    With `speakers`, targets are classes, (windows,), instead of the text one byte later.
    """
    examples = cut_text(list(_speeches(options).values()), options.window)
    if not options.speakers:
        return examples
    numbers = {role: number for number, role in enumerate(get_args(Role))}
    return Examples(examples.inputs, torch.tensor([numbers[role] for role in shakespeare_keys(options).tolist()]))


def shakespeare_keys(options: ShakespeareOptions) -> Keys:
    """Return the role of each window that `load_shakespeare` cuts, (windows,): the natural key."""
    return window_keys(_speeches(options), options.window)


def _speeches(options: ShakespeareOptions) -> dict[str, npt.NDArray[np.uint8]]:
    with lzma.open(SHAKESPEARE_FILE, "rt", encoding="utf-8") as file:
        speeches = json.load(file)
    return {
        role: np.frombuffer(speech.encode(), dtype=np.uint8)
        for role, speech in speeches.items()
        if role in options.roles
    }
