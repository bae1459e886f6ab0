import lzma

import numpy as np
import torch

from client.data import load, load_keys, parse_source
from client.data.pronunciations import PHONES, PRONUNCIATIONS_FILE
from models.learner import PADDING

LINES = lzma.decompress(PRONUNCIATIONS_FILE.read_bytes()).decode().splitlines()


def test_phones_are_those_of_the_file_in_sorted_order() -> None:
    assert sorted({phone for line in LINES for phone in line.split("\t")[1].split()}) == list(PHONES)
    assert len(PHONES) == 39


def test_load_pronunciations_gives_bytes_and_phones_that_end_in_padding() -> None:
    examples = load(parse_source("pronunciations"))
    assert examples.inputs.dtype == examples.targets.dtype == torch.int64
    assert (examples.inputs.shape, examples.targets.shape) == ((3000, 7), (3000, 9))
    assert LINES[1] == "pubs\tP AH B Z"
    assert examples.inputs[1].tolist() == [*b"pubs", PADDING, PADDING, PADDING]
    assert examples.targets[1].tolist() == [26, 2, 6, 37] + [PADDING] * 5


def test_load_pronunciations_codes_give_back_every_line() -> None:
    examples = load(parse_source("pronunciations"))
    for line, spelling, phones in zip(LINES, examples.inputs.tolist(), examples.targets.tolist(), strict=True):
        letters = bytes(code for code in spelling if code != PADDING).decode()
        assert line == f"{letters}\t{' '.join(PHONES[code] for code in phones if code != PADDING)}"


def test_load_pronunciations_first_letters_are_the_keys_and_do_not_change_the_lengths() -> None:
    source = parse_source("pronunciations,letters=x|q")
    examples, keys = load(source), load_keys(source)
    assert np.unique(keys, return_counts=True)[1].tolist() == [14, 4]
    assert examples.inputs[:, 0].tolist() == [ord(key) for key in keys]
    assert (examples.inputs.shape, examples.targets.shape) == ((18, 7), (18, 9))
    assert set(load_keys(parse_source("pronunciations"))) == set("abcdefghijklmnopqrstuvwxyz")
