"""Text-to-text transfer transformer: an encoder reads, a decoder answers, and every task is text to text, told apart by a prefix.

Pre-training by span corruption (section 3.1.4): spans of 3 codes on average, 15 % of a text, are each replaced by a sentinel, and the
target is the sentinels with what they stand for. Then tasks by text: "reverse: abc" -> "cba" (section 2.4).

    text  Thank you for inviting me   inputs  Thank <1> inviting <2> END   target  <1> you for <2> me END

Blocks normalise first, by the root mean square and without biases; Q K^T is not scaled, but has a bias for each distance of query and key,
learned for each head and shared by all layers (section 2.1). The embedding is also the last layer, times width^-1/2.

Accuracy is of the text's codes in the answer, without sentinels and END, each guessed among the text's codes after the true ones before it.
Only exact_match and the loss also ask where gaps end.

Source: Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", JMLR 21(140), 2020.
https://arxiv.org/abs/1910.10683
"""

import math
from collections.abc import Mapping
from typing import Literal, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from models.activations import ACTIVATIONS, ActivationName
from models.blocks import Block, BlockShape
from models.dropout import Dropout
from models.errors import unsuited
from models.gradient import GradientParameters
from models.language import LanguageModel, check_no_targets, check_windows, drawn, own_draws, perplexity, prompt_of
from models.learner import PADDING, Examples, SampleRequest
from models.settings import refuse_unused
from models.spans import Spans
from models.tasks import code_loss
from wire.tensors import State

LONGEST = 1 << 16
"""Most codes of a text."""


