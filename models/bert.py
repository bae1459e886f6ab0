"""Bidirectional encoder: places that are masked are guessed from both sides; the same encoder then classifies texts.

Of each window 15 % of the places are chosen. Of these 80 % become [MASK], 10 % a random code, 10 % stay as they are, and the loss is the
cross-entropy of their true codes (section 3.1, task 1). In classification, what the last block says at the first place, [CLS], goes through
a dense layer with tanh to one with an output a class (section 3.2). Sentence pairs and their embedding are left out, as in RoBERTa.

The accuracy of guesses is that of all chosen places, as the loss is. A tenth of them show their code, which needs only be copied.

Source: Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", NAACL 2019.
https://arxiv.org/abs/1810.04805
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from models import tasks
from models.activations import ACTIVATIONS, ActivationName
from models.blocks import Block, BlockShape, initialise
from models.classifier import ClassifierParameters, MeasuresClasses
from models.dropout import Dropout
from models.language import LanguageModel, check_no_targets, check_windows, own_draws
from models.learner import PADDING, Examples
from models.settings import refuse_unused

CHOSEN = 0.15
"""Part of the places whose codes are to be guessed."""


class BERTParameters(ClassifierParameters):
    """Parameters of the learner `bert`."""

    vocabulary: int = Field(default=256, ge=2, le=1 << 20)
    """Number of codes, without [MASK] and [CLS]; 256 for bytes of text."""
    window: int = Field(default=80, ge=1, le=1 << 16)
    """Most codes of a text: each place has a position of its own."""
    width: int = Field(default=64, ge=1)
    """Width of the vectors that go from block to block; a multiple of `heads`."""
    heads: int = Field(default=4, ge=1)
    """Attentions side by side in each block."""
    layers: int = Field(default=2, ge=1, le=256)
    """Blocks."""
    activation: ActivationName = "gelu"
    """Activation of each block's feed-forward network, and before masked codes are guessed."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Part of embeddings, attention weights and what blocks add that is dropped in training."""
    norm_first: bool = True
    """Normalise what goes into each part of a block, which small models learn faster with; false: the sum, as in the paper."""
    classes: int | None = Field(default=None, ge=2)
    """Number of classes of texts; without it, masked codes are guessed."""

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads ({self.heads}), got {self.width}")
        if self.classes is None:
            refuse_unused(self, "where classes are not given", "metrics")
        return self


class Encoder(nn.Module):
    """Codes (batch, time), perhaps with `PADDING` at the end, to vectors (batch, 1 + time, width), [CLS] first."""

    def __init__(self, parameters: BERTParameters) -> None:
        super().__init__()
        width = parameters.width
        shape = BlockShape(
            width,
            parameters.heads,
            4 * width,
            parameters.dropout,
            parameters.norm_first,
            activation=ACTIVATIONS[parameters.activation],
        )
        self.codes = nn.Embedding(parameters.vocabulary + 2, width)
        self.positions = nn.Embedding(1 + parameters.window, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = Dropout(parameters.dropout)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(parameters.layers))
        self.last_norm = nn.LayerNorm(width) if parameters.norm_first else nn.Identity()
        self._first = parameters.vocabulary + 1

    def forward(self, codes: Tensor) -> Tensor:
        """Read texts in both directions."""
        codes = functional.pad(codes, (1, 0), value=self._first)
        mask = (codes != PADDING)[:, None, None, :]  # (batch, 1, 1, 1 + time)
        embedded = self.codes(codes.clamp(min=0)) + self.positions.weight[: codes.shape[1]]
        x: Tensor = self.dropout(self.norm(embedded))  # (batch, 1 + time, width)
        for block in self.blocks:
            x = block(x, mask)
        normed: Tensor = self.last_norm(x)
        return normed


class MaskedGuesser(nn.Module):
    """Codes (batch, time) to logits (batch, time, vocabulary) of the true ones."""

    def __init__(self, parameters: BERTParameters) -> None:
        super().__init__()
        width = parameters.width
        self.encoder = Encoder(parameters)
        self.head = nn.Sequential(
            OrderedDict(
                dense=nn.Linear(width, width), activation=ACTIVATIONS[parameters.activation](), norm=nn.LayerNorm(width)
            )
        )
        self.bias = nn.Parameter(torch.zeros(parameters.vocabulary))
        initialise(self, parameters.layers)

    def forward(self, codes: Tensor) -> Tensor:
        """Guess the code at each place."""
        x = self.head(self.encoder(codes)[:, 1:])  # (batch, time, width)
        # The embedding's own matrix, less [MASK] and [CLS], which are never the answer.
        return functional.linear(x, self.encoder.codes.weight[: len(self.bias)], self.bias)


