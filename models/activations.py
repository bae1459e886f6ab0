"""Activations: what a neuron makes of its weighted sum x = w . h + b, by name anywhere in the zoo.

    sigmoid     1 / (1 + exp(-x))               a smooth threshold, 0 to 1
    tanh        tanh(x)                         the same from -1 to 1
    relu        max(0, x)                       a gradient that does not fade for x > 0
    leaky_relu  max(0.01 x, x)                  nor dies for x < 0
    gelu        x P(Z <= x), Z ~ N(0, 1)        a smooth ReLU
    step        1 if x >= 0 else 0              fires or does not, as a biological neuron
    gaussian    exp(-x^2)                       a radial basis function: largest where x is 0

The step's true gradient is 0 wherever it exists, so nothing before it would learn. A straight-through estimator uses another one: that of
the identity, where |x| <= 1.

Source: McCulloch and Pitts, "A logical calculus of the ideas immanent in nervous activity", Bulletin of Mathematical Biophysics 5, 1943
(step), https://doi.org/10.1007/BF02478259; LeCun, Bottou, Orr and Mueller, "Efficient BackProp", 1998, section 4.4 (sigmoid and tanh),
https://doi.org/10.1007/3-540-49430-8_2; Nair and Hinton, "Rectified linear units improve restricted Boltzmann machines", ICML 2010 (ReLU);
Maas, Hannun and Ng, "Rectifier nonlinearities improve neural network acoustic models", ICML 2013 (leaky ReLU); Hendrycks and Gimpel,
"Gaussian error linear units", 2016, https://arxiv.org/abs/1606.08415; Broomhead and Lowe, "Multivariable functional interpolation and
adaptive networks", Complex Systems 2, 1988 (radial basis functions); Bengio, Leonard and Courville, "Estimating or propagating gradients
through stochastic neurons for conditional computation", 2013, https://arxiv.org/abs/1308.3432, and Hubara et al., "Binarized
neural networks", NeurIPS 2016, equation 4 (the straight-through estimator and its bound), https://arxiv.org/abs/1602.02830.
"""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

ActivationName = Literal["relu", "tanh", "sigmoid", "gelu", "leaky_relu", "step", "gaussian"]
"""Any activation, as the type of a learner's parameter."""


class Step(nn.Module):
    """Fires or does not: 1 where x >= 0, else 0. Its gradient is straight-through: 1 where |x| <= 1, else 0."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return 0 or 1 for each number."""
        through = inputs.clamp(-1, 1)
        # The difference is 0, so the outputs are 0 and 1 exactly; only its first term has a gradient.
        return (inputs >= 0).to(inputs.dtype) + (through - through.detach())


class Gaussian(nn.Module):
    """The Gaussian radial basis function exp(-x^2) of each number."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return values above 0, at most 1."""
        return inputs.square().neg().exp()


ACTIVATIONS: Mapping[ActivationName, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "step": Step,
    "gaussian": Gaussian,
}
