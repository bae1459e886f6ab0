"""Sequence to sequence: a GRU reads the source, another one writes the target, and attention may let it look back while it writes.

    encoder   h_j = [forward GRU; backward GRU] of the source's embeddings,   s_0 = tanh(W_s [last forward; last backward] + b_s)
    none      s_t = GRU(E y_{t-1}, s_{t-1})                                    p_t = softmax(W_o tanh(W_r s_t))
    additive  c_t = attend(s_{t-1}, h),  s_t = GRU([E y_{t-1}; c_t], s_{t-1})  p_t = softmax(W_o tanh(W_r [s_t; c_t]))
    dot       s_t = GRU(E y_{t-1}, s_{t-1}),  c_t = attend(s_t, h)             p_t = softmax(W_o tanh(W_r [s_t; c_t]))

What stands for y_{t-1} in training is the technique: the true code (teacher forcing), either that or the model's own (scheduled sampling),
or the true one beside a discriminator that watches the hidden states (professor forcing).

Sources: Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation", EMNLP 2014.
https://arxiv.org/abs/1406.1078
Bahdanau, Cho and Bengio, ICLR 2015 (additive), and Luong, Pham and Manning, EMNLP 2015 (dot): see models/attention.py.
Williams and Zipser, "A Learning Algorithm for Continually Running Fully Recurrent Neural Networks", Neural Computation 1(2), 1989
(teacher forcing). https://doi.org/10.1162/neco.1989.1.2.270
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from models.attention import AdditiveAttention, DotAttention
from models.decoding import Carried
from models.dropout import Dropout
from models.gradient import Step
from models.learner import PADDING, Examples
from models.professor import Contest, Discriminator, contest
from models.ragged import read
from models.scheduled_sampling import exponential, inverse_sigmoid, linear, mixed
from models.sequences import lengths
from models.settings import refuse_unused
from models.step_count import StepCount
from models.translation import Translation, TranslationParameters, Translator, shifted, trimmed
from wire.spec import LocalSpec

DEFAULT_K = {"linear": 1.0, "exponential": 0.998, "inverse_sigmoid": 100.0}
"""The schedules' k by default: half of the codes are true ones after 350 to 500 steps."""


class Seq2SeqParameters(TranslationParameters):
    """Parameters of the learner `seq2seq`."""

    embedding: int = Field(default=32, ge=1)
    """Width of a code's embedding."""
    hidden: int = Field(default=96, ge=2, multiple_of=2)
    """Width of the decoder's hidden state; the encoder has half of it each way. Even."""
    attention: Literal["none", "additive", "dot"] = "additive"
    """How the decoder looks at the source: not at all, by Bahdanau's attention or by Luong's."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Part of the embeddings and of the last hidden layer that is dropped in training."""
    forcing: Literal["teacher", "scheduled", "professor"] = "teacher"
    """What the decoder is fed in training: true codes, by a schedule fewer of them, or true ones beside a discriminator."""
    schedule: Literal["linear", "exponential", "inverse_sigmoid"] = "linear"
    """How the part of true codes falls, for `scheduled`."""
    schedule_k: float | None = Field(default=None, gt=0)
    """The schedule's k: linear begins with it, at most 1; below 1 for exponential, 1 or more for inverse sigmoid. Default: 1, .998, 100."""
    schedule_slope: float = Field(default=0.001, ge=0)
    """What a linear schedule falls by in a step."""
    schedule_floor: float = Field(default=0.0, ge=0, lt=1)
    """Where a linear schedule ends."""
    discriminator: int = Field(default=32, ge=1)
    """Width of the discriminator, for `professor`."""

    @model_validator(mode="after")
    def _schedule_fits(self) -> Self:
        k = self.schedule_k
        if k is not None and self.schedule == "inverse_sigmoid" and k < 1:
            raise ValueError(f"schedule_k of inverse_sigmoid must be at least 1, got {k}")
        if k is not None and self.schedule == "linear" and k > 1:
            raise ValueError(f"schedule_k of linear must be at most 1, got {k}")
        if k is not None and self.schedule == "exponential" and k >= 1:
            raise ValueError(f"schedule_k of exponential must be below 1, got {k}")
        return self

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        forced, falls = f"where forcing is {self.forcing}", ("schedule_slope", "schedule_floor")
        if self.forcing != "scheduled":
            refuse_unused(self, forced, "schedule", "schedule_k", *falls)
        if self.forcing != "professor":
            refuse_unused(self, forced, "discriminator")
        if self.schedule != "linear":
            refuse_unused(self, f"where schedule is {self.schedule}", *falls)
        return self

    def true_part(self, steps: float) -> float:
        """Return the probability of a true code after `steps` steps of training, 0 to 1."""
        k = DEFAULT_K[self.schedule] if self.schedule_k is None else self.schedule_k
        if self.schedule == "linear":
            return linear(steps, k, self.schedule_slope, self.schedule_floor)
        return exponential(steps, k) if self.schedule == "exponential" else inverse_sigmoid(steps, k)


