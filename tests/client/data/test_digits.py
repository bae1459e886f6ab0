import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits as load_reference

from client.data import load, parse_source
from client.data.digits import DIGITS_FILE

BLOCK_SIZES = (130, 126, 130, 130, 130, 130, 130, 123, 128, 130, 128, 130, 122, 130)


def test_load_digits_all_equal_those_of_scikit_learn() -> None:
    digits = load(parse_source("digits"))
    reference = load_reference()
    assert digits.inputs.dtype == torch.float32
    assert digits.targets.dtype == torch.int64
    assert digits.inputs.shape == (1797, 1, 8, 8)
    np.testing.assert_array_equal(digits.inputs[:, 0].numpy() * 16, reference.images)
    np.testing.assert_array_equal(digits.targets.numpy(), reference.target)


@pytest.mark.parametrize(("block", "count"), list(enumerate(BLOCK_SIZES)))
def test_load_digits_each_block_has_its_size(block: int, count: int) -> None:
    assert len(load(parse_source(f"digits,blocks={block}"))) == count


def test_load_digits_blocks_are_taken_in_the_order_of_the_file() -> None:
    forwards = load(parse_source("digits,blocks=0|3"))
    backwards = load(parse_source("digits,blocks=3|0"))
    assert len(forwards) == BLOCK_SIZES[0] + BLOCK_SIZES[3]
    assert torch.equal(forwards.inputs, backwards.inputs)


def test_digits_file_has_its_notice_beside_it() -> None:
    notice = DIGITS_FILE.with_name("NOTICE").read_text(encoding="utf-8")
    assert DIGITS_FILE.name in notice
    assert "CC BY 4.0" in notice
