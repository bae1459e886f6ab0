"""Settings that a learner has no use for, or cannot do with: they are refused, so that nobody waits for an effect in vain.

Of its parameters, a learner's class of them refuses those that others leave without effect: `refuse_unused`. Of a run's settings, a learner
says which they are by two attributes, and need have neither:

    unused_settings   keys of a spec that change nothing of what it does, such as "local.optimizer"
    fewest_rounds     rounds before which there is no model to speak of
"""

from models.learner import Learner
from wire.errors import LearnerError
from wire.spec import RunSpec
from wire.validation import Strict, shown

DESCENT_SETTINGS = frozenset({"local.clip_norm", "local.optimizer", "local.proximal_mu", "local.schedule"})
"""What belongs to clients that follow a gradient."""

SERVER_SETTINGS = frozenset({"server.optimizer", "server.schedule"})
"""What belongs to a server step on the mean."""


def refuse_unused(parameters: Strict, where: str, *keys: str) -> None:
    """Raise `ValueError` if one of `keys`, which mean nothing `where` things are so, has another value than its default."""
    for key in keys:
        # By its value, as below.
        if (value := getattr(parameters, key)) != type(parameters).model_fields[key].default:
            raise ValueError(f"{key} must be left out {where}, got {shown(value)}")


def check_settings(spec: RunSpec, learner: Learner) -> None:
    """Check that a run sets nothing that its learner has no use for, and has as many rounds as that needs.

    Raises:
        LearnerError: It is not so.
    """
    subject = f"learner {spec.learner.name}"
    for key in sorted(getattr(learner, "unused_settings", ())):
        part, _, name = key.partition(".")
        section = getattr(spec, part)
        # By its value: a spec that has been stored or sent names the defaults too, which promise nothing.
        if (value := getattr(section, name)) != type(section).model_fields[name].default:
            raise LearnerError(
                f"Run spec: {key} must be left out for {subject}, which has no use for it, got {shown(value)}.",
                key,
            )
    if spec.rounds < (fewest := getattr(learner, "fewest_rounds", 1)):
        raise LearnerError(f"Run spec: rounds must be at least {fewest} for {subject}, got {spec.rounds}.", "rounds")
