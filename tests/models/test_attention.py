"""Attention: hand-worked weights, torch's own as a reference, and gradients by finite differences."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.attention import AdditiveAttention, DotAttention, MultiHeadAttention

ALL = torch.ones(2, 3, dtype=torch.bool)


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_dot_attention_of_a_hand_worked_query() -> None:
    memory = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]]])
    attention = DotAttention()
    query = torch.tensor([[math.log(3), 0.0]])
    context, weights = attention(query, attention.keys(memory), memory, torch.tensor([[True, True, False]]))
    # Scores log 3 and 0, so weights 3 to 1; the third place is padding.
    torch.testing.assert_close(weights, torch.tensor([[0.75, 0.25, 0.0]]))
    torch.testing.assert_close(context, torch.tensor([[0.75, 0.25]]))


def test_additive_attention_of_a_hand_worked_query() -> None:
    attention = AdditiveAttention(1)
    with torch.no_grad():
        for parameter, value in zip(attention.parameters(), (1.0, 0.5, 2.0, math.log(3)), strict=True):
            parameter.fill_(value)
    # score = log 3 * tanh(query + 0.5 + 2 * memory): of query -0.5, tanh(0) = 0 at 0, and nearly 1 at 20.
    memory = torch.tensor([[[0.0], [20.0]]])
    context, weights = attention(torch.tensor([[-0.5]]), attention.keys(memory), memory, ALL[:1, :2])
    torch.testing.assert_close(weights, torch.tensor([[0.25, 0.75]]))
    torch.testing.assert_close(context, torch.tensor([[15.0]]))


@pytest.mark.parametrize("attention", [AdditiveAttention(4), DotAttention()], ids=["additive", "dot"])
def test_attention_gradients_are_those_of_finite_differences(attention: AdditiveAttention | DotAttention) -> None:
    attention = attention.double()
    is_code = torch.tensor([[True, True, True], [True, False, False]])
    query, memory = drawn(2, 4).double().requires_grad_(), drawn(2, 3, 4, seed=2).double().requires_grad_()
    names, parameters = zip(*attention.named_parameters(), strict=True) if [*attention.parameters()] else ((), ())

    def both(query: Tensor, memory: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        class Whole(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.attention = attention

            def forward(self) -> tuple[Tensor, Tensor]:
                found: tuple[Tensor, Tensor] = self.attention(query, self.attention.keys(memory), memory, is_code)
                return found

        given = {f"attention.{name}": parameter for name, parameter in zip(names, parameters, strict=True)}
        found: tuple[Tensor, Tensor] = torch.func.functional_call(Whole(), given)
        return found

    assert torch.autograd.gradcheck(both, (query, memory, *parameters))


def reference(attention: MultiHeadAttention, width: int, heads: int) -> nn.MultiheadAttention:
    """Return torch's own attention with the same weights."""
    found = nn.MultiheadAttention(width, heads, batch_first=True)
    parts = (attention.query, attention.key, attention.value)
    with torch.no_grad():
        found.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        found.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        found.out_proj.weight.copy_(attention.output.weight)
        found.out_proj.bias.copy_(attention.output.bias)
    return found


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_multi_head_attention_is_torchs_own(heads: int) -> None:
    torch.manual_seed(1)
    attention = MultiHeadAttention(8, heads)
    queries, memory = drawn(2, 5, 8), drawn(2, 3, 8, seed=2)
    is_code = torch.tensor([[True, True, True], [True, True, False]])
    outputs, weights = attention(queries, memory, is_code.unsqueeze(1))
    expected, expected_weights = reference(attention, 8, heads)(
        queries, memory, memory, key_padding_mask=~is_code, average_attn_weights=False
    )
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(weights, expected_weights)


def test_multi_head_attention_to_what_came_before_is_torchs_causal_product() -> None:
    torch.manual_seed(1)
    attention, x = MultiHeadAttention(8, 2), drawn(2, 5, 8)
    is_before = torch.ones(1, 5, 5, dtype=torch.bool).tril()
    found, _ = attention(x, x, is_before)
    parts = (attention.query, attention.key, attention.value)
    query, key, value = (part(x).view(2, 5, 2, 4).transpose(1, 2) for part in parts)
    product = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(found, attention.output(product.transpose(1, 2).flatten(2)))


def test_multi_head_attention_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(1)
    attention = MultiHeadAttention(4, 2).double()
    queries, memory = drawn(1, 2, 4).double().requires_grad_(), drawn(1, 3, 4, seed=2).double().requires_grad_()
    names, parameters = zip(*attention.named_parameters(), strict=True)
    is_visible = torch.tensor([[[True, True, False]]])

    def look(queries: Tensor, memory: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        given = dict(zip(names, parameters, strict=True))
        found: tuple[Tensor, Tensor] = torch.func.functional_call(attention, given, (queries, memory, is_visible))
        return found

    assert torch.autograd.gradcheck(look, (queries, memory, *parameters))
