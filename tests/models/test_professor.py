"""Professor forcing: whose gradients each loss moves, when it counts, and that the discriminator learns."""

import math

import pytest
import torch
from torch import Tensor

from models.professor import Contest, Discriminator, contest

LENGTHS = torch.tensor([3, 2])


def states(seed: int, shift: float = 0.0) -> Tensor:
    return (torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed)) + shift).requires_grad_()


def test_losses_of_an_undecided_discriminator_are_those_of_a_coin() -> None:
    judge = Discriminator(4, 8)
    for parameter in judge.judge.parameters():
        torch.nn.init.zeros_(parameter)
    found = contest(judge, states(1), states(2), LENGTHS)
    assert found.discriminator_loss.item() == pytest.approx(2 * math.log(2))
    assert found.fooling_loss.item() == pytest.approx(math.log(2))
    assert float(found.accuracy) == 0.5  # 0 counts as free


def test_each_loss_moves_its_own_side_alone() -> None:
    torch.manual_seed(1)
    judge, taught, free = Discriminator(4, 8), states(1), states(2)
    found = contest(judge, taught, free, LENGTHS)
    found.discriminator_loss.backward()  # type: ignore[no-untyped-call]
    assert taught.grad is None
    assert free.grad is None
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in judge.parameters())
    before = [parameter.grad.clone() for parameter in judge.parameters() if parameter.grad is not None]
    contest(judge, taught, free, LENGTHS).fooling_loss.backward()  # type: ignore[no-untyped-call]
    assert taught.grad is None
    assert free.grad is not None
    assert free.grad[0].any()
    assert not free.grad[1, 2].any()  # behind the end
    after = [parameter.grad for parameter in judge.parameters()]
    assert all(torch.equal(left, right) for left, right in zip(before, after, strict=True) if right is not None)


@pytest.mark.parametrize(
    ("accuracy", "expected"), [(0.5, 2.0), (0.75, 2.0), (0.8, 12.0), (0.98, 12.0), (0.99, 10.0), (1.0, 10.0)]
)
def test_objective_leaves_out_a_side_that_is_too_good(accuracy: float, expected: float) -> None:
    assert float(Contest(torch.tensor(2.0), torch.tensor(10.0), torch.tensor(accuracy)).objective) == expected


def test_discriminator_learns_to_tell_states_apart() -> None:
    torch.manual_seed(1)
    judge, lengths = Discriminator(4, 8), torch.tensor([3] * 32)
    optimizer = torch.optim.Adam(judge.parameters(), 0.01)
    for _ in range(60):
        taught, free = torch.randn(32, 3, 4) + 0.7, torch.randn(32, 3, 4) - 0.7
        optimizer.zero_grad()
        contest(judge, taught, free, lengths).discriminator_loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    found = contest(judge, torch.randn(32, 3, 4) + 0.7, torch.randn(32, 3, 4) - 0.7, lengths)
    assert float(found.accuracy) > 0.9
    assert found.discriminator_loss.item() < 0.6