class TextClassifier(nn.Module):
    """Codes (batch, time) to logits (batch, classes)."""

    def __init__(self, parameters: BERTParameters) -> None:
        super().__init__()
        width = parameters.width
        assert parameters.classes is not None
        self.encoder = Encoder(parameters)
        self.head = nn.Sequential(
            OrderedDict(
                dense=nn.Linear(width, width),
                activation=nn.Tanh(),
                dropout=Dropout(parameters.dropout),
                classes=nn.Linear(width, parameters.classes),
            )
        )
        initialise(self, parameters.layers)

    def forward(self, codes: Tensor) -> Tensor:
        """Classify texts by the vector at [CLS]."""
        logits: Tensor = self.head(self.encoder(codes)[:, 0])
        return logits


class BERT(MeasuresClasses, LanguageModel):
    """Encoder-only transformer: guesses masked codes, or classifies texts."""

    task = "guess masked characters, or classify"
    data = "text"
    parameters: BERTParameters

    def build(self) -> nn.Module:
        """Return the network for the task. The names of both networks' encoders are the same."""
        return (MaskedGuesser if self.parameters.classes is None else TextClassifier)(self.parameters)

    def check(self, data: Examples) -> None:
        """Check that inputs are windows of codes, and with `classes`, that targets are classes."""
        if self.parameters.classes is None:
            check_windows("bert", data.inputs, self.parameters.vocabulary, self.parameters.window)
            check_no_targets("bert", data)
        else:
            check_windows("bert", data.inputs, self.parameters.vocabulary, self.parameters.window, is_padded=True)
            tasks.check_classes("bert", data, self.parameters.classes)

    def batch_loss(self, batch: Examples) -> Tensor:
        """Mask other places each time."""
        if self.parameters.classes is not None:
            return tasks.classification_loss(self._module(batch.inputs), batch.targets)
        codes, targets = mask_codes(
            batch.inputs, torch.rand(*batch.inputs.shape, 3, device=self._device), self.parameters.vocabulary
        )
        return self.loss(self._module(codes), targets)

    def measure_batch(self, batch: Examples) -> Mapping[str, Tensor]:
        """Mask places that follow from each example's own codes, so that its loss is the same in any batch."""
        if self.parameters.classes is not None:
            outputs = self._module(batch.inputs)
            return {
                "loss": tasks.classification_loss(outputs, batch.targets),
                **tasks.classification_measures(outputs, batch.targets),
            }
        codes, targets = mask_codes(batch.inputs, own_draws(batch.inputs, 3), self.parameters.vocabulary)
        outputs = self._module(codes)
        return {"loss": self.loss(outputs, targets), **self.measure(outputs, targets)}

    def finish(self, means: dict[str, float]) -> dict[str, float]:
        """Add what belongs to codes, where these are guessed."""
        return super().finish(means) if self.parameters.classes is None else means


def mask_codes(codes: Tensor, draws: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Corrupt windows as BERT is trained on them.

    Args:
        codes: int64 (batch, time).
        draws: Uniform from 0 to 1, (batch, time, 3): which places are chosen, what becomes of them, and which code it is.
        vocabulary: Codes; the next one is [MASK].

    Returns:
        Codes with the chosen places changed, and targets: the true codes at these places, `PADDING` at the others.
    """
    count = max(1, round(CHOSEN * codes.shape[1]))
    order, fate, other = draws.unbind(dim=2)
    is_chosen = torch.zeros_like(codes, dtype=torch.bool).scatter_(1, order.topk(count).indices, value=True)
    random = (other * vocabulary).long().clamp(max=vocabulary - 1)
    changed = torch.where(fate < 0.8, vocabulary, torch.where(fate < 0.9, random, codes))
    return torch.where(is_chosen, changed, codes), torch.where(is_chosen, codes, PADDING)
