"""Whether a learner of a user's own trains for many clients at once as for each alone, tried out on a few examples.

The zoo's learners are known to. Code of another's may draw at random, branch on what it computes, or mix the examples of a batch, of which
some only fill it up.
"""

import torch
from torch import Tensor

from models import Examples
from models.gradient import GradientLearner
from simulation.plan import Round, draw_plan
from simulation.reasons import gradient_learner
from simulation.stacked import StackedLearner
from wire.seeds import derive_generator
from wire.spec import LocalSpec, RunSpec

CPU = torch.device("cpu")
RANGES = {"three": range(3), "two": range(3, 5)}
"""Whose the examples are: in a step of both, the batch of `two` is filled up with its first one."""

LOCAL = LocalSpec(batch_size=3)

TOLERANCE = 1e-4
"""Of what a step or an evaluation comes to."""


def reason_by_trial(spec: RunSpec, data: Examples) -> str:
    """Return why the vectorized engine cannot train a learner as the serial one would, or nothing when it can, or the zoo has it.

    Args:
        spec: A run against which there is no other reason.
        data: Examples of any clients, at least 1.
    """
    learner = gradient_learner(spec, CPU)
    if type(learner).__module__.partition(".")[0] == "models":
        return ""
    few = data.select(torch.arange(5, device=data.inputs.device) % len(data)).to(CPU)
    try:
        alone = _alone(learner, few)
    except Exception:  # noqa: BLE001 - what cannot train at all says so where it is trained
        return ""
    try:
        together = _together(learner, few)
    except Exception as error:  # noqa: BLE001 - whatever another's code makes of tensors that stand for many
        said = str(error).partition("\n")[0].partition(". ")[0].rstrip(".")
        return f"learner {spec.learner.name} fails for many clients at once: {type(error).__name__}: {said}"
    for expected, found in zip(alone, together, strict=True):
        if expected.isfinite().all() and not (found - expected).norm() <= TOLERANCE * expected.norm():
            return f"learner {spec.learner.name} comes to other numbers where a batch is filled up, or many clients are trained at once"
    return ""


def _alone(learner: GradientLearner, few: Examples) -> list[Tensor]:
    """Return how far a step of each client moves the model, and what an evaluation measures."""
    state, moved = learner.init(0), []
    for client_id, rows in RANGES.items():
        generator = derive_generator(0, "fit", 1, client_id)
        found = learner.fit(state, few.select(torch.tensor(rows)), LOCAL, generator, lambda _: None)
        moved.append(torch.from_numpy(found.vector.copy()))
    metrics = learner.evaluate(state, few).metrics
    return [*moved, torch.tensor([metrics[name] for name in sorted(metrics)])]


def _together(learner: GradientLearner, few: Examples) -> list[Tensor]:
    """Return the same from the vectorized engine."""
    state, stacked = learner.init(0), StackedLearner(learner, CPU)
    plan = draw_plan(list(RANGES), RANGES, LOCAL, Round(0, 1))
    moved = stacked.fit(state, few, plan, LOCAL, lambda: None).changes
    measured = stacked.measure(state, few, lambda: None)
    return [*moved, torch.tensor([float(measured[name].mean()) for name in sorted(measured)])]
