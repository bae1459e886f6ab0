"""The option of every command that may meet a learner of the user's own."""

from typing import Annotated

import typer

Own = Annotated[
    list[str] | None,
    typer.Option("--learner", help="A learner of your own, PATH:CLASS, such as ./mine.py:MyLearner; may be repeated."),
]


def add_all(own: list[str] | None) -> None:
    """Load learners of the user's own, for this process and those that it starts."""
    if own:
        # Here, because a coordinator may have no torch, which the zoo imports.
        from models import add_own

        for text in own:
            add_own(text)
