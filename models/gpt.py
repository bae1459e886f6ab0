"""Generative pre-trained transformer: a stack of blocks, each place of which sees only what came before, predicts the next code.

    h_0 = E[x] + P,  h_l = block(h_{l-1}),  p(x_{t+1} | x_1..x_t) = softmax(norm(h_n)_t E^T)     Radford et al. 2018, equation 2

The codes' embedding E is also the last layer. Norms come first in each block, as in GPT-2 and GPT-3 (Brown et al. 2020, section 2.1).

Source: Radford et al., "Improving Language Understanding by Generative Pre-Training", 2018.
https://cdn.openai.com/research-covers/language-unsupervised/language_understanding_paper.pdf
Brown et al., "Language Models are Few-Shot Learners", NeurIPS 2020. https://arxiv.org/abs/2005.14165
"""

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from models.activations import ACTIVATIONS, ActivationName
from models.blocks import Block, BlockShape, initialise
from models.dropout import Dropout
from models.gradient import GradientParameters
from models.language import LanguageModel, check_next_codes, drawn, prompt_of
from models.learner import Examples, SampleRequest
from models.lora import LoRAParameters, adapt, base_names
from wire.tensors import State

LINE_FEED = 10
"""What stands before a text that begins with nothing."""


class GPTParameters(GradientParameters):
    """Parameters of the learner `gpt`."""

    vocabulary: int = Field(default=256, ge=2, le=1 << 20)
    """Number of codes; 256 for bytes of text."""
    window: int = Field(default=80, ge=1, le=1 << 16)
    """Most codes that are seen at a time: each place has a position of its own."""
    width: int = Field(default=64, ge=1)
    """Width of the vectors that go from block to block; a multiple of `heads`."""
    heads: int = Field(default=4, ge=1)
    """Attentions side by side in each block."""
    layers: int = Field(default=2, ge=1, le=256)
    """Blocks."""
    activation: ActivationName = "gelu"
    """Activation of each block's feed-forward network."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Part of embeddings, attention weights and what blocks add that is dropped in training."""
    lora: LoRAParameters | None = None
    """Train a low-rank correction of a base only; targets are among query, key, value, output, expand and contract."""

    needs_base = (*GradientParameters.needs_base, "lora")

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads ({self.heads}), got {self.width}")
        return self


class Decoder(nn.Module):
    """Codes (batch, time) to logits (batch, time, vocabulary) of the next ones."""

    def __init__(self, parameters: GPTParameters) -> None:
        super().__init__()
        width = parameters.width
        shape = BlockShape(
            width, parameters.heads, 4 * width, parameters.dropout, activation=ACTIVATIONS[parameters.activation]
        )
        self.codes = nn.Embedding(parameters.vocabulary, width)
        self.positions = nn.Embedding(parameters.window, width)
        self.dropout = Dropout(parameters.dropout)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(parameters.layers))
        self.norm = nn.LayerNorm(width)
        initialise(self, parameters.layers)

    def forward(self, codes: Tensor) -> Tensor:
        """Predict the code after each place."""
        x = self.dropout(self.codes(codes) + self.positions.weight[: codes.shape[1]])  # (batch, time, width)
        for block in self.blocks:
            x = block(x, is_causal=True)
        # The same matrix as the embedding's, without a name of its own: it travels once.
        return functional.linear(self.norm(x), self.codes.weight)  # (batch, time, vocabulary)


class GPT(LanguageModel):
    """Decoder-only transformer on windows of text."""

    samples_text = True
    task = "predict the next character"
    data = "text"
    parameters: GPTParameters

    def build(self) -> nn.Module:
        """Return the network, adapted if `lora` is given."""
        module = Decoder(self.parameters)
        if self.parameters.lora is not None:
            adapt(module, self.parameters.lora, self.name)
        return module

    def frozen_names(self) -> frozenset[str]:
        """Return everything but the adapters, if `lora` is given."""
        frozen = super().frozen_names()
        return frozen if self.parameters.lora is None else frozen | base_names(self._module)

    def check(self, data: Examples) -> None:
        """Check that inputs and targets are windows of codes."""
        check_next_codes("gpt", data, self.parameters.vocabulary, self.parameters.window)

    @torch.no_grad()
    def sample(self, state: State, request: SampleRequest) -> Tensor:
        """Write on from the prompt, code by code; return prompt and text, int64 (count, time).

        Raises:
            DataError: The prompt has codes beyond the vocabulary.
        """
        prompt = prompt_of("gpt", request, self.parameters.vocabulary)
        self._load(state)
        self._module.eval()
        start = torch.tensor([min(LINE_FEED, self.parameters.vocabulary - 1)])
        codes = torch.cat([start, prompt]).repeat(request.count, 1)  # (count, time)
        with self._autocast():
            for _ in range(request.length):
                seen = codes[:, -self.parameters.window :].to(self._device)
                code = drawn(self._module(seen)[:, -1], request.temperature, request.generator)
                codes = torch.cat([codes, code.unsqueeze(1)], dim=1)
        return codes[:, 1:]
