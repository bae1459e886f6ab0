"""Real data from an installed package: handwritten digits, and the English text that describes them."""

import pytest
import torch
from sklearn.datasets import load_digits

from models import Examples

WINDOW = 32


@pytest.fixture(scope="session")
def digits() -> Examples:
    """1,797 handwritten digits: float32 (examples, 64), 0 to 1, and their classes."""
    bunch = load_digits()
    return Examples(torch.from_numpy(bunch.data).float() / 16, torch.from_numpy(bunch.target).long())


@pytest.fixture(scope="session")
def images(digits: Examples) -> Examples:
    """The same digits as float32 (examples, 1, 8, 8)."""
    return Examples(digits.inputs.reshape(-1, 1, 8, 8), digits.targets)


@pytest.fixture(scope="session")
def rows(digits: Examples) -> Examples:
    """The same digits as series of 8 rows, float32 (examples, 8, 8)."""
    return Examples(digits.inputs.reshape(-1, 8, 8), digits.targets)


@pytest.fixture(scope="session")
def text() -> Examples:
    """Windows of English text as bytes, int64 (examples, 32), each with the byte that follows at every position."""
    codes = torch.tensor(list(load_digits().DESCR.encode()))
    count = (len(codes) - 1) // WINDOW
    return Examples(
        codes[: count * WINDOW].reshape(count, WINDOW), codes[1 : count * WINDOW + 1].reshape(count, WINDOW)
    )
