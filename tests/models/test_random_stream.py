"""Random draws as a stream of their own, held against torch seeded by hand."""

import pytest
import torch

from models.random_stream import RandomStream


def drawn(stream: RandomStream) -> list[float]:
    with stream.drawing():
        return torch.rand(3).tolist()


def draw_and_fail() -> None:
    torch.rand(1)
    raise ZeroDivisionError


def test_stream_is_what_torch_draws_after_the_same_seed() -> None:
    torch.manual_seed(7)
    expected = [torch.rand(3).tolist(), torch.rand(3).tolist()]
    stream = RandomStream(7)
    found = [drawn(stream)]
    # What others draw in between changes nothing.
    torch.rand(5)
    drawn(RandomStream(8))
    assert [*found, drawn(stream)] == expected


def test_stream_leaves_the_global_generator_as_it_was() -> None:
    torch.manual_seed(1)
    expected = torch.rand(2).tolist()
    torch.manual_seed(1)
    drawn(RandomStream(7))
    with pytest.raises(ZeroDivisionError), RandomStream(7).drawing():
        draw_and_fail()
    assert torch.rand(2).tolist() == expected