class T5Parameters(GradientParameters):
    """Parameters of the learner `t5`."""

    vocabulary: int = Field(default=256, ge=2, le=1 << 20)
    """Number of codes, without END, START and the sentinels; 256 for bytes of text."""
    task: Literal["spans", "text"] = "spans"
    """`spans`: fill the gaps of the inputs, targets do not matter. `text`: from inputs to targets, both perhaps padded."""
    sentinels: int = Field(default=32, ge=1, le=4096)
    """Most gaps of a text."""
    noise: float = Field(default=0.15, gt=0, lt=1)
    """Part of the codes that goes into gaps."""
    span: float = Field(default=3.0, ge=1)
    """Mean length of a gap."""
    width: int = Field(default=64, ge=1)
    """Width of the vectors that go from block to block; a multiple of `heads`."""
    heads: int = Field(default=4, ge=1)
    """Attentions side by side in each block."""
    layers: int = Field(default=2, ge=1, le=256)
    """Blocks of the encoder, and of the decoder."""
    buckets: int = Field(default=32, ge=4, multiple_of=4)
    """Biases for distances of query and key."""
    farthest: int = Field(default=128, ge=2)
    """Distance from which on all share one bias."""
    activation: ActivationName = "relu"
    """Activation of each block's feed-forward network."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Part of embeddings, attention weights and what blocks add that is dropped in training."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads ({self.heads}), got {self.width}")
        if self.farthest <= self.buckets // 2:
            raise ValueError(f"farthest must be above half the buckets ({self.buckets // 2}), got {self.farthest}")
        if self.task == "text":
            refuse_unused(self, "where task is text", "noise", "span")
        return self

    @property
    def code_count(self) -> int:
        """Codes of texts, END, START and the sentinels."""
        return self.vocabulary + 2 + self.sentinels


def bucket(distance: Tensor, buckets: int, farthest: int, is_causal: bool) -> Tensor:
    """Return the bucket of each distance, key less query: small distances one each, larger ones by their logarithm.

    A decoder sees nothing that follows, so all its buckets are for what came before; an encoder has half of them for either side.
    """
    if is_causal:
        side, distance = torch.zeros_like(distance), (-distance).clamp(min=0)
    else:
        buckets //= 2
        side, distance = buckets * (distance > 0), distance.abs()
    exact = buckets // 2
    ratio = torch.log(distance.clamp(min=1).float() / exact) / math.log(farthest / exact)
    far = (exact + (ratio * (buckets - exact)).long()).clamp(max=buckets - 1)
    return side + torch.where(distance < exact, distance, far)


class RelativeBias(nn.Module):
    """A bias for each head and bucket of distances."""

    def __init__(self, parameters: T5Parameters, is_causal: bool) -> None:
        super().__init__()
        self.biases = nn.Embedding(parameters.buckets, parameters.heads)
        self._shape = parameters
        self._is_causal = is_causal

    def forward(self, time: int) -> Tensor:
        """Return what is added to Q K^T, (1, heads, time, time)."""
        places = torch.arange(time, device=self.biases.weight.device)
        distance = places[None, :] - places[:, None]
        rows = bucket(distance, self._shape.buckets, self._shape.farthest, self._is_causal)
        bias: Tensor = self.biases(rows).permute(2, 0, 1).unsqueeze(0)
        return bias.masked_fill(distance > 0, -torch.inf) if self._is_causal else bias


class Stack(nn.Module):
    """Blocks of an encoder or a decoder, with their relative biases and their last norm."""

    def __init__(self, parameters: T5Parameters, is_decoder: bool) -> None:
        super().__init__()
        shape = BlockShape(
            parameters.width,
            parameters.heads,
            4 * parameters.width,
            parameters.dropout,
            has_bias=False,
            scale=1.0,
            norm=_root_mean_square_norm,
            activation=ACTIVATIONS[parameters.activation],
        )
        self.distances = RelativeBias(parameters, is_decoder)
        self.dropout = Dropout(parameters.dropout)
        self.blocks = nn.ModuleList(Block(shape, is_decoder) for _ in range(parameters.layers))
        self.norm = _root_mean_square_norm(parameters.width)

    def forward(self, x: Tensor, is_there: Tensor, memory: Tensor | None = None) -> Tensor:
        """Map (batch, time, width) to the same.

        Args:
            x: Embedded codes.
            is_there: Where the codes that the encoder has read are not padding, (batch, memory_time).
            memory: What the encoder makes of them, (batch, memory_time, width); None in the encoder itself.
        """
        padding = is_there[:, None, None, :]  # (batch, 1, 1, memory_time)
        mask = self.distances(x.shape[1])  # (1, heads, time, time)
        if memory is None:
            mask = mask.masked_fill(~padding, -torch.inf)
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, mask, memory=memory, memory_mask=padding)
        normed: Tensor = self.dropout(self.norm(x))
        return normed


class EncoderDecoder(nn.Module):
    """Codes (batch, source_time), padded, and the answer so far (batch, time), to logits (batch, time, codes) of what comes next."""

    def __init__(self, parameters: T5Parameters) -> None:
        super().__init__()
        self.codes = nn.Embedding(parameters.code_count, parameters.width)
        self.encoder = Stack(parameters, is_decoder=False)
        self.decoder = Stack(parameters, is_decoder=True)
        _initialise(self, parameters)

    def forward(self, inputs: Tensor, answer: Tensor) -> Tensor:
        """Predict the code after each one of the answer."""
        return self.decode(self.encode(inputs), inputs != PADDING, answer)

    def encode(self, inputs: Tensor) -> Tensor:
        """Read, (batch, source_time, width)."""
        memory: Tensor = self.encoder(self.codes(inputs.clamp(min=0)), inputs != PADDING)
        return memory

    def decode(self, memory: Tensor, is_there: Tensor, answer: Tensor) -> Tensor:
        """Predict from what was read."""
        x = self.decoder(self.codes(answer.clamp(min=0)), is_there, memory) * self.codes.embedding_dim**-0.5
        return functional.linear(x, self.codes.weight)


class T5(LanguageModel):
    """Encoder-decoder transformer: fills gaps, or goes from text to text."""

    samples_text = True
    task = "fill gaps, or from text to text"
    data = "text, pairs of texts"
    parameters: T5Parameters

    def build(self) -> nn.Module:
        """Return the network."""
        return EncoderDecoder(self.parameters)

    def check(self, data: Examples) -> None:
        """Check that inputs are texts, and that targets are where they matter."""
        vocabulary = self.parameters.vocabulary
        if self.parameters.task == "text":
            check_windows("t5", data.inputs, vocabulary, LONGEST, is_padded=True)
            check_windows("t5", data.targets, vocabulary, LONGEST, is_padded=True)
            return
        check_windows("t5", data.inputs, vocabulary, LONGEST)
        check_no_targets("t5", data)
        spans = self._spans(data.inputs.shape[1])
        if not 1 <= spans.count <= self.parameters.sentinels:
            rule = f"Learner t5: windows must have 1 to {self.parameters.sentinels} gaps"
            raise unsuited(
                rule, f"{spans.count} in {spans.length} codes", "Give t5 more sentinels, or the data another window."
            )

    def batch_loss(self, batch: Examples) -> Tensor:
        """Make other gaps each time."""
        inputs, targets = self._task(batch, torch.rand(*batch.inputs.shape, 2, device=self._device))
        return self.loss(self._module(inputs, self._shifted(targets)), targets)

    def measure_batch(self, batch: Examples) -> Mapping[str, Tensor]:
        """Measure the answer code by code, each after the true ones before it; gaps follow from each example's own codes.

        Sentinels and END are left out of the accuracy because they are easy to guess. They are left out of its guesses because where any
        code may be a gap's last, a model that knows where gaps end but no text guesses their end: a better one could seem worse.
        """
        inputs, targets = self._task(batch, own_draws(batch.inputs, 2))
        outputs = self._module(inputs, self._shifted(targets))
        counts = (targets != PADDING).sum(1)
        losses = code_loss(outputs, targets, reduction="none")
        is_right = outputs.argmax(dim=2) == targets
        is_text = (targets != PADDING) & (targets < self.parameters.vocabulary)
        is_right_text = (outputs[:, :, : self.parameters.vocabulary].argmax(dim=2) == targets) & is_text
        # Means over each answer, then over answers: so they are the same in any batch, whatever the lengths.
        return {
            "loss": (losses.sum(1) / counts).mean(),
            "accuracy": (is_right_text.sum(1) / is_text.sum(1)).mean(),
            "exact_match": (is_right.sum(1) == counts).double().mean(),
        }

    def finish(self, means: dict[str, float]) -> dict[str, float]:
        """Add perplexity."""
        return means | {"perplexity": perplexity(means["loss"])}

    def _task(self, batch: Examples, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is read and what is to be answered, both with END."""
        if self.parameters.task == "text":
            return self._ended(batch.inputs), self._ended(batch.targets)
        inputs, targets = self._spans(batch.inputs.shape[1]).corrupt(batch.inputs, draws)
        return self._ended(inputs), self._ended(targets)

    def _spans(self, length: int) -> Spans:
        return Spans(length, self.parameters.noise, self.parameters.span, self.parameters.vocabulary + 2)

    def _ended(self, codes: Tensor) -> Tensor:
        """Put END after each text, (batch, time + 1)."""
        codes = functional.pad(codes, (0, 1), value=PADDING)
        lengths = (codes != PADDING).sum(1, keepdim=True)
        return codes.scatter(1, lengths, self.parameters.vocabulary)

    def _shifted(self, answer: Tensor) -> Tensor:
        """Return what is known before each code of an answer: START, then the codes before it."""
        return functional.pad(answer, (1, -1), value=self.parameters.vocabulary + 1)

    @torch.no_grad()
    def sample(self, state: State, request: SampleRequest) -> Tensor:
        """Answer the prompt, code by code; return answers, int64 (count, time), which end in END and then `PADDING`.

        A prompt with gaps has sentinels for them.

        Raises:
            DataError: The prompt has codes beyond the vocabulary, and they are no sentinels of gaps to fill.
        """
        end, has_gaps = self.parameters.vocabulary, self.parameters.task == "spans"
        prompt = prompt_of("t5", request, self.parameters.code_count if has_gaps else end)
        self._load(state)
        self._module.eval()
        network = cast(EncoderDecoder, self._module)
        inputs = self._ended(prompt.repeat(request.count, 1).to(self._device))
        answer = torch.full((request.count, 1), end + 1)
        with self._autocast():
            memory = network.encode(inputs)
            for _ in range(request.length):
                logits = network.decode(memory, inputs != PADDING, answer.to(self._device))[:, -1]
                code = drawn(logits, request.temperature, request.generator)
                code = torch.where((answer == end).any(1), PADDING, code)
                answer = torch.cat([answer, code.unsqueeze(1)], dim=1)
                if (answer == end).any(1).all():
                    break
        return answer[:, 1:]


def _root_mean_square_norm(width: int) -> nn.Module:
    return nn.RMSNorm(width, eps=1e-6)


def _initialise(network: EncoderDecoder, parameters: T5Parameters) -> None:
    """Draw weights so that each layer's outputs are of size 1, and Q K^T too, which is not scaled."""
    for name, part in network.named_modules():
        if isinstance(part, nn.Linear):
            scale = parameters.heads / parameters.width if name.endswith("query") else 1.0
            nn.init.normal_(part.weight, std=(scale / part.in_features) ** 0.5)
    for stack in (network.encoder, network.decoder):
        nn.init.normal_(stack.distances.biases.weight, std=parameters.width**-0.5)
