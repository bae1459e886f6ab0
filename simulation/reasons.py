"""What can be trained for many clients at once, and why not the rest."""

import torch
from torch import nn

from models import build_learner
from models.activations import Gaussian, Step
from models.gradient import GradientLearner
from models.random_stream import RandomStream
from simulation.stacked import ELEMENTWISE
from wire.spec import RunSpec

_LAYERS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Embedding,
    nn.LayerNorm,
    nn.Flatten,
    nn.Identity,
    nn.Dropout,
    nn.ReLU,
    nn.Tanh,
    nn.Sigmoid,
    nn.GELU,
    nn.LeakyReLU,
    Step,
    Gaussian,
    nn.MaxPool2d,
    nn.AvgPool2d,
)
"""Layers whose output for one client depends on its own examples alone, one by one, and that have a form for many, or a rule for vmap."""

_STEPS = ("fit", "begin", "batch_loss", "evaluate", "measure_batch", "weigh", "finish")
"""What the engine does itself for many clients at once; a learner that does it otherwise is not the engine's."""


def reason_against(spec: RunSpec, device: torch.device) -> str:
    """Return why the vectorized engine cannot train a spec as the serial one would, or nothing when it can.

    Raises:
        LearnerError: The zoo cannot build the learner.
    """
    if device.type not in ("cpu", "cuda"):
        return f"device {device.type} has no float64, in which results are gathered"
    learner = build_learner(spec.learner, "meta")
    unlike = "does not train by the steps that all learners with gradients share"
    reason = _reason_against_learner(learner, unlike) if isinstance(learner, GradientLearner) else unlike
    if reason:
        return f"learner {spec.learner.name} {reason}"
    if (optimizer := spec.local.optimizer.name) not in ELEMENTWISE:
        return f"optimizer {optimizer} does not treat each parameter by itself"
    return ""


def _reason_against_learner(learner: GradientLearner, unlike: str) -> str:
    with RandomStream(0).drawing(), torch.device("meta"):
        module = learner.build()
    if fused := [part for part in module.modules() if isinstance(part, nn.RNNBase)]:
        return _reason_against_fused(fused[0])
    if any(_overrides(learner, step) for step in _STEPS):
        return unlike
    if learner.parameters.precision != "float32":
        return f"computes in {learner.parameters.precision}"
    if frozen := learner.frozen_names():
        return f"has {len(frozen)} frozen tensors, which have no axis of clients"
    if learner.whole_measures:
        return f"reports {', '.join(learner.whole_measures)}, which take a client's examples all at once"
    return _reason_against_module(module)


def _reason_against_module(module: nn.Module) -> str:
    if any(True for _ in module.buffers()):
        return "keeps statistics of its batches, which padded batches would change"
    layers = [part for part in module.modules() if next(part.children(), None) is None]
    if odd := [part for part in layers if not isinstance(part, _LAYERS)]:
        return f"has a layer {type(odd[0]).__name__}, which is not known to agree under vmap"
    if any(parameter.dtype != torch.float32 for parameter in module.parameters()):
        return "has parameters that are not float32"
    if len(list(module.parameters())) != len(module.state_dict()):
        return "shares parameters between layers"
    return ""


def _reason_against_fused(layer: nn.RNNBase) -> str:
    if isinstance(layer, nn.LSTM):
        return (
            "runs torch's fused LSTM, which has no rule for vmap; step by step it takes twice the serial engine's time"
        )
    return f"runs torch's fused {type(layer).__name__}, which vmap takes apart into steps at best"


def _overrides(learner: GradientLearner, name: str) -> bool:
    return getattr(type(learner), name) is not getattr(GradientLearner, name)


def gradient_learner(spec: RunSpec, device: torch.device) -> GradientLearner:
    """Return the learner of a spec against which there is no reason."""
    learner = build_learner(spec.learner, device)
    assert isinstance(learner, GradientLearner)
    return learner
