import json
import lzma
from typing import get_args

import pytest
import torch

from client.data import load, load_keys, parse_source
from client.data.options import Role
from client.data.shakespeare import SHAKESPEARE_FILE
from models.errors import DataError

SPEECHES = json.loads(lzma.decompress(SHAKESPEARE_FILE.read_bytes()))


def test_shakespeare_roles_are_those_of_the_file() -> None:
    assert get_args(Role) == tuple(SPEECHES)
    assert {len(speech) for speech in SPEECHES.values()} == {10_000}


def test_load_shakespeare_gives_windows_of_each_role_in_the_order_of_the_file() -> None:
    source = parse_source("shakespeare,roles=king-lear/KING LEAR|hamlet/HAMLET,window=100")
    examples = load(source)
    assert load_keys(source).tolist() == ["hamlet/HAMLET"] * 99 + ["king-lear/KING LEAR"] * 99
    for role, start in (("hamlet/HAMLET", 0), ("king-lear/KING LEAR", 99)):
        speech = SPEECHES[role].encode()
        own = slice(start, start + 99)
        assert bytes(examples.inputs[own].flatten().tolist()) == speech[:9900]
        assert bytes(examples.targets[own].flatten().tolist()) == speech[1:9901]


def test_load_shakespeare_takes_all_roles_by_default() -> None:
    source = parse_source("shakespeare")
    assert load(source).inputs.shape == (1489, 80)  # 124 a role, and one more of the role with other letters than ASCII
    assert set(load_keys(source).tolist()) == set(SPEECHES)


def test_parse_source_role_that_is_not_there_is_refused() -> None:
    with pytest.raises(DataError, match=r"roles\.0 must be 'hamlet/HAMLET', .*, got 'OPHELIA'"):
        parse_source("shakespeare,roles=OPHELIA")


def test_load_shakespeare_with_speakers_gives_classes_that_do_not_depend_on_which_are_taken() -> None:
    everyone = load(parse_source("shakespeare,speakers=true"))
    assert everyone.targets.dtype == torch.int64
    assert list(dict.fromkeys(everyone.targets.tolist())) == list(range(12))
    some = parse_source("shakespeare,speakers=true,roles=king-lear/KING LEAR|othello/IAGO")
    found, plain = load(some), load(parse_source("shakespeare,roles=king-lear/KING LEAR|othello/IAGO"))
    assert torch.equal(found.inputs, plain.inputs)
    order = ["othello/IAGO", "king-lear/KING LEAR"]
    assert list(dict.fromkeys(found.targets.tolist())) == [get_args(Role).index(role) for role in order]
    assert load_keys(some).tolist() == [get_args(Role)[number] for number in found.targets.tolist()]
