"""Multilayer perceptron: dense layers with an activation between them, which classifies or predicts numbers.

    h_0 = x,  h_i = dropout(act(norm(W_i h_{i-1} + b_i))),  outputs = W h_n + b

The outputs are logits of classes, trained by cross-entropy, or the numbers themselves, trained by the mean squared error.

Source: Rumelhart, Hinton and Williams, "Learning representations by back-propagating errors", Nature 323, 1986.
https://doi.org/10.1038/323533a0
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from models import tasks
from models.activations import ACTIVATIONS, ActivationName
from models.classifier import Classifier, ClassifierParameters
from models.dropout import Dropout
from models.gradient import GradientLearner, GradientParameters
from models.learner import Examples


class LayersParameters(GradientParameters):
    """Parameters of the layers, whatever is predicted."""

    inputs: list[Annotated[int, Field(ge=1)]] = Field(default=[64], min_length=1, max_length=4)
    """Shape of one example; more than one axis is flattened."""
    hidden: list[Annotated[int, Field(ge=1)]] = Field(default=[64], max_length=64)
    """Width of each hidden layer; none gives softmax regression, or a linear one."""
    activation: ActivationName = "relu"
    """Activation after each hidden layer."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Part of the hidden units that is dropped in training."""
    batch_norm: bool = False
    """Batch normalisation before each activation."""


def _layers(parameters: LayersParameters, outputs: int) -> nn.Module:
    """Return the layers as one `nn.Sequential`, the last one of width `outputs`."""
    layers: list[nn.Module] = [nn.Flatten()]  # (batch, inputs)
    width = math.prod(parameters.inputs)
    for hidden in parameters.hidden:
        layers.append(nn.Linear(width, hidden))  # (batch, hidden)
        if parameters.batch_norm:
            layers.append(nn.BatchNorm1d(hidden))
        layers.append(ACTIVATIONS[parameters.activation]())
        if parameters.dropout:
            layers.append(Dropout(parameters.dropout))
        width = hidden
    layers.append(nn.Linear(width, outputs))  # (batch, outputs)
    return nn.Sequential(*layers)


class MLPParameters(LayersParameters, ClassifierParameters):
    """Parameters of the learner `mlp`."""

    classes: int = Field(default=10, ge=2)
    """Number of classes."""


class MLP(Classifier):
    """Multilayer perceptron that classifies vectors or small images."""

    task = "classify"
    data = "vectors, small images"
    parameters: MLPParameters

    def build(self) -> nn.Module:
        """Return the layers."""
        return _layers(self.parameters, self.parameters.classes)

    def check(self, data: Examples) -> None:
        """Check that examples have the shape `inputs` and targets are classes."""
        tasks.check_features("mlp", data, tuple(self.parameters.inputs))
        tasks.check_classes("mlp", data, self.parameters.classes)


class MLPRegressorParameters(LayersParameters):
    """Parameters of the learner `mlp_regressor`."""

    inputs: list[Annotated[int, Field(ge=1)]] = Field(default=[24, 1], min_length=1, max_length=4)
    """Shape of one example; more than one axis is flattened."""
    outputs: int = Field(default=1, ge=1)
    """Numbers to predict for each example."""
    metrics: list[Literal["r2"]] = Field(default=[], max_length=1)
    """What an evaluation reports beside loss and mean squared error, of all a client's held-out examples at once: r2, the part of the
    variance that is explained, 0 where there is none; a mean over the outputs."""


class MLPRegressor(GradientLearner):
    """Multilayer perceptron that predicts numbers."""

    task = "predict numbers"
    data = "vectors, windows of series"
    parameters: MLPRegressorParameters

    def build(self) -> nn.Module:
        """Return the layers."""
        return _layers(self.parameters, self.parameters.outputs)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean squared error of predictions (batch, outputs)."""
        return functional.mse_loss(outputs, targets.view_as(outputs))

    def measure(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Return the mean squared error."""
        return {"mse": self.loss(outputs, targets)}

    @property
    def whole_measures(self) -> Sequence[str]:
        """What the option `metrics` asks for."""
        return self.parameters.metrics

    def measure_whole(self, data: Examples) -> Mapping[str, float]:
        """Return R2; nothing for a single example, which has no variance."""
        # Here, because torchmetrics takes seconds to import.
        from torchmetrics.functional.regression import r2_score

        if len(data) < 2:
            return {}
        outputs = self.outputs_of(data).double()  # (examples, outputs)
        return {"r2": float(r2_score(outputs, data.targets.cpu().double().view_as(outputs)))}

    def check(self, data: Examples) -> None:
        """Check that examples have the shape `inputs` and targets are finite numbers, `outputs` of them."""
        tasks.check_features("mlp_regressor", data, tuple(self.parameters.inputs))
        tasks.check_values("mlp_regressor", data, self.parameters.outputs)
