"""The transformer block that `gpt`, `bert` and `t5` are made of: attention, then a feed-forward network, each added to its input.

    Attention(Q, K, V) = softmax(Q K^T / sqrt(head_dim) + mask) V                              Vaswani et al., equation 1
    FFN(x) = act(x W_1 + b_1) W_2 + b_2                                                         equation 2
    x = x + Attention(norm(x)),  x = x + FFN(norm(x))       norm first, as in GPT-2 and T5
    x = norm(x + Attention(x)),  x = norm(x + FFN(x))       norm last, as in the paper and in BERT

Source: Vaswani et al., "Attention Is All You Need", NeurIPS 2017, sections 3.1 to 3.3. https://arxiv.org/abs/1706.03762
Norm first: Xiong et al., "On Layer Normalization in the Transformer Architecture", ICML 2020. https://arxiv.org/abs/2002.04745
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from models.dropout import Dropout


@dataclass(frozen=True, slots=True)
class BlockShape:
    """What a block looks like.

    Attributes:
        width: Of the vectors that go through it, a multiple of `heads`.
        heads: Attentions side by side, each of head_dim = width / heads.
        hidden: Width of the feed-forward network.
        dropout: Part of attention weights and of what is added that is dropped in training.
        is_norm_first: Whether each part normalises what goes in, instead of the sum.
        has_bias: Whether dense layers have a bias.
        scale: What multiplies Q K^T; None for 1 / sqrt(head_dim).
        norm: Makes a normalisation of a width.
        activation: Makes the activation of the feed-forward network.
    """

    width: int
    heads: int
    hidden: int
    dropout: float = 0.0
    is_norm_first: bool = True
    has_bias: bool = True
    scale: float | None = None
    norm: Callable[[int], nn.Module] = nn.LayerNorm
    activation: Callable[[], nn.Module] = nn.GELU


class Attention(nn.Module):
    """Multi-head attention: each place asks with its query, and takes the values of the places whose keys answer."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.query = nn.Linear(shape.width, shape.width, shape.has_bias)
        self.key = nn.Linear(shape.width, shape.width, shape.has_bias)
        self.value = nn.Linear(shape.width, shape.width, shape.has_bias)
        self.output = nn.Linear(shape.width, shape.width, shape.has_bias)
        self._shape = shape

    def forward(self, inputs: Tensor, memory: Tensor, mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Attend from `inputs`, (batch, time, width), to `memory`, (batch, memory_time, width).

        Args:
            inputs: Who asks.
            memory: Who is asked: the inputs themselves in self-attention.
            mask: Broadcast to (batch, heads, time, memory_time): True where a place may look, or a float that is added to Q K^T.
            is_causal: Let each place look at itself and what comes before. Not with a mask.
        """
        query, key, value = (
            self._split(self.query(inputs)),
            self._split(self.key(memory)),
            self._split(self.value(memory)),
        )
        dropout = self._shape.dropout if self.training else 0.0
        heads = functional.scaled_dot_product_attention(
            query, key, value, mask, dropout, is_causal, scale=self._shape.scale
        )  # (batch, heads, time, head_dim)
        output: Tensor = self.output(heads.transpose(1, 2).flatten(2))  # (batch, time, width)
        return output

    def _split(self, vectors: Tensor) -> Tensor:
        batch, time, width = vectors.shape
        return vectors.view(batch, time, self._shape.heads, width // self._shape.heads).transpose(
            1, 2
        )  # (batch, heads, time, head_dim)


class Block(nn.Module):
    """One layer of a transformer; of a decoder with a memory, if it has a `cross` attention to that."""

    def __init__(self, shape: BlockShape, has_cross: bool = False) -> None:
        super().__init__()
        self.attention = Attention(shape)
        self.attention_norm = shape.norm(shape.width)
        if has_cross:
            self.cross = Attention(shape)
            self.cross_norm = shape.norm(shape.width)
        self.feed_forward = nn.Sequential(
            OrderedDict(
                expand=nn.Linear(shape.width, shape.hidden, shape.has_bias),
                activation=shape.activation(),
                contract=nn.Linear(shape.hidden, shape.width, shape.has_bias),
            )
        )
        self.feed_forward_norm = shape.norm(shape.width)
        self.dropout = Dropout(shape.dropout)
        self._is_norm_first = shape.is_norm_first

    def forward(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        is_causal: bool = False,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        """Return what goes on to the next block, (batch, time, width). Masks as in `Attention`."""
        x = self._added(inputs, self.attention_norm, lambda x: self.attention(x, x, mask, is_causal))
        if memory is not None:
            x = self._added(x, self.cross_norm, lambda x: self.cross(x, memory, memory_mask))
        return self._added(x, self.feed_forward_norm, self.feed_forward)

    def _added(self, x: Tensor, norm: nn.Module, part: Callable[[Tensor], Tensor]) -> Tensor:
        result: Tensor = x + self.dropout(part(norm(x))) if self._is_norm_first else norm(x + self.dropout(part(x)))
        return result


def initialise(module: nn.Module, layers: int) -> None:
    """Draw weights as GPT-2 and BERT do: N(0, .02), biases 0; what is added to the stream is smaller by sqrt(2 * layers).

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, section 2.3.
    """
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            is_added = name.endswith(("attention.output", "feed_forward.contract"))
            nn.init.normal_(part.weight, std=0.02 / (2 * layers) ** 0.5 if is_added else 0.02)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
