"""Multilayer perceptron: dense layers with an activation between them.

    h_0 = x,  h_i = dropout(act(norm(W_i h_{i-1} + b_i))),  logits = W h_n + b

Source: Rumelhart, Hinton and Williams, "Learning representations by back-propagating errors", Nature 323, 1986.
https://doi.org/10.1038/323533a0
"""

import math
from typing import Annotated

from pydantic import Field
from torch import nn

from models import tasks
from models.activations import ACTIVATIONS, ActivationName
from models.classifier import Classifier, ClassifierParameters
from models.learner import Examples


class MLPParameters(ClassifierParameters):
    """Parameters of the learner `mlp`."""

    inputs: list[Annotated[int, Field(ge=1)]] = Field(default=[64], min_length=1, max_length=4)
    """Shape of one example; more than one axis is flattened."""
    hidden: list[Annotated[int, Field(ge=1)]] = Field(default=[64], max_length=64)
    """Width of each hidden layer; none gives softmax regression."""
    classes: int = Field(default=10, ge=2)
    """Number of classes."""
    activation: ActivationName = "relu"
    """Activation after each hidden layer."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Part of the hidden units that is dropped in training."""
    batch_norm: bool = False
    """Batch normalisation before each activation."""


class MLP(Classifier):
    """Multilayer perceptron that classifies vectors or small images."""

    task = "classify"
    data = "vectors, small images"
    parameters: MLPParameters

    def build(self) -> nn.Module:
        """Return the layers as one `nn.Sequential`."""
        layers: list[nn.Module] = [nn.Flatten()]  # (batch, inputs)
        width = math.prod(self.parameters.inputs)
        for hidden in self.parameters.hidden:
            layers.append(nn.Linear(width, hidden))  # (batch, hidden)
            if self.parameters.batch_norm:
                layers.append(nn.BatchNorm1d(hidden))
            layers.append(ACTIVATIONS[self.parameters.activation]())
            if self.parameters.dropout:
                layers.append(nn.Dropout(self.parameters.dropout))
            width = hidden
        layers.append(nn.Linear(width, self.parameters.classes))  # (batch, classes)
        return nn.Sequential(*layers)

    def check(self, data: Examples) -> None:
        """Check that examples have the shape `inputs` and targets are classes."""
        tasks.check_features("mlp", data, tuple(self.parameters.inputs))
        tasks.check_classes("mlp", data, self.parameters.classes)
