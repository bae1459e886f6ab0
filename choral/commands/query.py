"""`choral query`: how likely the states of a variable are, as a saved Bayesian network has it."""

from pathlib import Path
from typing import Annotated

import typer

from client.data.fields import read_pairs, shown
from models import LearnerError
from models.bayesian_network import BayesianNetwork
from models.saved import restore


def query(
    model: Annotated[Path, typer.Argument(help="A saved model: a checkpoint, or the model.safetensors of a run.")],
    variable: Annotated[str, typer.Argument(help="Whose states are asked for.")],
    given: Annotated[
        list[str] | None, typer.Option(help="What is known of another variable, NAME=STATE; may be repeated.")
    ] = None,
) -> None:
    """Print the probability of each state of a variable, given what is known of others.

    Example: choral query simulated/model.safetensors admitted --given sex=1 --given department=0
    """
    learner, saved = restore(model)
    if not isinstance(learner, BayesianNetwork):
        raise LearnerError(f"Saved model {model}: the learner must be a bayesian_network, got {saved.learner.name}.")
    for state, probability in enumerate(learner.query(saved.state, variable, _evidence(given or [])).tolist()):
        typer.echo(f"{variable}={state}  {probability:.6f}")


def _evidence(given: list[str]) -> dict[str, int]:
    """Return the states by name."""
    states = read_pairs("Option --given", given, LearnerError)
    for name, state in states.items():
        if not state.isdecimal():
            raise LearnerError(f"Option --given: must read NAME=STATE, a number, got {shown(f'{name}={state}')}.")
    return {name: int(state) for name, state in states.items()}
