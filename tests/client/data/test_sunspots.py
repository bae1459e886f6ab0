import numpy as np
import pytest
import torch

from client.data import load, load_keys, parse_source
from client.data.sunspots import DEVIATION, MEAN, SUNSPOTS_FILE
from models.errors import DataError

COUNTS = np.loadtxt(SUNSPOTS_FILE, delimiter=",")[:, 1]


def test_sunspots_constants_are_those_of_the_whole_series() -> None:
    assert pytest.approx(COUNTS.mean(), abs=1e-6) == MEAN
    assert pytest.approx(COUNTS.std(), abs=1e-6) == DEVIATION


def test_load_sunspots_by_hand() -> None:
    examples = load(parse_source("sunspots,window=2,horizon=2,spans=1"))
    assert (examples.inputs.dtype, examples.targets.dtype) == (torch.float32, torch.float32)
    assert (examples.inputs.shape, examples.targets.shape) == ((306, 2, 1), (306, 2))
    # 1700 to 1703: 5, 11, 16, 23
    first = torch.cat([examples.inputs[0, :, 0], examples.targets[0]]) * DEVIATION + MEAN
    assert first.tolist() == pytest.approx([5, 11, 16, 23], abs=1e-4)


def test_load_sunspots_no_window_crosses_a_span() -> None:
    source = parse_source("sunspots,window=60")
    examples, keys = load(source), load_keys(source)
    # 309 years in five spans, of which one has 61 years and the others 62.
    assert np.bincount(keys).tolist() == [2, 2, 2, 2, 1]
    firsts = (examples.inputs[:, 0, 0].numpy() * DEVIATION + MEAN).tolist()
    years = [0, 1, 62, 63, 124, 125, 186, 187, 248]
    assert firsts == pytest.approx(COUNTS[years].tolist(), abs=1e-4)


def test_load_sunspots_spans_too_short_are_refused() -> None:
    with pytest.raises(DataError, match=r"spans must have at least 25 years each .*, got 23\. Lower"):
        load(parse_source("sunspots,spans=13"))
    with pytest.raises(DataError, match=r"spans must have at least 25 years each .*, got 0\. Lower"):
        load(parse_source("sunspots,spans=1000"))
