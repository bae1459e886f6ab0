"""What learners of classes share: cross-entropy on logits, accuracy beside it, and by option measures of each class.

Precision, recall and F1 of a class count its examples and those taken for it; AUROC asks how well its score ranks its own examples before
all others: its probability, or what a learner without probabilities compares classes by. Each is reported as its mean over classes (macro),
so that a rare class weighs as much as a common one. A class counts where it can be measured: for precision, recall and F1 if an example has
it or is taken for it; for AUROC if an example has it and another has not. No client says anything of classes that it does not know.

Source: Opitz and Burst, "Macro F1 and Macro F1", 2019, equation 1 (the mean of the F1s); Hand and Till, "A Simple Generalisation of the
Area Under the ROC Curve for Multiple Class Classification Problems", Machine Learning 45, 2001, section 3 (one class against the rest).
https://arxiv.org/abs/1911.03347 https://doi.org/10.1023/A:1010920819831
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from models import tasks
from models.gradient import GradientLearner, GradientParameters
from models.learner import Examples
from wire.validation import Strict

ClassMeasure = Literal["f1", "auroc", "precision", "recall"]


class ClassMeasuresParameters(Strict):
    """What every learner of classes takes, whether or not it follows a gradient."""

    metrics: list[ClassMeasure] = Field(default=[], max_length=4)
    """What an evaluation reports beside loss and accuracy, means over the classes; of all a client's held-out examples at once."""


class ClassifierParameters(ClassMeasuresParameters, GradientParameters):
    """What every learner of classes takes that trains by gradient descent."""


class MeasuresClasses(GradientLearner):
    """Reports what the option `metrics` asks for of outputs that are logits (batch, classes)."""

    parameters: ClassifierParameters

    @property
    def whole_measures(self) -> Sequence[str]:
        """What the option `metrics` asks for."""
        return self.parameters.metrics

    def measure_whole(self, data: Examples) -> Mapping[str, float]:
        """Return what `metrics` asks for, without an AUROC where all examples are of one class."""
        outputs = self.outputs_of(data)
        return class_measures(
            self.parameters.metrics, outputs.argmax(dim=1), class_probabilities(outputs), data.targets.cpu()
        )


class Classifier(MeasuresClasses):
    """Trains a module whose outputs are logits (batch, classes), on int64 classes (batch,)."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy."""
        return tasks.classification_loss(outputs, targets)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of each example."""
        return functional.cross_entropy(outputs, targets, reduction="none")

    @torch.no_grad()
    def losses_and_gradient(self, outputs: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy of each example, and the gradient by weight: what softmax gives each class, less 1 for the true one."""
        if (type(self).loss, type(self).losses) != (Classifier.loss, Classifier.losses):
            return super().losses_and_gradient(outputs, targets, weights)
        log_likelihoods, own = functional.log_softmax(outputs, dim=1), targets.unsqueeze(1)
        losses = log_likelihoods.gather(1, own).squeeze(1).neg_()
        gradient = log_likelihoods.exp_().scatter_add_(1, own, -torch.ones_like(own, dtype=outputs.dtype))
        return losses, gradient.mul_(weights.unsqueeze(1))

    def measure(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Accuracy."""
        return tasks.classification_measures(outputs, targets)


def class_probabilities(logits: Tensor) -> Tensor:
    """Return the softmax of logits (examples, classes), in float64, where few probabilities are so near to 1 that they tie."""
    return logits.double().softmax(dim=1)


def class_measures(names: Sequence[ClassMeasure], answers: Tensor, scores: Tensor, targets: Tensor) -> dict[str, float]:
    """Return macro measures, each 0 to 1; without an AUROC where all examples are of one class.

    Args:
        names: Which.
        answers: What each example was taken for, int64 (examples,), on the CPU as the others.
        scores: What says how much each example is of each class, of any size, floating (examples, classes).
        targets: True classes, int64 (examples,).
    """
    if not names:
        return {}
    # Here, because torchmetrics takes seconds to import.
    from torchmetrics.functional.classification import multiclass_f1_score, multiclass_precision, multiclass_recall

    measures = {"f1": multiclass_f1_score, "precision": multiclass_precision, "recall": multiclass_recall}
    count, found = scores.shape[1], dict[str, float]()
    for name in names:
        if name in measures:
            found[name] = float(measures[name](answers, targets, num_classes=count, average="macro"))
        elif len(present := targets.bincount().nonzero().flatten()) > 1:
            found[name] = _auroc(scores, targets, present)
    return found


def _auroc(scores: Tensor, targets: Tensor, present: Tensor) -> float:
    """Return the mean of each class's AUROC against the rest, over those that are `present` in `targets`, two or more."""
    from torchmetrics.functional.classification import multilabel_auroc

    columns = scores.T[present].contiguous()  # (present, examples)
    # In their order, equals alike, but from 0 to 1, where torchmetrics takes scores as they are.
    ranks = torch.searchsorted(columns.sort(dim=1).values, columns).double() / len(scores)
    own = (targets == present[:, None]).long()  # (present, examples)
    return float(multilabel_auroc(ranks.T, own.T, num_labels=len(present), average="macro"))
