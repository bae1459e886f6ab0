"""What learners of classes share: cross-entropy on logits, and accuracy beside it."""

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional

from models import tasks
from models.gradient import GradientLearner


class Classifier(GradientLearner):
    """Trains a module whose outputs are logits (batch, classes), on int64 classes (batch,)."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy."""
        return tasks.classification_loss(outputs, targets)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of each example."""
        return functional.cross_entropy(outputs, targets, reduction="none")

    def measure(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Accuracy."""
        return tasks.classification_measures(outputs, targets)
