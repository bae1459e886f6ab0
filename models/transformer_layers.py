"""Layers of the transformer: embeddings with sinusoidal positions, and self-attention, attention to a memory and position-wise layers.

    PE(pos, 2i) = sin(pos / 10000^(2i / d)),   PE(pos, 2i + 1) = cos(pos / 10000^(2i / d))
    FFN(x) = W_2 act(W_1 x + b_1) + b_2,   act the ReLU in the paper
    post-norm:  x <- norm(x + dropout(sublayer(x)))          pre-norm:  x <- x + dropout(sublayer(norm(x)))

Sources: Vaswani et al., "Attention Is All You Need", NeurIPS 2017, sections 3 and 5.4. https://arxiv.org/abs/1706.03762
Xiong et al., "On Layer Normalization in the Transformer Architecture", ICML 2020 (pre-norm). https://arxiv.org/abs/2002.04745
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.attention import MultiHeadAttention
from models.dropout import Dropout


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What all layers of a transformer share.

    Attributes:
        width: Of what runs through the layers, d in the paper; even, and a multiple of `heads`.
        heads: Heads of each attention.
        feed_forward: Width between the two maps of a position-wise layer.
        dropout: Part of each sublayer's output and of the embeddings that is dropped in training.
        has_pre_norm: Whether a sublayer's input is normalised, or the sum behind it.
        activation: Makes what is between the two maps of a position-wise layer.
    """

    width: int
    heads: int
    feed_forward: int
    dropout: float
    has_pre_norm: bool
    activation: Callable[[], nn.Module] = nn.ReLU


def positions(time: int, width: int, device: torch.device) -> Tensor:
    """Return the sinusoidal positions, float32 (time, width)."""
    rates = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10_000.0) / width))  # (width / 2,)
    angles = torch.arange(time, device=device).unsqueeze(1) * rates  # (time, width / 2)
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)  # (time, width)


class Embedding(nn.Module):
    """Codes (batch, time) to sqrt(width) * their embeddings + positions, (batch, time, width)."""

    def __init__(self, codes: int, shape: LayerShape) -> None:
        super().__init__()
        self.codes = nn.Embedding(codes, shape.width)
        nn.init.normal_(self.codes.weight, std=shape.width**-0.5)
        self.dropout = Dropout(shape.dropout)

    def forward(self, codes: Tensor) -> Tensor:
        """Embed codes where they stand."""
        embedded = self.codes(codes)  # (batch, time, width)
        time, width = embedded.shape[1:]
        found: Tensor = self.dropout(embedded * math.sqrt(width) + positions(time, width, codes.device))
        return found


class Residual(nn.Module):
    """What is around a sublayer: dropout of its output, the sum with its input, and the norm."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(shape.width)
        self.dropout = Dropout(shape.dropout)
        self.has_pre_norm = shape.has_pre_norm

    def enter(self, x: Tensor) -> Tensor:
        """Return what the sublayer is given of x."""
        entered: Tensor = self.norm(x) if self.has_pre_norm else x
        return entered

    def leave(self, x: Tensor, output: Tensor) -> Tensor:
        """Return the next x from this one and the sublayer's output."""
        total: Tensor = x + self.dropout(output)
        left: Tensor = total if self.has_pre_norm else self.norm(total)
        return left


def _feed_forward(shape: LayerShape) -> nn.Module:
    return nn.Sequential(
        nn.Linear(shape.width, shape.feed_forward), shape.activation(), nn.Linear(shape.feed_forward, shape.width)
    )


class EncoderLayer(nn.Module):
    """Self-attention, then the position-wise layer."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.attention, self.around_attention = MultiHeadAttention(shape.width, shape.heads), Residual(shape)
        self.feed_forward, self.around_feed_forward = _feed_forward(shape), Residual(shape)

    def forward(self, x: Tensor, is_visible: Tensor) -> Tensor:
        """Return the next x, (batch, time, width); each position sees those of `is_visible`, (batch, 1, time)."""
        entered = self.around_attention.enter(x)
        x = self.around_attention.leave(x, self.attention(entered, entered, is_visible)[0])
        return self.around_feed_forward.leave(x, self.feed_forward(self.around_feed_forward.enter(x)))


class DecoderLayer(nn.Module):
    """Self-attention to what came before, attention to the memory, then the position-wise layer."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.attention, self.around_attention = MultiHeadAttention(shape.width, shape.heads), Residual(shape)
        self.look, self.around_look = MultiHeadAttention(shape.width, shape.heads), Residual(shape)
        self.feed_forward, self.around_feed_forward = _feed_forward(shape), Residual(shape)

    def forward(self, x: Tensor, memory: Tensor, is_visible: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next x, (batch, time, width), and where it looked, (batch, heads, time, source time).

        Args:
            x: (batch, time, width).
            memory: The encoder's outputs, (batch, source time, width).
            is_visible: Where those are none of padding, (batch, 1, source time).
        """
        time = x.shape[1]
        is_before = torch.ones(1, time, time, dtype=torch.bool, device=x.device).tril()
        entered = self.around_attention.enter(x)
        x = self.around_attention.leave(x, self.attention(entered, entered, is_before)[0])
        output, weights = self.look(self.around_look.enter(x), memory, is_visible)
        x = self.around_look.leave(x, output)
        return self.around_feed_forward.leave(x, self.feed_forward(self.around_feed_forward.enter(x))), weights