@dataclass(frozen=True, slots=True)
class Run:
    """The decoder's way along a batch.

    Attributes:
        logits: (batch, time, codes + 1).
        states: Its hidden states, (batch, time, hidden).
        weights: Where it looked, (batch, time, source time); None without attention.
    """

    logits: Tensor
    states: Tensor
    weights: Tensor | None


def _attention(parameters: Seq2SeqParameters) -> AdditiveAttention | DotAttention | None:
    if parameters.attention == "additive":
        return AdditiveAttention(parameters.hidden)
    return DotAttention() if parameters.attention == "dot" else None


class EncoderDecoder(Translation):
    """The encoder, the attention and the decoder, and what trains with them."""

    def __init__(self, parameters: Seq2SeqParameters) -> None:
        super().__init__()
        embedding, hidden, codes = parameters.embedding, parameters.hidden, parameters.target_vocabulary + 1
        self.source = nn.Embedding(parameters.source_vocabulary, embedding)
        self.encoder = nn.GRU(embedding, hidden // 2, batch_first=True, bidirectional=True)
        self.bridge = nn.Linear(hidden, hidden)
        self.target = nn.Embedding(codes, embedding)
        self.attention = _attention(parameters)
        self.looks_first = parameters.attention == "additive"
        self.cell = nn.GRUCell(embedding + hidden * self.looks_first, hidden)
        self.readout = nn.Linear(hidden if self.attention is None else 2 * hidden, hidden)
        self.output = nn.Linear(hidden, codes)
        self.dropout = Dropout(parameters.dropout)
        if parameters.forcing == "scheduled":
            self.trained = StepCount()
        if parameters.forcing == "professor":
            self.discriminator = Discriminator(hidden, parameters.discriminator)

    def start(self, sources: Tensor) -> Carried:
        """Read the sources: s_0, and what attention looks at."""
        embedded = self.dropout(self.source(sources.clamp(min=0)))  # (batch, time, embedding)
        memory, last = read(self.encoder, embedded, lengths(sources))  # (batch, time, hidden)
        state = torch.tanh(self.bridge(torch.cat([last[0], last[1]], dim=1)))  # (batch, hidden)
        if self.attention is None:
            return (state,)
        return state, self.attention.keys(memory), memory, sources != PADDING

    def advance(self, codes: Tensor, carried: Carried) -> tuple[Tensor, Carried]:
        """Write one code more."""
        logits, carried, _ = self._step(codes, carried)
        return logits, carried

    def forward(self, sources: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Predict each code from the true ones before it."""
        run = self.run(sources, inputs, 1.0)
        return run.logits, run.weights

    def run(self, sources: Tensor, inputs: Tensor, true_part: float) -> Run:
        """Go along true codes, (batch, time), each of which is fed with probability `true_part`, else one drawn from the prediction."""
        carried = self.start(sources)
        logits: list[Tensor] = []
        states: list[Tensor] = []
        looked: list[Tensor] = []
        for time in range(inputs.shape[1]):
            codes = inputs[:, time]
            if time and true_part < 1:
                codes = mixed(codes, logits[-1], true_part)
            predicted, carried, weights = self._step(codes, carried)
            logits.append(predicted)
            states.append(carried[0])
            if weights is not None:
                looked.append(weights)
        return Run(
            torch.stack(logits, dim=1), torch.stack(states, dim=1), torch.stack(looked, dim=1) if looked else None
        )

    def _step(self, codes: Tensor, carried: Carried) -> tuple[Tensor, Carried, Tensor | None]:
        state, *memory = carried
        embedded = self.dropout(self.target(codes))  # (batch, embedding)
        if self.attention is None:
            state, weights = self.cell(embedded, state), None
            features = state
        elif self.looks_first:
            context, weights = self.attention(state, *memory)  # (batch, hidden), (batch, source time)
            state = self.cell(torch.cat([embedded, context], dim=1), state)
            features = torch.cat([state, context], dim=1)
        else:
            state = self.cell(embedded, state)
            context, weights = self.attention(state, *memory)
            features = torch.cat([state, context], dim=1)
        logits = self.output(self.dropout(torch.tanh(self.readout(features))))  # (batch, codes + 1)
        return logits, (state, *memory), weights


class Seq2Seq(Translator):
    """GRU encoder and decoder, with or without attention."""

    name = "seq2seq"
    task = "turn one sequence into another"
    data = "pairs of sequences"
    parameters: Seq2SeqParameters

    def build(self) -> nn.Module:
        """Return the network."""
        return EncoderDecoder(self.parameters)

    @property
    def _network(self) -> EncoderDecoder:
        assert isinstance(self._module, EncoderDecoder)
        return self._module

    def begin(self, local: LocalSpec) -> Step:
        """Return what takes a step, which scheduled sampling counts."""
        step = super().begin(local)
        if self.parameters.forcing != "scheduled":
            return step

        def counted(batch: Examples) -> Tensor:
            loss = step(batch)
            self._network.trained.count()
            return loss

        return counted

    def batch_loss(self, batch: Examples) -> Tensor:
        """Return the mean loss of the codes, by the chosen forcing; with a discriminator, the objectives of both."""
        if self.parameters.forcing == "teacher":
            return super().batch_loss(batch)
        sources = trimmed(batch.inputs)
        inputs, outputs = shifted(trimmed(batch.targets), self._boundary)
        if self.parameters.forcing == "scheduled":
            true_part = self.parameters.true_part(self._network.trained.steps)
            return self.loss(self._network.run(sources, inputs, true_part).logits, outputs)
        taught = self._network.run(sources, inputs, 1.0)
        return self.loss(taught.logits, outputs) + self._contest(taught, batch).objective

    def measure_batch(self, batch: Examples) -> Mapping[str, Tensor]:
        """Return what every translator measures, and the part of true codes or the losses of both sides of professor forcing."""
        measured = dict(super().measure_batch(batch))
        if self.parameters.forcing == "scheduled":
            measured["true_part"] = torch.tensor(self.parameters.true_part(self._network.trained.steps))
        if self.parameters.forcing == "professor":
            inputs, _ = shifted(trimmed(batch.targets), self._boundary)
            found = self._contest(self._network.run(trimmed(batch.inputs), inputs, 1.0), batch)
            measured |= {"discriminator_loss": found.discriminator_loss, "fooling_loss": found.fooling_loss}
        return measured

    def _contest(self, taught: Run, batch: Examples) -> Contest:
        inputs, _ = shifted(trimmed(batch.targets), self._boundary)
        free = self._network.run(trimmed(batch.inputs), inputs, 0.0)
        return contest(self._network.discriminator, taught.states, free.states, lengths(batch.targets) + 1)
