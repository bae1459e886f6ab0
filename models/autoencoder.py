"""Autoencoders: an encoder narrows an example x to a code c, and a decoder makes x out of it again.

    c = f(x + e),  e ~ N(0, noise^2)        x' = g(c)        loss = mean (x' - x)^2

What the code is good for:

    reduction   c is x in fewer dimensions. Without hidden layers f and g are affine, and no training brings the error below that of as many
                principal components; hidden layers do
    features    c is given to a smaller model, such as a linear one, which then needs few labels: `choral encode` writes it
    denoising   with `noise`, x' is x without the noise that f has seen
    anomalies   trained on normal examples alone, x' is far from an x of a kind that was never seen: the error is a score, which
                `choral encode` writes beside c

Source: Hinton and Salakhutdinov, "Reducing the dimensionality of data with neural networks", Science 313, 2006 (reduction, features),
https://doi.org/10.1126/science.1127647; Baldi and Hornik, "Neural networks and principal component analysis", Neural Networks 2, 1989,
fact 4 (linear ones), https://doi.org/10.1016/0893-6080(89)90014-2; Vincent et al., "Extracting and composing robust features with denoising
autoencoders", ICML 2008, section 2.3, https://doi.org/10.1145/1390156.1390294; Hawkins et al., "Outlier detection using replicator neural
networks", DaWaK 2002, equation 4 (the score), https://doi.org/10.1007/3-540-46145-0_17
"""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from models import tasks
from models.activations import ACTIVATIONS, ActivationName
from models.errors import unsuited
from models.gradient import GradientLearner, GradientParameters
from models.learner import Contribution, Examples, Report
from wire.spec import LocalSpec
from wire.tensors import State


class ReconstructionParameters(GradientParameters):
    """Parameters of every autoencoder."""

    noise: float = Field(default=0.0, ge=0, le=100)
    """Standard deviation of the Gaussian noise in what the encoder sees, in training and in evaluation."""
    anomalies: list[Annotated[int, Field(ge=0)]] = Field(default=[], max_length=1000)
    """Classes that are anomalies: they are not trained on, and `auroc` says how well the error tells them from the rest."""


class EncoderDecoder(nn.Module):
    """Examples to codes and back."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the reconstructions, of the shape of `inputs`, (batch, ...)."""
        outputs: Tensor = self.decoder(self.encoder(inputs))
        return outputs


