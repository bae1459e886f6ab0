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
    name = spec.learner.name
    if not isinstance(learner, GradientLearner) or any(_overrides(learner, step) for step in _STEPS):
        return f"learner {name} does not train by the steps that all learners with gradients share"
    if learner.parameters.precision != "float32":
        return f"learner {name} computes in {learner.parameters.precision}"
    if frozen := learner.frozen_names():
        return f"learner {name} has {len(frozen)} frozen tensors, which have no axis of clients"
    if learner.whole_measures:
        return f"learner {name} reports {', '.join(learner.whole_measures)}, which take a client's examples all at once"
    with RandomStream(0).drawing(), torch.device("meta"):
        module = learner.build()
    if any(isinstance(part, nn.LSTM) for part in module.modules()):
        return f"learner {name} runs torch's fused LSTM, which has no rule for vmap; step by step it takes twice the serial engine's time"
    if any(True for _ in module.buffers()):
        return f"learner {name} keeps statistics of its batches, which padded batches would change"
    layers = [part for part in module.modules() if next(part.children(), None) is None]
    if odd := [part for part in layers if not isinstance(part, _LAYERS)]:
        return f"learner {name} has a layer {type(odd[0]).__name__}, which is not known to agree under vmap"
    if any(parameter.dtype != torch.float32 for parameter in module.parameters()):
        return f"learner {name} has parameters that are not float32"
    if len(list(module.parameters())) != len(module.state_dict()):
        return f"learner {name} shares parameters between layers"
    if (optimizer := spec.local.optimizer.name) not in ELEMENTWISE:
        return f"optimizer {optimizer} does not treat each parameter by itself"
    return ""


def _overrides(learner: GradientLearner, name: str) -> bool:
    return getattr(type(learner), name) is not getattr(GradientLearner, name)


def gradient_learner(spec: RunSpec, device: torch.device) -> GradientLearner:
    """Return the learner of a spec against which there is no reason."""
    learner = build_learner(spec.learner, device)
    assert isinstance(learner, GradientLearner)
    return learner
