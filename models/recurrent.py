"""Recurrent networks: a hidden state goes from step to step of a sequence, and gradients go back through time.

    Elman   h_t = tanh(W x_t + U h_{t-1} + b)
    LSTM    i, f, o = sigmoid(W x_t + U h_{t-1} + b), each with its own W, U and b;   g = tanh(W_g x_t + U_g h_{t-1} + b_g)
            c_t = f * c_{t-1} + i * g,   h_t = o * tanh(c_t)
    GRU     r, z = sigmoid(W x_t + U h_{t-1} + b), each with its own;   n = tanh(W_n x_t + b_n + r * (U_n h_{t-1} + b'_n))
            h_t = (1 - z) * n + z * h_{t-1}

A dense layer makes y_t = V h_t + d of it: at each step the logits of the next code, or at the last step those of a class, or numbers to
forecast. Backpropagation through time unrolls a whole window. Truncated, a window is trained chunk by chunk, a step each: the hidden state
goes on into the next chunk, gradients do not.

Padding ends a sequence, so what comes before it is the same with it or without; behind it nothing is predicted.

Source: Elman, "Finding Structure in Time", Cognitive Science 14(2), 1990, with tanh for the logistic function.
https://doi.org/10.1207/s15516709cog1402_1
Hochreiter and Schmidhuber, "Long Short-Term Memory", Neural Computation 9(8), 1997. https://doi.org/10.1162/neco.1997.9.8.1735
Gers, Schmidhuber and Cummins, "Learning to Forget: Continual Prediction with LSTM", Neural Computation 12(10), 2000: the forget gate f.
https://doi.org/10.1162/089976600300015015
Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation", EMNLP 2014, section 2.3, in its
first version, which resets U h and not h. https://arxiv.org/abs/1406.1078v1
Williams and Peng, "An Efficient Gradient-Based Algorithm for On-Line Training of Recurrent Network Trajectories", Neural Computation 2(4),
1990: truncated backpropagation. https://doi.org/10.1162/neco.1990.2.4.490
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import ClassVar, Literal, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from models import forecasts, tasks
from models.classifier import ClassifierParameters, MeasuresClasses
from models.dropout import Dropout
from models.errors import unsuited
from models.gradient import Step
from models.language import drawn, perplexity, prompt_of
from models.learner import PADDING, Examples, SampleRequest
from models.sequences import check_sequences, check_series, lengths, padding, require
from models.settings import refuse_unused
from wire.errors import LearnerError
from wire.spec import LocalSpec
from wire.tensors import State

Hidden = Tensor | tuple[Tensor, Tensor]
"""What goes from step to step, (layers, batch, hidden): h, or the LSTM's h and c."""


