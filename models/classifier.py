"""What learners of classes share: cross-entropy on logits, and accuracy beside it."""

from collections.abc import Mapping

import torch
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
