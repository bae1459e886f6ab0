"""Transformer: attention and position-wise layers, without recurrence, from one sequence of codes to another or to a class.

    encoder   memory = layers(embed(x_1 .. x_m))
    decoder   p_t = softmax(E layers(embed(y_0 .. y_{t-1}), memory)),   with E the embeddings of the target's codes
    classes   logits = W pool(memory) + b,                              with pool the mean or the first position

Source: Vaswani et al., "Attention Is All You Need", NeurIPS 2017, sections 3 and 5. https://arxiv.org/abs/1706.03762
"""

import math
from collections.abc import Mapping
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from models import tasks
from models.activations import ACTIVATIONS, ActivationName
from models.classifier import ClassifierParameters, MeasuresClasses
from models.decoding import Carried
from models.gradient import Step
from models.learner import PADDING, Examples
from models.sequences import check_sequences
from models.settings import refuse_unused
from models.step_count import StepCount
from models.transformer_layers import DecoderLayer, Embedding, EncoderLayer, LayerShape
from models.translation import Translation, TranslationParameters, Translator, shifted, trimmed
from wire.spec import LocalSpec


class TransformerParameters(TranslationParameters, ClassifierParameters):
    """Parameters of the learner `transformer`."""

    task: Literal["translate", "classify"] = "translate"
    """Another sequence, or a class."""
    width: int = Field(default=64, ge=2, multiple_of=2)
    """Width of the model, d in the paper; even, and a multiple of `heads`."""
    heads: int = Field(default=4, ge=1)
    """Heads of each attention."""
    layers: int = Field(default=2, ge=1, le=64)
    """Layers of the encoder, and of the decoder."""
    feed_forward: int = Field(default=128, ge=1)
    """Width between the two maps of a position-wise layer."""
    activation: ActivationName = "relu"
    """Activation between those two maps."""
    norm: Literal["post", "pre"] = "post"
    """Where layers are normalised: behind each sublayer as in the paper, or before it, which needs no warm-up."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Part of each sublayer's output and of the embeddings that is dropped in training."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Part of a target's probability that training spreads over all codes; evaluation spreads nothing."""
    warm_up_steps: int = Field(default=0, ge=0)
    """Steps in which the learning rate rises to its full value, to fall with the root of the steps after them; 0: constant."""
    classes: int = Field(default=10, ge=2)
    """Number of classes, for `classify`."""
    pooling: Literal["mean", "first"] = "mean"
    """What of the encoder's outputs is classified."""

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, {self.heads}, got {self.width}")
        return self

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        if self.task == "translate":
            refuse_unused(self, "where task is translate", "classes", "pooling", "metrics")
        else:
            decoding = "target_vocabulary", "longest", "beam_width", "length_power", "decoded"
            refuse_unused(self, "where task is classify", *decoding)
        return self

    @property
    def shape(self) -> LayerShape:
        """The shape of its layers."""
        activation = ACTIVATIONS[self.activation]
        return LayerShape(self.width, self.heads, self.feed_forward, self.dropout, self.norm == "pre", activation)


def warm_up_factor(step: float, warm_up_steps: int) -> float:
    """Return the learning rate of a step, from 1, as a part of its peak: section 5.3, equation 3."""
    return min(step / warm_up_steps, math.sqrt(warm_up_steps / step))


def final_norm(shape: LayerShape) -> nn.Module:
    """Return what follows the last layer: with pre-norm nothing has normalised its sum yet."""
    return nn.LayerNorm(shape.width) if shape.has_pre_norm else nn.Identity()


class Encoder(nn.Module):
    """Codes (batch, time), padded, to (batch, time, width)."""

    def __init__(self, parameters: TransformerParameters) -> None:
        super().__init__()
        shape = parameters.shape
        self.embedding = Embedding(parameters.source_vocabulary, shape)
        self.layers = nn.ModuleList(EncoderLayer(shape) for _ in range(parameters.layers))
        self.norm = final_norm(shape)

    def forward(self, sources: Tensor) -> Tensor:
        """Read sources, each position with an eye on all others."""
        is_code = (sources != PADDING).unsqueeze(1)  # (batch, 1, time)
        x = self.embedding(sources.clamp(min=0))
        for layer in self.layers:
            x = layer(x, is_code)
        memory: Tensor = self.norm(x)
        return memory


class EncoderClassifier(nn.Module):
    """Codes (batch, time), padded, to logits (batch, classes)."""

    def __init__(self, parameters: TransformerParameters) -> None:
        super().__init__()
        self.encoder = Encoder(parameters)
        self.is_mean = parameters.pooling == "mean"
        self.dense = nn.Linear(parameters.width, parameters.classes)

    def forward(self, sources: Tensor) -> Tensor:
        """Classify sources."""
        memory = self.encoder(sources)  # (batch, time, width)
        pooled = memory[:, 0]
        if self.is_mean:
            is_code = (sources != PADDING).unsqueeze(2)  # (batch, time, 1)
            pooled = (memory * is_code).sum(dim=1) / is_code.sum(dim=1)
        logits: Tensor = self.dense(pooled)
        return logits


