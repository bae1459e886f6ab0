"""What learners of classes share: cross-entropy on logits, accuracy beside it, and by option measures of each class.

Precision, recall and F1 of a class count its examples and those taken for it; AUROC asks how well its probability ranks its own examples
before all others. Each is reported as its mean over classes (macro), so that a rare class weighs as much as a common one. A class counts
where it can be measured: for precision, recall and F1 if an example has it or is taken for it; for AUROC if an example has it and another
has not. No client says anything of classes that it does not know.

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

ClassMeasure = Literal["f1", "auroc", "precision", "recall"]


class ClassifierParameters(GradientParameters):
    """What every learner of classes takes."""

    metrics: list[ClassMeasure] = Field(default=[], max_length=4)
    """What an evaluation reports beside loss and accuracy, means over the classes; of all a client's held-out examples at once."""


class MeasuresClasses(GradientLearner):
    """Reports what the option `metrics` asks for of outputs that are logits (batch, classes)."""

    parameters: ClassifierParameters

    @property
    def whole_measures(self) -> Sequence[str]:
        """What the option `metrics` asks for."""
        return self.parameters.metrics

    def measure_whole(self, data: Examples) -> Mapping[str, float]:
        """Return what `metrics` asks for, without an AUROC where all examples are of one class."""
        return class_measures(self.parameters.metrics, self.outputs_of(data), data.targets.cpu())


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


def class_measures(names: Sequence[ClassMeasure], outputs: Tensor, targets: Tensor) -> dict[str, float]:
    """Return macro measures of logits (examples, classes) and classes (examples,), each 0 to 1; without an AUROC of one class alone."""
    # Here, because torchmetrics takes seconds to import.
    from torchmetrics.functional.classification import multiclass_f1_score, multiclass_precision, multiclass_recall

    measures = {"f1": multiclass_f1_score, "precision": multiclass_precision, "recall": multiclass_recall}
    count, found = outputs.shape[1], dict[str, float]()
    for name in names:
        if name in measures:
            found[name] = float(measures[name](outputs, targets, num_classes=count, average="macro"))
        elif len(present := targets.bincount().nonzero().flatten()) > 1:
            found[name] = _auroc(outputs, targets, present)
    return found


def _auroc(outputs: Tensor, targets: Tensor, present: Tensor) -> float:
    """Return the mean of each class's AUROC against the rest, over those that are `present` in `targets`, two or more."""
    from torchmetrics.functional.classification import multilabel_auroc

    # In float64, where few probabilities are so near to 1 that they tie.
    scores = outputs.double().softmax(dim=1)[:, present]  # (examples, present)
    own = (targets[:, None] == present).long()  # (examples, present)
    return float(multilabel_auroc(scores, own, num_labels=len(present), average="macro"))
