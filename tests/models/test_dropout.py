"""Dropout with draws of its own: how many values it drops, how it scales the others, and where it leaves torch's alone."""

import pytest
import torch
from torch import nn
from torch.func import vmap

from models.dropout import Dropout, draw_mask
from models.random_stream import RandomStream

COUNT = 200_000


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5, 0.9])
def test_mask_drops_at_its_rate_and_keeps_the_mean(rate: float) -> None:
    mask = draw_mask((COUNT,), rate, generator=torch.Generator().manual_seed(1))
    assert sorted(set(mask.tolist())) == [0, pytest.approx(1 / (1 - rate), rel=1e-3)]
    deviation = (rate * (1 - rate) / COUNT) ** 0.5
    assert mask.eq(0).double().mean().item() == pytest.approx(rate, abs=5 * deviation)
    assert mask.double().mean().item() == pytest.approx(1, abs=5 * deviation / (1 - rate))


def test_each_sixteen_bits_of_a_draw_are_a_value_of_their_own() -> None:
    masks = draw_mask((COUNT // 4, 4), 0.5, generator=torch.Generator().manual_seed(2)).bool().double()
    correlation = torch.corrcoef(masks.T)
    assert (correlation - torch.eye(4, dtype=torch.float64)).abs().max() < 5 * (COUNT // 4) ** -0.5


@pytest.mark.parametrize(("rate", "kept"), [(0.0, 1.0), (1e-9, 1.0), (0.999999, 2.0**-16)])
def test_rates_beyond_the_draws_reach_never_divide_by_zero(rate: float, kept: float) -> None:
    mask = draw_mask((COUNT * 5,), rate, generator=torch.Generator().manual_seed(3))
    assert mask.bool().double().mean().item() == pytest.approx(kept, rel=1.0)
    assert mask.isfinite().all()
    assert mask.max().item() == 1 / kept


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (0, 4), (2, 3, 2, 3)])
def test_values_keep_their_shape_and_type_and_gradients_take_the_same_mask(shape: tuple[int, ...]) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        values = torch.rand(shape).add(1).to(dtype).requires_grad_()
        dropped = Dropout(0.5)(values)
        assert (dropped.shape, dropped.dtype) == (shape, dtype)
        dropped.sum().backward()
        assert values.grad is not None
        assert torch.equal(values.grad, torch.where(dropped != 0, 2.0, 0.0).to(dtype))


def test_it_follows_the_seed() -> None:
    layer, values = Dropout(0.5), torch.ones(100)
    streams = [RandomStream(seed) for seed in (4, 4, 5)]
    drawn = []
    for stream in streams:
        with stream.drawing():
            drawn.append(layer(values))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_nothing_is_drawn_in_an_evaluation_or_at_rate_zero() -> None:
    values = torch.rand(10)
    before = torch.random.get_rng_state()
    assert torch.equal(Dropout(0.5).eval()(values), values)
    assert torch.equal(Dropout(0.0)(values), values)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_elsewhere_than_on_a_cpu_it_is_torchs() -> None:
    before = torch.random.get_rng_state()
    values = torch.ones(4, 5, device="meta")
    assert Dropout(0.5)(values).shape == values.shape
    assert torch.equal(torch.random.get_rng_state(), before)
    assert isinstance(Dropout(0.5), nn.Dropout)


def test_under_vmap_each_draws_its_own() -> None:
    drawn = vmap(Dropout(0.5), randomness="different")(torch.ones(3, 1000))
    assert ((drawn == 0).double().mean(1) - 0.5).abs().max() < 0.1
    assert not torch.equal(drawn[0], drawn[1])
