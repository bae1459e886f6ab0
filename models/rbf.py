"""Radial basis function network: neurons that each know a place in the input space, and a linear readout of how near an example is.

    phi_j(x) = exp(-||x - c_j||^2 / (2 s^2)),    outputs = V phi(x) + b

It learns in three phases, one after another, each from sums over the examples alone, so that a federation finds what pooled data would:

1. The centres c_j are those of k-means. A client contributes, for each centre, the sum, the number and the squared distances of its own
   examples that are nearest to it; sums over all clients give Lloyd's step: every centre moves to the mean of its examples, and one that
   has none stays. To begin well without a look at anybody's data, centres are split (Linde, Buzo and Gray): the first is the mean of all
   examples; after each step the centres c with the largest scatter become c + e and c - e, with e in a random direction and half as long
   as the typical distance to c, until there are enough; `lloyd_rounds` more steps follow.
2. The width s is `overlap` times the mean distance from a centre to the nearest other one. It follows from the centres and needs no round.
3. The readout. `ridge`: clients contribute the means of phi phi^T and of phi t^T, with a one-hot t and a constant 1 in phi for b; one round
   gives the exact minimum of mean ||V phi + b - t||^2 + ridge ||V||^2. Later rounds find it again for those who take part. `gradient`:
   rounds of softmax regression on phi, with the optimizer of the spec; the contribution is the change of V and b.

Centres take ceil(log2(centres)) + lloyd_rounds rounds, the readout all that follow: 1 for `ridge`. The state holds the number of rounds
done, which says whose turn it is.

Source: Broomhead and Lowe, "Multivariable functional interpolation and adaptive networks", Complex Systems 2, 1988 (the network and the
linear solution); Moody and Darken, "Fast learning in networks of locally-tuned processing units", Neural Computation 1(2), 1989
(k-means, then the mean distance of nearest neighbours, then the readout), https://doi.org/10.1162/neco.1989.1.2.281; Lloyd, "Least squares
quantization in PCM", IEEE Transactions on Information Theory 28(2), 1982, https://doi.org/10.1109/TIT.1982.1056489; Linde, Buzo and Gray,
"An algorithm for vector quantizer design", IEEE Transactions on Communications 28(1), 1980 (splitting),
https://doi.org/10.1109/TCOM.1980.1094577.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from models import tasks
from models.classifier import (
    Classifier,
    ClassifierParameters,
    ClassMeasuresParameters,
    class_measures,
    class_probabilities,
)
from models.learner import Contribution, Examples, Report
from models.optimizers import ServerOptimizer
from models.settings import DESCENT_SETTINGS, SERVER_SETTINGS, refuse_unused
from wire.evaluation import Evaluation
from wire.spec import LocalSpec
from wire.tensors import Layout, State

SPLIT = 0.5
"""How far the halves of a split centre move, in root mean squares of the distances to it."""


class RBFNetworkParameters(ClassMeasuresParameters):
    """Parameters of the learner `rbf_network`."""

    inputs: list[Annotated[int, Field(ge=1)]] = Field(default=[64], min_length=1, max_length=4)
    """Shape of one example; more than one axis is flattened."""
    centres: int = Field(default=100, ge=2, le=4096)
    """Number of centres: of hidden neurons."""
    lloyd_rounds: int = Field(default=8, ge=1, le=1000)
    """Rounds that move the centres once all of them are there."""
    overlap: float = Field(default=1.5, gt=0, le=1000)
    """Width of a neuron, in mean distances of a centre to the nearest other one."""
    readout: Literal["ridge", "gradient"] = "ridge"
    """How the readout is found: exactly in one round, or by softmax regression with the spec's optimizer."""
    ridge: float = Field(default=1e-5, ge=1e-8)
    """Weight of ||V||^2 beside the mean squared error, for `ridge`."""
    classes: int = Field(default=10, ge=2)
    """Number of classes."""

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        if self.readout != "ridge":
            refuse_unused(self, f"where readout is {self.readout}", "ridge")
        return self


