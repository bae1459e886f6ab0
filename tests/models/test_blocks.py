"""The transformer block against torch's own, and attention against its equation."""

import pytest
import torch
from torch import nn

from models.blocks import Attention, Block, BlockShape

SHAPE = BlockShape(width=12, heads=3, hidden=20)


def draws(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)


@pytest.mark.parametrize("is_norm_first", [True, False])
def test_block_equals_torchs_encoder_layer_with_the_same_weights(is_norm_first: bool) -> None:
    torch.manual_seed(0)
    block = Block(BlockShape(12, 3, 20, is_norm_first=is_norm_first)).double()
    theirs = nn.TransformerEncoderLayer(
        12, 3, 20, dropout=0.0, activation="gelu", batch_first=True, norm_first=is_norm_first, dtype=torch.float64
    )
    own, attention = block.state_dict(), block.attention
    parts = (attention.query, attention.key, attention.value)
    theirs.load_state_dict(
        {
            "self_attn.in_proj_weight": torch.cat([part.weight for part in parts]),
            "self_attn.in_proj_bias": torch.cat([part.bias for part in parts]),
            "self_attn.out_proj.weight": own["attention.output.weight"],
            "self_attn.out_proj.bias": own["attention.output.bias"],
            "linear1.weight": own["feed_forward.expand.weight"],
            "linear1.bias": own["feed_forward.expand.bias"],
            "linear2.weight": own["feed_forward.contract.weight"],
            "linear2.bias": own["feed_forward.contract.bias"],
            "norm1.weight": own["attention_norm.weight"],
            "norm1.bias": own["attention_norm.bias"],
            "norm2.weight": own["feed_forward_norm.weight"],
            "norm2.bias": own["feed_forward_norm.bias"],
        }
    )
    inputs, later = draws(2, 7, 12), torch.ones(7, 7, dtype=torch.bool).triu(1)
    torch.testing.assert_close(block(inputs, is_causal=True), theirs(inputs, src_mask=later))
    torch.testing.assert_close(block(inputs), theirs(inputs))
    padding = torch.tensor([[False] * 7, [False] * 4 + [True] * 3])
    found, expected = block(inputs, ~padding[:, None, None]), theirs(inputs, src_key_padding_mask=padding)
    torch.testing.assert_close(found[~padding], expected[~padding])


def test_attention_to_a_memory_follows_its_equation() -> None:
    torch.manual_seed(0)
    attention = Attention(BlockShape(4, 2, 8, scale=0.3)).double()
    inputs, memory, bias = draws(1, 3, 4), draws(1, 5, 4), draws(1, 2, 3, 5)
    query, key, value = attention.query(inputs)[0], attention.key(memory)[0], attention.value(memory)[0]
    heads = []
    for head in range(2):
        own = slice(2 * head, 2 * head + 2)
        weights = (0.3 * query[:, own] @ key[:, own].T + bias[0, head]).softmax(dim=1)  # (time, memory_time)
        heads.append(weights @ value[:, own])
    expected = attention.output(torch.cat(heads, dim=1))
    torch.testing.assert_close(attention(inputs, memory, bias)[0], expected)


def test_attention_gradient_equals_finite_differences() -> None:
    torch.manual_seed(0)
    attention = Attention(BlockShape(4, 2, 8)).double()
    inputs, memory = draws(2, 3, 4).requires_grad_(), draws(2, 4, 4).requires_grad_()
    torch.autograd.gradcheck(lambda x, y: attention(x, y), (inputs, memory))
    torch.autograd.gradcheck(lambda x: attention(x, x, is_causal=True), (inputs,))


def test_dropout_is_drawn_in_training_alone() -> None:
    torch.manual_seed(0)
    block, inputs = Block(BlockShape(12, 3, 20, dropout=0.5)).double(), draws(2, 7, 12)
    assert not torch.equal(block(inputs), block(inputs))
    # Attention weights drop out as well as what is added.
    assert not torch.equal(block.attention(inputs, inputs), block.attention(inputs, inputs))
    block.eval()
    assert torch.equal(block(inputs), block(inputs))