class EncoderDecoder(Translation):
    """The transformer of the paper. Decoding runs anew over all codes that it has found, so steps are alike in training and decoding."""

    def __init__(self, parameters: TransformerParameters) -> None:
        super().__init__()
        shape = parameters.shape
        self.encoder = Encoder(parameters)
        self.embedding = Embedding(parameters.target_vocabulary + 1, shape)
        self.layers = nn.ModuleList(DecoderLayer(shape) for _ in range(parameters.layers))
        self.norm = final_norm(shape)

    def start(self, sources: Tensor) -> Carried:
        """Read the sources: their memory, where it is none of padding, and no code yet."""
        return self.encoder(sources), sources != PADDING, sources[:, :0]

    def advance(self, codes: Tensor, carried: Carried) -> tuple[Tensor, Carried]:
        """Write one code more."""
        memory, is_code, before = carried
        inputs = torch.cat([before, codes.unsqueeze(1)], dim=1)
        logits, _ = self._decode(memory, is_code, inputs)
        return logits[:, -1], (memory, is_code, inputs)

    def forward(self, sources: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Predict each code from the true ones before it; the weights are the last layer's, the mean of its heads."""
        return self._decode(self.encoder(sources), sources != PADDING, inputs)

    def _decode(self, memory: Tensor, is_code: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embedding(inputs)  # (batch, time, width)
        weights = x.new_empty(0)
        for layer in self.layers:
            x, weights = layer(x, memory, is_code.unsqueeze(1))
        logits = functional.linear(self.norm(x), self.embedding.codes.weight)  # (batch, time, codes + 1)
        return logits, weights.mean(dim=1)


class Transformer(Translator, MeasuresClasses):
    """Transformer: encoder and decoder, or an encoder that classifies."""

    name = "transformer"
    task = "turn one sequence into another, classify"
    data = "pairs, codes"
    parameters: TransformerParameters

    def build(self) -> nn.Module:
        """Return the network of the task, with a count of its steps if there is a warm-up."""
        module = (EncoderDecoder if self._translates else EncoderClassifier)(self.parameters)
        if self.parameters.warm_up_steps:
            module.add_module("trained", StepCount())
        return module

    @property
    def _translates(self) -> bool:
        return self.parameters.task == "translate"

    def begin(self, local: LocalSpec) -> Step:
        """Return what takes a step, scaled as the warm-up scales the learning rate.

        The paper's rate, d^-0.5 * min(step^-0.5, step * warm_up_steps^-1.5), is highest at the end of the warm-up; here that peak is
        the optimizer's own rate. Steps of torch's optimizers are in proportion to it, so that what is scaled is the step.
        """
        step = super().begin(local)
        if not self.parameters.warm_up_steps:
            return step
        trained = self._module.get_submodule("trained")
        assert isinstance(trained, StepCount)
        parameters: list[Tensor] = [*self._trained]

        def scaled(batch: Examples) -> Tensor:
            before = [parameter.detach().clone() for parameter in parameters]
            loss = step(batch)
            trained.count()
            with torch.no_grad():
                torch._foreach_lerp_(
                    parameters, before, 1 - warm_up_factor(trained.steps, self.parameters.warm_up_steps)
                )
            return loss

        return scaled

    def batch_loss(self, batch: Examples) -> Tensor:
        """Return the mean cross-entropy of a batch against smoothed targets."""
        if self._translates:
            inputs, targets = shifted(trimmed(batch.targets), self._boundary)
            logits, _ = self._translation(trimmed(batch.inputs), inputs)
        else:
            logits, targets = self._module(trimmed(batch.inputs)), batch.targets
        smoothing = self.parameters.label_smoothing
        return tasks.code_loss(logits, targets, label_smoothing=smoothing)

    def measure_batch(self, batch: Examples) -> Mapping[str, Tensor]:
        """Return what every translator measures, or loss and accuracy of the classes."""
        if self._translates:
            return super().measure_batch(batch)
        logits = self.outputs(batch)
        loss = tasks.classification_loss(logits, batch.targets)
        return {"loss": loss, **tasks.classification_measures(logits, batch.targets)}

    def outputs(self, batch: Examples) -> Tensor:
        """Return the logits of classes, (batch, classes)."""
        logits: Tensor = self._module(trimmed(batch.inputs))
        return logits

    def weigh(self, batch: Examples) -> int:
        """Return the number of outputs, or of examples that are classified."""
        return super().weigh(batch) if self._translates else len(batch)

    def check(self, data: Examples) -> None:
        """Check that sources are padded sequences of codes, and that targets are too, or classes."""
        if self._translates:
            super().check(data)
            return
        check_sequences(self.name, "sources", data.inputs, self.parameters.source_vocabulary)
        tasks.check_classes(self.name, data, self.parameters.classes)