class Reconstructor(GradientLearner):
    """Trains an `EncoderDecoder` to put out what it was given. Targets are looked at only to tell anomalies."""

    parameters: ReconstructionParameters

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean squared error of reconstructions of `targets`, both (batch, ...)."""
        return functional.mse_loss(outputs, targets)

    def measure(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Return the mean squared error of a number of an example."""
        return {"mse": functional.mse_loss(outputs, targets)}

    def batch_loss(self, batch: Examples) -> Tensor:
        """Return the loss of what is made out of a batch with noise."""
        return self.loss(self._module(self._noisy(batch.inputs)), batch.inputs)

    def measure_batch(self, batch: Examples) -> Mapping[str, Tensor]:
        """Return loss and error of what is made out of a batch with noise, and the noise's own error, which denoising is to lower."""
        noisy = self._noisy(batch.inputs)
        outputs = self._module(noisy)
        found = {"loss": self.loss(outputs, batch.inputs), **self.measure(outputs, batch.inputs)}
        return {**found, "noise_mse": functional.mse_loss(noisy, batch.inputs)} if self.parameters.noise else found

    @property
    def whole_measures(self) -> Sequence[str]:
        """The area under the ROC curve of the anomalies, where there may be some."""
        return ["auroc"] if self.parameters.anomalies else []

    def measure_whole(self, data: Examples) -> Mapping[str, float]:
        """Return the AUROC of the error, without noise, as a score of anomalies; nothing where all examples are anomalies, or none."""
        from torchmetrics.functional.classification import binary_auroc

        is_anomaly = self._is_anomaly(data).cpu()
        if is_anomaly.all() or not is_anomaly.any():
            return {}
        errors = (self.outputs_of(data) - data.inputs.cpu()).flatten(1).double().square().mean(dim=1)  # (examples,)
        # In their order, but below 1, where torchmetrics takes scores as they are.
        return {"auroc": float(binary_auroc(errors / (1 + errors), is_anomaly.long()))}

    @property
    @abstractmethod
    def example_shape(self) -> tuple[int, ...]:
        """Shape of one example."""

    def fit(
        self, state: State, data: Examples, local: LocalSpec, generator: torch.Generator, report: Report
    ) -> Contribution:
        """Train on the examples that are no anomalies. Raises as `GradientLearner.fit`."""
        if self.parameters.anomalies:
            data = data.select(self._is_anomaly(data).logical_not().nonzero().flatten())
        return super().fit(state, data, local, generator, report)

    def encode(self, state: State, inputs: Tensor) -> Tensor:
        """Return the codes of `inputs`, float32 (examples, ...), without noise: float32 (examples, code) on the CPU."""
        return self._through(self._encoder_decoder.encoder, state, inputs)

    def reconstruct(self, state: State, inputs: Tensor) -> Tensor:
        """Return what is made out of `inputs`, float32 (examples, ...), of their shape, on the CPU. No noise is added."""
        return self._through(self._encoder_decoder, state, inputs)

    @torch.no_grad()
    def _through(self, part: nn.Module, state: State, inputs: Tensor) -> Tensor:
        self._rest(state)
        with self._autocast():
            return torch.cat([part(rows.to(self._device)).float().cpu() for rows in inputs.split(256)])  # type: ignore[no-untyped-call]

    @property
    def _encoder_decoder(self) -> EncoderDecoder:
        assert isinstance(self._module, EncoderDecoder)
        return self._module

    def _noisy(self, inputs: Tensor) -> Tensor:
        noise = self.parameters.noise
        return inputs + noise * torch.randn_like(inputs) if noise else inputs

    def _is_anomaly(self, data: Examples) -> Tensor:
        return torch.isin(data.targets, torch.tensor(self.parameters.anomalies, device=data.targets.device))

    def _check(self, learner: str, data: Examples) -> None:
        """Check that examples have their shape, and classes where anomalies are some of them. Raises `DataError`."""
        tasks.check_features(learner, data, self.example_shape)
        if data.targets.dim() > 2:
            raise unsuited(
                f"Learner {learner}: targets must be at most a row an example", f"shape {tuple(data.targets.shape)}"
            )
        if self.parameters.anomalies and (data.targets.shape != (len(data),) or data.targets.dtype != torch.int64):
            found = f"{tuple(data.targets.shape)} {str(data.targets.dtype).removeprefix('torch.')}"
            raise unsuited(f"Learner {learner}: targets must be classes, one an example, to tell anomalies", found)


class AutoencoderParameters(ReconstructionParameters):
    """Parameters of the learner `autoencoder`."""

    inputs: list[Annotated[int, Field(ge=1)]] = Field(default=[1, 8, 8], min_length=1, max_length=4)
    """Shape of one example; more than one axis is flattened."""
    hidden: list[Annotated[int, Field(ge=1)]] = Field(default=[64], max_length=64)
    """Width of each hidden layer of the encoder; the decoder has them in reverse. None gives what PCA gives."""
    code: int = Field(default=8, ge=1)
    """Width of the code."""
    activation: ActivationName = "relu"
    """Activation after each hidden layer; code and reconstruction have none."""


class Autoencoder(Reconstructor):
    """Dense autoencoder: reduction, features, denoising, anomalies."""

    task = "reduce, denoise, find anomalies"
    data = "vectors, small images"
    parameters: AutoencoderParameters

    def build(self) -> nn.Module:
        """Return encoder and decoder, which mirror each other."""
        shape = self.parameters.inputs
        widths = [math.prod(shape), *self.parameters.hidden, self.parameters.code]
        encoder = nn.Sequential(nn.Flatten(), *self._dense(widths))  # (batch, code)
        decoder = nn.Sequential(*self._dense(widths[::-1]), nn.Unflatten(1, tuple(shape)))  # (batch, *inputs)
        return EncoderDecoder(encoder, decoder)

    def _dense(self, widths: Sequence[int]) -> list[nn.Module]:
        """Return layers from each width to the next, with an activation between them."""
        layers: list[nn.Module] = []
        for width, following in pairwise(widths):
            layers += [nn.Linear(width, following), ACTIVATIONS[self.parameters.activation]()]
        return layers[:-1]

    @property
    def example_shape(self) -> tuple[int, ...]:
        """The parameter `inputs`."""
        return tuple(self.parameters.inputs)

    def check(self, data: Examples) -> None:
        """Check that examples have the shape `inputs`, and that anomalies can be told."""
        self._check("autoencoder", data)
