"""Attention: a query looks at a memory and takes from it the mean of what lies there, weighted by how well it fits.

    weights_j = softmax_j(score(query, key_j)),   context = sum_j weights_j * value_j

    additive:     score = v^T tanh(W query + U memory_j)
    dot:          score = query^T memory_j
    multi-head:   score = query_h^T key_hj / sqrt(head_dim) in each head h, with projections of the query, keys and values of its own

Sources: Bahdanau, Cho and Bengio, "Neural Machine Translation by Jointly Learning to Align and Translate", ICLR 2015, section 3.1 and
appendix A.1.2. https://arxiv.org/abs/1409.0473
Luong, Pham and Manning, "Effective Approaches to Attention-based Neural Machine Translation", EMNLP 2015, section 3.1.
https://arxiv.org/abs/1508.04025
Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 3.2. https://arxiv.org/abs/1706.03762
"""

import math

import torch
from torch import Tensor, nn


class AdditiveAttention(nn.Module):
    """Bahdanau's attention: a small network scores each place of the memory."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.memory = nn.Linear(width, width, bias=False)
        self.score = nn.Linear(width, 1, bias=False)

    def keys(self, memory: Tensor) -> Tensor:
        """Return what `forward` needs of a memory, (batch, time, width), and is the same for every query."""
        keys: Tensor = self.memory(memory)
        return keys

    def forward(self, query: Tensor, keys: Tensor, memory: Tensor, is_code: Tensor) -> tuple[Tensor, Tensor]:
        """Return the context, (batch, width), and the weights, (batch, time).

        Args:
            query: (batch, width).
            keys: As `keys` returns them, (batch, time, width).
            memory: (batch, time, width).
            is_code: Where the memory is none of padding, bool (batch, time).
        """
        scores = self.score(torch.tanh(self.query(query).unsqueeze(1) + keys)).squeeze(2)  # (batch, time)
        return _look(scores, memory, is_code)


class DotAttention(nn.Module):
    """Luong's simplest attention: the memory is scored by its product with the query, without parameters."""

    def keys(self, memory: Tensor) -> Tensor:
        """Return the memory, which is its own key."""
        return memory

    def forward(self, query: Tensor, keys: Tensor, memory: Tensor, is_code: Tensor) -> tuple[Tensor, Tensor]:
        """Return the context, (batch, width), and the weights, (batch, time); arguments as those of `AdditiveAttention`."""
        return _look(torch.bmm(keys, query.unsqueeze(2)).squeeze(2), memory, is_code)


def _look(scores: Tensor, memory: Tensor, is_code: Tensor) -> tuple[Tensor, Tensor]:
    weights = scores.masked_fill(~is_code, -math.inf).softmax(dim=1)  # (batch, time)
    return torch.bmm(weights.unsqueeze(1), memory).squeeze(1), weights


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention in several heads, each in a projection of its own of all that it sees."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, queries: Tensor, memory: Tensor, is_visible: Tensor) -> tuple[Tensor, Tensor]:
        """Return what each query takes, (batch, queries, width), and the weights, (batch, heads, queries, time).

        Args:
            queries: (batch, queries, width).
            memory: What keys and values are projections of, (batch, time, width).
            is_visible: Which places each query may look at, at least one: bool (batch or 1, queries or 1, time).
        """
        query = self._split(self.query(queries))  # (batch, heads, queries, head_dim)
        key, value = self._split(self.key(memory)), self._split(self.value(memory))  # (batch, heads, time, head_dim)
        scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[3])  # (batch, heads, queries, time)
        weights = scores.masked_fill(~is_visible.unsqueeze(1), -math.inf).softmax(dim=3)
        taken = (weights @ value).transpose(1, 2).flatten(2)  # (batch, queries, width)
        return self.output(taken), weights

    def _split(self, projected: Tensor) -> Tensor:
        batch, time, width = projected.shape
        heads = projected.view(batch, time, self.heads, width // self.heads)
        return heads.transpose(1, 2)  # (batch, heads, time, head_dim)
