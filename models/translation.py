"""What models that turn one sequence of codes into another share: losses over codes, decoding, the error rate, and the look of attention.

A target y_1 .. y_n, codes 0 to N - 1, is learnt as n + 1 predictions. The boundary N stands for both ends: it is the first input and the
last output.

    inputs    N    y_1  ..  y_n
    outputs   y_1  ..  y_n  N
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from models.decoding import Carried, Search, beam_search, greedy
from models.errors import unsuited
from models.gradient import GradientLearner, GradientParameters
from models.learner import PADDING, Examples
from models.sequences import check_sequences, lengths
from models.settings import refuse_unused
from models.tasks import code_loss
from wire.errors import LearnerError
from wire.tensors import State


class TranslationParameters(GradientParameters):
    """What learners that turn sequences into sequences take, beside parameters of their own."""

    source_vocabulary: int = Field(default=256, ge=2, le=1 << 20)
    """Number of codes of a source; 256 for bytes of text."""
    target_vocabulary: int = Field(default=39, ge=1, le=1 << 20)
    """Number of codes of a target, without its ends; 39 for English phones."""
    longest: int = Field(default=32, ge=1, le=65_536)
    """Most codes of a target, and of what decoding finds."""
    beam_width: int = Field(default=1, ge=1, le=1024)
    """Beginnings that decoding keeps; 1 is greedy."""
    length_power: float = Field(default=0.0, ge=0, le=2)
    """Length normalisation of the beam: log-likelihoods are divided by the length to this power."""
    decoded: int = Field(default=256, ge=0, le=256)
    """How many of every 256 held-out examples are decoded for the error rate; 0: none, and no error rate."""

    @model_validator(mode="after")
    def _searches(self) -> Self:
        if self.beam_width == 1:
            refuse_unused(self, "where beam_width is 1", "length_power")
        return self


class Translation(nn.Module, ABC):
    """A model of the next code of a target, given its source and the codes before."""

    @abstractmethod
    def start(self, sources: Tensor) -> Carried:
        """Return what the first step of decoding needs of sources, int64 (batch, time), padded: tensors (batch, ...)."""

    @abstractmethod
    def advance(self, codes: Tensor, carried: Carried) -> tuple[Tensor, Carried]:
        """Take one step of decoding: the last code of each row, (batch,), to the next one's logits, (batch, codes + 1)."""

    @abstractmethod
    def forward(self, sources: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return what follows each input if all before it are true, and where the model looks.

        Args:
            sources: int64 (batch, source time), padded.
            inputs: The boundary and the target, int64 (batch, time), padded with the boundary.

        Returns:
            Logits (batch, time, codes + 1), and the attention's weights (batch, time, source time); None without attention.
        """


def trimmed(codes: Tensor) -> Tensor:
    """Return padded sequences, (batch, time), without the padding that all of them share."""
    return codes[:, : int(lengths(codes).max())]


def shifted(targets: Tensor, boundary: int) -> tuple[Tensor, Tensor]:
    """Return inputs and outputs, each (batch, time + 1), of padded targets, (batch, time): inputs have the boundary for padding."""
    first = targets.new_full((len(targets), 1), boundary)
    inputs = torch.cat([first, targets.where(targets != PADDING, boundary)], dim=1)
    outputs = torch.cat([targets, first.fill_(PADDING)], dim=1)
    return inputs, outputs.scatter(1, lengths(targets).unsqueeze(1), boundary)


def count_edits(found: Tensor, targets: Tensor) -> int:
    """Return how many codes must be put in, dropped or changed to make `targets` of `found`, both padded, summed over the batch."""
    from torchmetrics.functional.text import char_error_rate

    # A character for each code: the rate over characters is exact, and is of the characters of the targets.
    rate = char_error_rate(_as_texts(found), _as_texts(targets))
    return round(float(rate.double()) * int(lengths(targets).sum()))


def _as_texts(codes: Tensor) -> list[str]:
    return ["".join(chr(code) for code in row if code != PADDING) for row in codes.tolist()]


class Translator(GradientLearner):
    """Trains a `Translation` on sources and targets, both padded sequences of codes."""

    parameters: TranslationParameters

    @property
    def _translation(self) -> Translation:
        if not isinstance(self._module, Translation):
            raise LearnerError(f"Learner {self.name}: task must be translate to make sequences, got another.")
        return self._module

    @property
    def _boundary(self) -> int:
        return self.parameters.target_vocabulary

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, nats a code, of logits (batch, time, codes + 1) and padded codes (batch, time)."""
        return code_loss(outputs, targets)

    def measure(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Accuracy of the next code after true ones."""
        is_code = targets != PADDING
        return {"accuracy": (outputs.argmax(dim=2) == targets)[is_code].double().mean()}

    def batch_loss(self, batch: Examples) -> Tensor:
        """Return the mean loss of the codes of a batch by teacher forcing: each is predicted from the true ones before it."""
        inputs, outputs = shifted(trimmed(batch.targets), self._boundary)
        logits, _ = self._translation(trimmed(batch.inputs), inputs)
        return self.loss(logits, outputs)

    def measure_batch(self, batch: Examples) -> Mapping[str, Tensor]:
        """Return loss and accuracy by teacher forcing, and of what is decoded the edits and true codes, in parts of the batch's codes."""
        sources, targets = trimmed(batch.inputs), trimmed(batch.targets)
        inputs, outputs = shifted(targets, self._boundary)
        logits, _ = self._translation(sources, inputs)
        measured = {"loss": self.loss(logits, outputs), **self.measure(logits, outputs)}
        if count := self.parameters.decoded:
            edits = count_edits(self._decode(sources[:count]), targets[:count])
            symbols = int(lengths(targets[:count]).sum())
            weight = self.weigh(batch)
            measured |= {"edits": torch.tensor(edits / weight), "symbols": torch.tensor(symbols / weight)}
        return measured

    def weigh(self, batch: Examples) -> int:
        """Return the number of outputs: the codes of the targets, and their ends."""
        return int(lengths(batch.targets).sum()) + len(batch)

    def finish(self, means: dict[str, float]) -> dict[str, float]:
        """Return the means, and for edits and symbols the error rate: edits a true code."""
        if "edits" not in means:
            return means
        rate = means["edits"] / means["symbols"]
        return {name: mean for name, mean in means.items() if name not in ("edits", "symbols")} | {"error_rate": rate}

    def check(self, data: Examples) -> None:
        """Check that sources and targets are padded sequences of codes, and that decoding may become as long as targets are."""
        check_sequences(self.name, "sources", data.inputs, self.parameters.source_vocabulary)
        check_sequences(self.name, "targets", data.targets, self.parameters.target_vocabulary)
        if len(data) and (found := int(lengths(data.targets).max())) > self.parameters.longest:
            rule = f"Learner {self.name}: targets must have at most {self.parameters.longest} codes"
            raise unsuited(rule, str(found), "Raise the parameter longest.")

    @torch.no_grad()
    def translate(self, state: State, sources: Tensor) -> Tensor:
        """Return what the model makes of sources, int64 (batch, time), padded: targets, int64 (batch, target time), padded."""
        self._load(state)
        self._module.eval()
        with self._autocast():
            return self._decode(trimmed(sources).to(self._device)).cpu()

    @torch.no_grad()
    def attend(self, state: State, source: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the model makes of a source, int64 (time,), and where it looked for each code, (codes, time).

        Raises:
            DataError: The source is empty, or has a code beyond the vocabulary.
            LearnerError: The model has no attention, or is no translator.
        """
        check_sequences(self.name, "sources", source.unsqueeze(0), self.parameters.source_vocabulary)
        codes = trimmed(self.translate(state, source.unsqueeze(0)))
        inputs, _ = shifted(codes, self._boundary)
        with self._autocast():
            _, weights = self._translation(source.unsqueeze(0).to(self._device), inputs.to(self._device))
        if weights is None:
            raise LearnerError(f"Learner {self.name}: model must have attention to show where it looks, got none.")
        return codes[0], weights[0, : codes.shape[1]].float().cpu()

    def _decode(self, sources: Tensor) -> Tensor:
        options = self.parameters
        search = Search(self._boundary, options.longest, options.beam_width, options.length_power)
        decode = greedy if search.width == 1 else beam_search
        model = self._translation
        return decode(model.advance, model.start(sources), search)
