"""One client's part in a round: train on local data, or evaluate. The agent and the simulation call the same code (law L2).

Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
Algorithm 1, ClientUpdate.
https://arxiv.org/abs/1602.05629
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from safetensors.numpy import save

from client.data import LocalData
from models import MODELS, Evaluation, Learner, LearnerError, build_learner, check_spec, first_state, unsuited
from models.learner import Contribution, Report
from models.optimizers import ServerOptimizer
from wire.saved import LAYOUT_KEY
from wire.seeds import derive_generator
from wire.spec import Named, RunSpec
from wire.tensors import Layout, State, Vector

QUALITY_SHARPNESS = 5.0
"""Weight by quality is n * exp(-5 * loss)."""

QUALITY_STEPS = 64
"""Weights by quality are multiples of 1/64 example, because weights travel as integers."""

_FED_AVG = Named(name="sgd", learning_rate=1.0)


@dataclass(frozen=True, slots=True)
class Result:
    """What a client brings to a round.

    Attributes:
        vector: float32 (parameters,), the contribution.
        weight: Its weight, 1 to the run's cap.
        example_count: Examples trained on.
        metrics: What training measured.
        train_seconds: Wall time.
    """

    vector: Vector = field(repr=False)
    weight: int
    example_count: int
    metrics: Mapping[str, float]
    train_seconds: float


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a client is to train.

    Attributes:
        spec: The run's spec.
        round_number: 1 or more; with seed and client it decides every random draw.
        client_id: The client's identity.
        vector: The model to start from, float32 (parameters,), left unchanged.
    """

    spec: RunSpec
    round_number: int
    client_id: str
    vector: Vector = field(repr=False)


def first_model(spec: RunSpec) -> bytes:
    """Draw the model before a run's first round, and return it as a file that a coordinator without torch reads.

    Raises:
        LearnerError: The zoo does not have what the spec asks for, or the model would hold what lies at this site.
    """
    if spec.learner.name not in MODELS:
        raise LearnerError(f"First model: learner must be one of the zoo's, got {spec.learner.name!r}.")
    if spec.learner.base is not None:
        raise LearnerError(
            f"First model: learner must start from no base, which does not leave its machine, got {spec.learner.base!r}."
        )
    check_spec(spec)
    state = first_state(build_learner(spec.learner, "meta"), spec)
    layout = Layout.of(state)
    travelling = layout.arrays(layout.flatten(state))
    constants = {name: tensor.numpy() for name, tensor in state.items() if name not in travelling}
    return save({**travelling, **constants}, {LAYOUT_KEY: layout.json})


class Trainer:
    """A learner and where it runs, resident over the rounds of a run. Not safe for concurrent use."""

    def __init__(self, learner: Named, device: torch.device) -> None:
        """Build the learner. Raises `LearnerError` when the zoo does not have it."""
        self._learner: Learner = build_learner(learner, device)
        self._device = device
        self.named = learner
        # The layout does not depend on the seed.
        self.layout = Layout.of(self._learner.init(0))
        self.contribution_layout = self._learner.contribution_layout

    def check(self, data: LocalData) -> None:
        """Check that both parts of the data suit the learner. Raises `DataError`."""
        self._learner.check(data.training)
        if len(data.held_out):
            self._learner.check(data.held_out)

    def train(self, assignment: Assignment, data: LocalData, report: Report) -> Result:
        """Train from a model.

        Args:
            assignment: From what, for which round.
            data: The client's examples, on the trainer's device.
            report: Called with the done part; may raise `TrainingStopped`.

        Raises:
            TrainingStopped: `report` did.
            DataError: The weight must come from held-out data, and there is none.
        """
        start = time.perf_counter()
        spec = assignment.spec
        check_weighing(spec, len(data.training), len(data.held_out))
        state = self.layout.views(assignment.vector)
        generator = derive_generator(spec.seed, "fit", assignment.round_number, assignment.client_id)
        contribution = self._learner.fit(
            state, data.training, spec.local_in(assignment.round_number), generator, report
        )
        return Result(
            contribution.vector,
            self._weight(assignment, contribution, data),
            contribution.example_count,
            contribution.metrics,
            time.perf_counter() - start,
        )

    def evaluate(self, vector: Vector, data: LocalData) -> Evaluation:
        """Measure a model on the held-out examples; of 0 examples if there are none."""
        return self._learner.evaluate(self.layout.views(vector), data.held_out, data.training)

    def _weight(self, assignment: Assignment, contribution: Contribution, data: LocalData) -> int:
        """Return the weight of a client's contribution, 1 to the cap."""
        spec, count = assignment.spec, len(data.training)
        if spec.weight_by == "examples":
            return min(count, spec.weight_cap)
        trained = self._trained(assignment.vector, contribution)
        held_out = self._learner.evaluate(trained, data.held_out, data.training)
        return weight_by_quality(spec, count, held_out.metrics["loss"])

    def _trained(self, vector: Vector, contribution: Contribution) -> State:
        """Return a client's own model after its training: what a round of FedAvg that it had to itself would end with."""
        # Copies, because a server step may change what it is given.
        state, mean = self.layout.views(vector.copy()), self.contribution_layout.views(contribution.vector.copy())
        return self._learner.apply(state, mean, ServerOptimizer(_FED_AVG), contribution.example_count)


def check_weighing(spec: RunSpec, example_count: int, held_out_count: int) -> None:
    """Check that a client can be weighed: it has what quality is measured on, and no quality is above a masked weight's cap.

    Raises:
        DataError: It cannot.
    """
    if spec.weight_by != "quality":
        return
    if spec.secure is not None and example_count * QUALITY_STEPS > spec.weight_cap:
        raise unsuited(
            f"Weight by quality: examples must be at most 1/{QUALITY_STEPS} of privacy.secure_aggregation.weight_cap "
            f"({spec.weight_cap}), because that is the weight of the best model",
            str(example_count),
            "Raise weight_cap.",
        )
    if not held_out_count:
        raise unsuited(
            "Weight by quality: at least 1 example must be held out", "0", "Join with a held-out fraction above 0."
        )


def weight_by_quality(spec: RunSpec, example_count: int, loss: float) -> int:
    """Return the weight of a contribution, 1 to the cap, from how good the model is that the client has trained.

    Args:
        spec: The run's spec, for its cap.
        example_count: Examples trained on.
        loss: Of the trained model on the client's held-out data, before it is averaged with any other.
    """
    quality = math.exp(-QUALITY_SHARPNESS * loss) if math.isfinite(loss) else 0.0
    return min(spec.weight_cap, max(1, round(example_count * QUALITY_STEPS * quality)))
