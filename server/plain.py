"""Runs without torch on the coordinator: those whose server step is that of FedAvg, the model plus the mean.

A client draws the first model, and clients alone evaluate. Whatever needs more of the coordinator is refused before a run is stored; only
the learner's parameters and the clients' optimizer, which the zoo knows about, are left to the client that draws the first model.

Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017, Algorithm 1.
https://arxiv.org/abs/1602.05629
"""

import numpy as np

from server.catalogue import kept_learners
from server.model import Model
from wire.errors import SpecError
from wire.memory import VectorPool
from wire.spec import RunSpec
from wire.tensors import Layout, Vector
from wire.validation import shown

ADVICE = "Install it there with: pip install 'choral[torch]'."


class PlainShop:
    """Does what `ModelShop` does where the server step is the model plus the mean, to the bit as that. Used in the same way.

    Attributes:
        vectors: Memory for the run's models and contributions.
        contribution_layout: What a contribution to this run holds.
    """

    def __init__(self, layout: Layout) -> None:
        self.vectors = VectorPool()
        self.contribution_layout = layout

    def next(self, model: Model, mean: Vector, weight_total: int, round_number: int) -> Model:
        """Return the model after the server step on a round's mean. `model` is left unchanged."""
        vector = self.vectors.take(model.layout.size)
        np.add(model.vector, mean, out=vector)
        return Model.of(vector, model.layout, {}, model.constants)


def check_plain(spec: RunSpec) -> None:
    """Check that a run asks nothing of the coordinator for which it would need torch.

    Raises:
        SpecError: It does, or its learner is not one of the zoo's.
    """
    step, learner = spec.server.optimizer, spec.learner
    if learner.name not in (known := kept_learners()):
        _refuse("learner.name", f"be one of {', '.join(sorted(known))}", repr(learner.name))
    # Before the learner's own need, because this can be left out.
    if spec.evaluate.on != "clients":
        _refuse("evaluate.on", "be 'clients'", repr(spec.evaluate.on))
    if learner.base is not None:
        _refuse("learner", "start from no base, which a client does not send", repr(learner.base))
    if known[learner.name].needs_torch:
        _refuse("learner.name", "be that of a learner without a server step of its own", repr(learner.name))
    if step.name != "sgd" or step.parameters != {"learning_rate": 1}:
        _refuse("server.optimizer", "be sgd with learning_rate 1 alone", shown(step.model_dump()))
    if spec.server.schedule is not None:
        _refuse("server.schedule", "be left out", shown(spec.server.schedule))


def _refuse(key: str, rule: str, found: str) -> None:
    raise SpecError(f"Run spec: {key} must {rule} on a coordinator without torch, got {found}. {ADVICE}", key)