class RadialBasis(nn.Module):
    """Gaussian neurons: from examples (batch, features) to how near each is to each centre, above 0 to 1, (batch, centres)."""

    centres: Tensor
    width: Tensor

    def __init__(self, centres: Tensor, width: Tensor) -> None:
        """Take over `centres`, (centres, features), and one `width` for all, above 0."""
        super().__init__()
        self.register_buffer("centres", centres)
        self.register_buffer("width", width)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return exp(-||x - c||^2 / (2 s^2))."""
        return (-squared_distances(inputs, self.centres) / (2 * self.width.square())).exp()


def squared_distances(inputs: Tensor, centres: Tensor) -> Tensor:
    """Return ||x - c||^2 of examples (batch, features) and centres (centres, features): (batch, centres)."""
    # Without the expansion into products, in which the distance of near points is lost in rounding.
    return torch.cdist(inputs, centres, compute_mode="donot_use_mm_for_euclid_dist").square()


class Readout(Classifier):
    """Softmax regression on the outputs of the radial basis."""

    def __init__(self, features: int, classes: int, device: torch.device) -> None:
        self._sizes = (features, classes)
        super().__init__(ClassifierParameters(), device)

    def build(self) -> nn.Module:
        """Return the dense layer."""
        return nn.Linear(*self._sizes)

    def check(self, data: Examples) -> None:
        """Take any data: the network has checked it."""


class RBFNetwork:
    """Radial basis function network: k-means centres, linear readout."""

    task = "classify"
    data = "vectors, small images"

    def __init__(self, parameters: RBFNetworkParameters, device: torch.device) -> None:
        self.parameters = parameters
        self._device = device
        self._readout = Readout(parameters.centres, parameters.classes, device)
        self._splits = math.ceil(math.log2(parameters.centres))
        count, features, classes = parameters.centres, math.prod(parameters.inputs), parameters.classes
        shapes: dict[str, tuple[int, ...]] = {"sums": (count, features), "counts": (count,), "distances": (count,)}
        if parameters.readout == "ridge":
            shapes |= {"gram": (count + 1, count + 1), "moments": (count + 1, classes)}
        else:
            shapes |= {"weight": (classes, count), "bias": (classes,)}
        self._layout = Layout.of({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})

    @property
    def unused_settings(self) -> frozenset[str]:
        """With `ridge` all that belongs to gradients, and epochs: statistics take one pass."""
        is_exact = self.parameters.readout == "ridge"
        return DESCENT_SETTINGS | SERVER_SETTINGS | {"local.epochs"} if is_exact else frozenset()

    @property
    def fewest_rounds(self) -> int:
        """Rounds that place the centres, and one for the readout."""
        return self._splits + self.parameters.lloyd_rounds + 1

    @property
    def contribution_layout(self) -> Layout:
        """Statistics of the centres, and what the readout needs: each phase fills its own and leaves 0 in the rest."""
        return self._layout

    def init(self, seed: int) -> State:
        """Return a network without a centre yet: its rows hold the random directions, of length 1, in which centres will be split."""
        count, features = self.parameters.centres, math.prod(self.parameters.inputs)
        directions = torch.randn(count, features, generator=torch.Generator().manual_seed(seed))
        return {
            "round": torch.zeros(()),
            "centres": functional.normalize(directions),
            "width": torch.ones(()),
            "weight": torch.zeros(self.parameters.classes, count),
            "bias": torch.zeros(self.parameters.classes),
        }

    def check(self, data: Examples) -> None:
        """Check that examples have the shape `inputs` and targets are classes."""
        tasks.check_features("rbf_network", data, tuple(self.parameters.inputs))
        tasks.check_classes("rbf_network", data, self.parameters.classes)

    def fit(
        self, state: State, data: Examples, local: LocalSpec, generator: torch.Generator, report: Report
    ) -> Contribution:
        """Contribute what the phase needs. Statistics take one pass however many `local.epochs` there are, and none without any.

        Raises:
            DataError: There are no examples. Nothing was changed.
        """
        tasks.check_examples(data)
        found: Mapping[str, Tensor] = {}
        metrics: Mapping[str, float] = {}
        if local.epochs and self._is_placing(state):
            found = self._means(self._nearest(state, batch) for batch in _batches(data, local.batch_size, report))
        elif local.epochs and self.parameters.readout == "ridge":
            found = self._means(self._products(state, batch) for batch in _batches(data, local.batch_size, report))
        elif local.epochs:
            near = Examples(self._basis(state)(data.inputs.flatten(1)), data.targets)
            change = self._readout.fit(_linear(state), near, local, generator, report)
            found, metrics = self._readout.contribution_layout.views(change.vector), change.metrics
        parts = {entry.name: found.get(entry.name, torch.zeros(entry.shape)) for entry in self._layout.entries}
        return Contribution(self._layout.flatten(parts), len(data), metrics)

    def step_bytes(self, data: Examples, local: LocalSpec) -> int:
        """Tell the bytes of the phase that takes most: of statistics, or of a readout by gradient with how near all examples are."""
        count, centres = min(local.batch_size, len(data)), self.parameters.centres
        features = math.prod(self.parameters.inputs)
        # How near, as float32 twice, as int64 and as float64; the examples as float64; sums of a batch and of all, and the contribution.
        statistics = (
            count * (24 * centres + 8 * features) + 16 * centres * max(features, centres) + 4 * self._layout.size
        )
        if self.parameters.readout == "ridge":
            return statistics
        near = Examples(torch.zeros(len(data), centres, device=self._device), data.targets)
        return max(statistics, 3 * near.inputs.nbytes + self._readout.step_bytes(near, local))

    def apply(self, state: State, mean: State, server: ServerOptimizer, weight_total: int) -> State:
        """Take the phase's step. The server's optimizer steps the readout by gradient alone: the other steps are exact solutions.

        A round in which nobody trained changes nothing.
        """
        found: State = {}
        if self._is_placing(state):
            found = self._placed(state, mean) if mean["counts"].any() else {}
        elif self.parameters.readout == "ridge":
            found = self._solved(mean) if mean["gram"].any() else {}
        else:
            found = self._readout.apply(_linear(state), _linear(mean), server, weight_total)
        return {**state, **found}

    @torch.no_grad()
    def evaluate(self, state: State, data: Examples, training: Examples | None = None) -> Evaluation:
        """Return accuracy, the loss that the readout lowers, the mean squared distance to the nearest centre, and what `metrics` asks for.

        The loss is the squared error for `ridge`, else cross-entropy. Until the centres have been placed, all outputs are 0. An output for
        `ridge` is itself an estimate of a class's probability, perhaps below 0 or above 1, and ranks examples as it is.
        """
        if not len(data):
            return Evaluation(0, {})
        inputs, targets = data.inputs.flatten(1), data.targets
        weight, bias = (part.to(self._device) for part in _linear(state).values())
        outputs = functional.linear(self._basis(state)(inputs), weight, bias)  # (examples, classes)
        if self.parameters.readout == "ridge":
            loss = (outputs - functional.one_hot(targets, self.parameters.classes)).square().sum(1).mean()
        else:
            loss = tasks.classification_loss(outputs, targets)
        distance = squared_distances(inputs, self._active_centres(state)).amin(1).mean()
        measures = {"loss": loss, **tasks.classification_measures(outputs, targets), "distance": distance}
        outputs = outputs.cpu()
        scores = outputs if self.parameters.readout == "ridge" else class_probabilities(outputs)
        of_classes = class_measures(self.parameters.metrics, outputs.argmax(1), scores, targets.cpu())
        return Evaluation(len(data), {name: float(value) for name, value in measures.items()} | of_classes)

    def _is_placing(self, state: State) -> bool:
        return int(state["round"]) < self._splits + self.parameters.lloyd_rounds

    def _active_count(self, state: State) -> int:
        """Return how many centres there are: 1, 2, 4 and so on, until there are all."""
        return min(1 << min(int(state["round"]), self._splits), self.parameters.centres)

    def _active_centres(self, state: State) -> Tensor:
        return state["centres"][: self._active_count(state)].to(self._device)

    def _basis(self, state: State) -> RadialBasis:
        return RadialBasis(state["centres"], state["width"]).to(self._device)

    def _means(self, statistics: Iterator[tuple[int, dict[str, Tensor]]]) -> dict[str, Tensor]:
        """Return the means over all examples of sums over batches, float32; they are added in float64."""
        totals: dict[str, Tensor] = {}
        example_count = 0
        for count, sums in statistics:
            example_count += count
            for name, value in sums.items():
                totals[name] = totals[name] + value if name in totals else value
        return {name: (total / example_count).float() for name, total in totals.items()}

    def _nearest(self, state: State, batch: Examples) -> tuple[int, dict[str, Tensor]]:
        """Return the size of a batch and what it adds to each centre's statistics, float64."""
        inputs = batch.inputs.flatten(1)  # (batch, features)
        squared, nearest = squared_distances(inputs, self._active_centres(state)).min(1)
        # A product with 0 and 1, because to add at places does not have the same rounding each time on a GPU.
        belongs = functional.one_hot(nearest, self.parameters.centres).double().T  # (centres, batch)
        return len(batch), {
            "sums": belongs @ inputs.double(),
            "counts": belongs.sum(1),
            # For each feature, so that they are small of however many.
            "distances": belongs @ squared.double() / inputs.shape[1],
        }

    def _products(self, state: State, batch: Examples) -> tuple[int, dict[str, Tensor]]:
        """Return the size of a batch and its sums of phi phi^T and phi t^T, float64."""
        near = self._basis(state)(batch.inputs.flatten(1)).double()  # (batch, centres)
        near = torch.cat([near, torch.ones_like(near[:, :1])], 1)
        targets = functional.one_hot(batch.targets, self.parameters.classes).double()  # (batch, classes)
        return len(batch), {"gram": near.T @ near, "moments": near.T @ targets}

    def _placed(self, state: State, mean: State) -> dict[str, Tensor]:
        """Return the centres after Lloyd's step, and split while there are too few; with the last step, the width."""
        count, centres = self._active_count(state), state["centres"].double()
        counts, before = mean["counts"][:count].double(), centres[:count].clone()
        has_any = counts > 0
        # A ratio of means, for which it does not matter how clients are weighted.
        centres[:count][has_any] = mean["sums"][:count].double()[has_any] / counts[has_any, None]
        # About the new centres: sum |x - c|^2 = sum |x - c'|^2 - n |c - c'|^2.
        squared = mean["distances"][:count].double() * centres.shape[1]
        scatter = squared - counts * (centres[:count] - before).square().sum(1)
        grown = min(2 * count, self.parameters.centres) - count
        if grown:
            _split(centres, counts, scatter.clamp(min=0), grown)
        after = {**state, "round": state["round"] + 1, "centres": centres.float()}
        if not self._is_placing(after):
            distances = squared_distances(centres, centres).fill_diagonal_(math.inf).amin(1).sqrt()
            # Above 0 even if all examples are one.
            after["width"] = (self.parameters.overlap * distances.mean()).clamp(min=1e-6).float()
        return after

    def _solved(self, mean: State) -> dict[str, Tensor]:
        """Return the minimum of the mean squared error with its penalty, which leaves the bias free."""
        penalty = torch.full((self.parameters.centres + 1,), self.parameters.ridge, dtype=torch.float64)
        penalty[-1] = 0
        solution = torch.linalg.solve(mean["gram"].double() + penalty.diag(), mean["moments"].double())
        return {"weight": solution[:-1].T.float().contiguous(), "bias": solution[-1].float()}


def _split(centres: Tensor, counts: Tensor, scatter: Tensor, grown: int) -> None:
    """Split the `grown` centres of the largest scatter in place: rows that have held a direction become the other halves."""
    count = len(counts)
    parents = scatter.argsort(descending=True, stable=True)[:grown]
    lengths = SPLIT * (scatter / counts.clamp(min=torch.finfo(counts.dtype).tiny)).sqrt()[parents]
    shifts = lengths[:, None] * centres[count : count + grown]
    centres[count : count + grown] = centres[parents] + shifts
    centres[parents] -= shifts


def _linear(tensors: State) -> dict[str, Tensor]:
    return {name: tensors[name] for name in ("weight", "bias")}


def _batches(data: Examples, batch_size: int, report: Report) -> Iterator[Examples]:
    """Yield the examples in their order, and report what is done after each batch."""
    for start in range(0, len(data), batch_size):
        rows = slice(start, start + batch_size)
        yield Examples(data.inputs[rows], data.targets[rows])
        report(min(1.0, (start + batch_size) / len(data)))