class RecurrentParameters(ClassifierParameters):
    """Parameters of the learners `rnn`, `lstm` and `gru`."""

    task: Literal["next_character", "classify", "forecast"] = "next_character"
    """`next_character`: the code after each one. `classify`: the class of a sequence. `forecast`: numbers that follow it."""
    vocabulary: int = Field(default=256, ge=2, le=1 << 20)
    """Number of codes; 256 for bytes of text."""
    embedding: int = Field(default=8, ge=1)
    """Width of a code's embedding."""
    features: int = Field(default=0, ge=0)
    """Numbers in a step of a float series; 0: steps are codes."""
    classes: int = Field(default=10, ge=2)
    """Number of classes, to classify."""
    outputs: int = Field(default=1, ge=1)
    """Numbers to forecast: steps ahead times columns."""
    hidden: int = Field(default=128, ge=1)
    """Width of the hidden state."""
    layers: int = Field(default=1, ge=1, le=16)
    """Stacked recurrent layers."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Part of the outputs that is dropped in training, between layers and before the dense one."""
    truncate: int = Field(default=0, ge=0)
    """Steps in a chunk of truncated backpropagation through time; 0: whole windows."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.features and self.task == "next_character":
            raise ValueError(f"features must be 0 to predict the next character, got {self.features}")
        return self

    @model_validator(mode="after")
    def _has_classes(self) -> Self:
        if self.task != "classify":
            refuse_unused(self, f"where task is {self.task}", "metrics")
        return self

    @property
    def width(self) -> int:
        """Outputs of the dense layer."""
        return {"next_character": self.vocabulary, "classify": self.classes, "forecast": self.outputs}[self.task]


class RecurrentNetwork(nn.Module):
    """Codes (batch, time) or series (batch, time, features) to outputs (batch, vocabulary, time), or one (batch, width) a sequence."""

    def __init__(self, cell: type[nn.RNN] | type[nn.LSTM] | type[nn.GRU], parameters: RecurrentParameters) -> None:
        super().__init__()
        self._name = cell.__name__.lower()
        self._is_stepwise = parameters.task == "next_character"
        if not parameters.features:
            self.embedding = nn.Embedding(parameters.vocabulary, parameters.embedding)
        between = parameters.dropout if parameters.layers > 1 else 0.0
        inputs = parameters.features or parameters.embedding
        stack = cell(inputs, parameters.hidden, parameters.layers, batch_first=True, dropout=between)
        self.add_module(self._name, stack)
        self.dropout = Dropout(parameters.dropout)
        self.dense = nn.Linear(parameters.hidden, parameters.width)

    def forward(self, inputs: Tensor) -> Tensor:
        """Predict from a hidden state of zeros."""
        return self.unroll(inputs)[0]

    def unroll(self, inputs: Tensor, hidden: Hidden | None = None) -> tuple[Tensor, Hidden]:
        """Predict from a hidden state, and return the last one beside."""
        # Padding becomes what can be computed with.
        steps = inputs.nan_to_num(nan=0.0) if inputs.is_floating_point() else self.embedding(inputs.clamp(min=0))
        outputs, hidden = self.get_submodule(self._name)(steps, hidden)  # (batch, time, hidden)
        if self._is_stepwise:
            logits: Tensor = self.dense(self.dropout(outputs))  # (batch, time, vocabulary)
            return logits.transpose(1, 2), hidden  # (batch, vocabulary, time)
        last = lengths(inputs).sub(1).clamp(min=0)  # (batch,)
        outputs = outputs[torch.arange(len(outputs), device=outputs.device), last]  # (batch, hidden)
        return self.dense(self.dropout(outputs)), hidden  # (batch, width)


class Recurrent(MeasuresClasses):
    """A recurrent network on sequences of any length."""

    samples_text = True
    task = "next code, classify, forecast"
    data = "text, codes, series"
    cell: ClassVar[type[nn.RNN] | type[nn.LSTM] | type[nn.GRU]]
    parameters: RecurrentParameters
    _before: Hidden | None = None
    """What the hidden state of a batch, or of the next chunk of it, begins with."""
    _after: Hidden
    """The hidden state behind the chunk that was trained last."""

    def build(self) -> nn.Module:
        """Return the network."""
        return RecurrentNetwork(self.cell, self.parameters)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, or squared error of a forecast, over all targets that are no padding."""
        if self.parameters.task != "forecast":
            return tasks.code_loss(outputs.movedim(1, -1), targets)
        targets = targets.view_as(outputs)
        is_target = ~targets.isnan()
        return functional.mse_loss(outputs[is_target], targets[is_target])

    def measure(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Accuracy, with bits per character of text; of forecasts their errors."""
        if self.parameters.task == "forecast":
            return forecasts.forecast_measures(outputs, targets.view_as(outputs))
        if self.parameters.task == "classify":
            return tasks.classification_measures(outputs, targets)
        return tasks.next_code_measures(outputs, targets)

    def weigh(self, batch: Examples) -> int:
        """Return the number of sequences, or of codes to predict."""
        if self.parameters.task == "next_character":
            return int((batch.targets != PADDING).sum())
        return len(batch)

    def finish(self, means: dict[str, float]) -> dict[str, float]:
        """Add the perplexity of text, or the R2 of forecasts."""
        if self.parameters.task == "forecast":
            return forecasts.with_r2(means)
        if self.parameters.task == "next_character":
            means["perplexity"] = perplexity(means["loss"])
        return means

    def batch_loss(self, batch: Examples) -> Tensor:
        """Return the mean loss of a batch or of a chunk, whose hidden state is kept for the next one."""
        outputs, after = self._network.unroll(batch.inputs, self._before)
        self._after = _detached(after)
        return self.loss(outputs, batch.targets)

    def begin(self, local: LocalSpec) -> Step:
        """Return what takes a step on each batch, or with `truncate` on each chunk of it."""
        self._before = None
        step = super().begin(local)
        return partial(self._step_through, step) if self.parameters.truncate else step

    def _step_through(self, step: Step, batch: Examples) -> Tensor:
        """Take a step on each chunk of a batch and return their mean loss over all targets."""
        losses: list[Tensor] = []
        count = 0
        self._before = None
        for chunk, target_count in self._chunks(batch):
            if target_count:
                losses.append(step(chunk) * target_count)
                count += target_count
            else:
                with torch.no_grad():
                    _, self._after = self._network.unroll(chunk.inputs, self._before)
            self._before = self._after
        self._before = None
        return torch.stack(losses).sum() / count

    def _chunks(self, batch: Examples) -> Iterator[tuple[Examples, int]]:
        """Yield the chunks of a batch with the number of their targets: a sequence's class or numbers belong where it ends."""
        ends = lengths(batch.inputs)  # (batch,)
        for start in range(0, batch.inputs.shape[1], self.parameters.truncate):
            stop = start + self.parameters.truncate
            if self.parameters.task == "next_character":
                targets = batch.targets[:, start:stop]
                count = int((targets != PADDING).sum())
            else:
                has_target = (ends > start) & (ends <= stop)
                none = torch.nan if batch.targets.is_floating_point() else PADDING
                elsewhere = ~has_target.reshape(-1, *[1] * (batch.targets.dim() - 1))
                targets, count = batch.targets.masked_fill(elsewhere, none), int(has_target.sum())
            yield Examples(batch.inputs[:, start:stop], targets), count

    @property
    def _network(self) -> RecurrentNetwork:
        return cast(RecurrentNetwork, self._module)

    @torch.no_grad()
    def sample(self, state: State, request: SampleRequest) -> Tensor:
        """Return texts, int64 (count, prompt + length): the prompt, and code by code what the model draws to follow it.

        Without a prompt the first code is drawn from what a hidden state of zeros predicts.

        Raises:
            LearnerError: The model's task is another one.
            DataError: The prompt has codes beyond the vocabulary.
        """
        if self.parameters.task != "next_character":
            raise LearnerError(
                f"Learner {self.name}: task must be next_character to draw samples, got {self.parameters.task}."
            )
        prompt = prompt_of(self.name, request, self.parameters.vocabulary)
        self._load(state)
        self._module.eval()
        text = prompt.cpu().repeat(request.count, 1)  # (count, time)
        with self._autocast():
            logits, hidden = self._after_prompt(text)
            for _ in range(request.length):
                codes = drawn(logits, request.temperature, request.generator).unsqueeze(1)  # (count, 1)
                text = torch.cat([text, codes], dim=1)
                outputs, hidden = self._network.unroll(codes.to(self._device), hidden)
                logits = outputs[:, :, -1]  # (count, vocabulary)
        return text

    def _after_prompt(self, text: Tensor) -> tuple[Tensor, Hidden | None]:
        """Return the logits of the code after each text, (count, vocabulary), and the hidden state there."""
        if text.shape[1] == 0:
            nothing = torch.zeros(len(text), self.parameters.hidden, device=self._device)
            return self._network.dense(nothing), None
        outputs, hidden = self._network.unroll(text.to(self._device))
        return outputs[:, :, -1], hidden

    def check(self, data: Examples) -> None:
        """Check that inputs are sequences of codes, or series of `features`, and that targets belong to the task."""
        parameters = self.parameters
        if parameters.task == "next_character" and (data.inputs.dim() != 2 or data.targets.shape != data.inputs.shape):
            raise unsuited(f"Learner {self.name}: examples must be windows of text", f"shape {data.example_shape}")
        if parameters.features:
            check_series(self.name, data.inputs, parameters.features)
        else:
            check_sequences(self.name, "codes", data.inputs, parameters.vocabulary)
        if parameters.task == "classify":
            tasks.check_classes(self.name, data, parameters.classes)
        elif parameters.task == "forecast":
            tasks.check_values(self.name, data, parameters.outputs)
        else:
            check_sequences(self.name, "targets", data.targets, parameters.vocabulary)
            is_alike = padding(data.inputs) == padding(data.targets)
            require(self.name, "targets must be as long as their sequences", is_alike)


def _detached(hidden: Hidden) -> Hidden:
    return (hidden[0].detach(), hidden[1].detach()) if isinstance(hidden, tuple) else hidden.detach()


class RNN(Recurrent):
    """Elman network: a hidden state that is made anew in each step."""

    name = "rnn"
    cell = nn.RNN


class LSTM(Recurrent):
    """Long short-term memory: gates let cells keep what they hold."""

    name = "lstm"
    cell = nn.LSTM


class GRU(Recurrent):
    """Gated recurrent units: two gates, and no cells beside the state."""

    name = "gru"
    cell = nn.GRU
