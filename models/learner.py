"""What the zoo implements: a learner federates by an exact weighted mean of client vectors, then a server step.

    state' = learner.apply(state, sum_k(w_k * v_k) / sum_k(w_k))

Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017.
https://arxiv.org/abs/1602.05629
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from models.optimizers import ServerOptimizer
from wire.evaluation import Evaluation
from wire.spec import LocalSpec
from wire.tensors import Layout, State, Vector

Report = Callable[[float], None]
"""Called during a fit with the done part, 0 to 1, at least once a batch. Raises `TrainingStopped` to end the fit."""


PADDING = -1
"""Ends a sequence of codes that is shorter than the longest one beside it."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """Where windows that overlap lie in time, so that none is held out whose targets others train on.

    Attributes:
        series: The series that each window was cut from, int64 (examples,). Windows of two series share nothing.
        steps: The step of its series at which a window's targets begin, int64 (examples,).
        horizon: Steps that targets span, at least 1: those of one series that begin fewer steps apart overlap.
    """

    series: Tensor
    steps: Tensor
    horizon: int

    def select(self, rows: Tensor) -> "Timeline":
        """Return the places of the windows at `rows`, int64 (rows,)."""
        return Timeline(self.series[rows], self.steps[rows], self.horizon)

    def to(self, device: torch.device) -> "Timeline":
        """Return the places on `device`."""
        return Timeline(self.series.to(device), self.steps.to(device), self.horizon)


@dataclass(frozen=True, slots=True)
class Examples:
    """Local data in memory.

    Codes of sequences shorter than the longest end in `PADDING`; float series end in NaN.

    Attributes:
        inputs: (examples, ...), float32 features or int64 codes.
        targets: (examples, ...), int64 classes or codes, or float32 values; int64 (examples, 0) where there are none.
        timeline: Where the examples lie in time if they are windows that overlap, until they are split; else None.
    """

    inputs: Tensor
    targets: Tensor
    timeline: Timeline | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def example_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.inputs.shape[1:])

    def select(self, rows: Tensor) -> "Examples":
        """Return the examples at `rows`, int64 (rows,), as copies."""
        timeline = None if self.timeline is None else self.timeline.select(rows)
        return Examples(self.inputs.index_select(0, rows), self.targets.index_select(0, rows), timeline)

    def to(self, device: torch.device) -> "Examples":
        """Return the examples on `device`."""
        return Examples(self.inputs.to(device), self.targets.to(device), self.timeline and self.timeline.to(device))


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one client gives to one round.

    Attributes:
        vector: float32 (coordinates,) in the order of the learner's `contribution_layout`.
        example_count: Examples trained on, 1 or more.
        metrics: What training measured, by name.
    """

    vector: Vector
    example_count: int
    metrics: Mapping[str, float]


class Learner(Protocol):
    """A model and how it learns. Resident: built once in a process and used for many rounds, by one thread at a time."""

    @property
    def contribution_layout(self) -> Layout:
        """What a contribution holds: the state's own layout for a change of the state, another one for statistics."""

    def init(self, seed: int) -> State:
        """Return the initial state: name to tensor. Floating tensors travel, others stay where they are."""

    def check(self, data: Examples) -> None:
        """Check that `data` suits this learner.

        Raises:
            DataError: It does not; the message names what differs.
        """

    def fit(
        self, state: State, data: Examples, local: LocalSpec, generator: torch.Generator, report: Report
    ) -> Contribution:
        """Train on `data`, starting from `state`, and return what this client contributes.

        Args:
            state: float32 tensors of the layout, left unchanged.
            data: At least one example.
            local: Epochs, batch size and optimizer.
            generator: Source of every random draw.
            report: Called as training goes on.
        """

    def step_bytes(self, data: Examples, local: LocalSpec) -> int:
        """Estimate the bytes that one step of training takes beside the model's state and the data.

        Copies of parameters, gradients, slots of the optimizer, and what layers keep for the backward pass of a batch. `fit` takes
        about that at most; `choral models check` refuses a learner that takes more than twice as much.

        Args:
            data: At least one example; a batch has `local.batch_size` of them, or all where there are fewer.
            local: Batch size and optimizer.
        """

    def apply(self, state: State, mean: State, server: ServerOptimizer, weight_total: int) -> State:
        """Return the next state from the contributions of a round. May change the tensors of all arguments in place.

        Args:
            state: float32 tensors of the layout.
            mean: The weighted mean of the contributions, float32 tensors of `contribution_layout`.
            server: The server step.
            weight_total: The sum of their weights: `mean * weight_total` is the weighted sum.
        """

    def evaluate(self, state: State, data: Examples, training: Examples | None = None) -> Evaluation:
        """Measure `state` on `data`, which is left unchanged. Draws nothing at random that is not the same each time.

        Args:
            state: float32 tensors of the layout.
            data: Examples that were not trained on; may be none.
            training: The same client's training data, for what a model keeps local; None where there is none, as on a coordinator.
        """


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """What is wanted of a generative model.

    Attributes:
        count: Samples, 1 or more.
        generator: Source of every random draw.
        prompt: What text begins with, int64 codes (time,); None to begin with nothing.
        length: Codes of text to add.
        temperature: Divides the logits of text: below 1 safer, above 1 bolder; above 0.
    """

    count: int
    generator: torch.Generator
    prompt: Tensor | None = None
    length: int = 200
    temperature: float = 1.0


@runtime_checkable
class Sampler(Protocol):
    """A learner that can make examples like those that it was trained on."""

    samples_text: ClassVar[bool]
    """Whether samples are texts, as bytes that may end in `PADDING`, and the request's prompt, length and temperature count."""

    def sample(self, state: State, request: SampleRequest) -> Tensor:
        """Return samples, (count, ...): like the inputs it is trained on, float32 features or int64 codes."""


@runtime_checkable
class ActivationMaps(Protocol):
    """A learner of images that can show where its layers respond to one."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""

    def maps(self, state: State, image: Tensor) -> Mapping[str, Tensor]:
        """Return what each layer makes of an image, by the layer's name, in the order of the layers.

        Args:
            state: float32 tensors of the layout.
            image: float32 `image_shape`, 0 to 1 as in training.

        Returns:
            float32 (channels, height, width) of the layer, on the CPU: one map a channel.
        """


@runtime_checkable
class Attentive(Protocol):
    """A learner from one sequence of codes to another that can show where it looks."""

    def attend(self, state: State, source: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the model makes of a source, and where it looked for each code of it.

        Args:
            state: float32 tensors of the layout.
            source: int64 (time,).

        Returns:
            Codes, int64 (codes,), and weights that add up to 1 over the source, float32 (codes, time), both on the CPU.

        Raises:
            DataError: The source has no code, or one that the model does not know.
            LearnerError: The model, as its parameters have it, has no attention.
        """
