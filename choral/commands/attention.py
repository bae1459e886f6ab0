"""`choral attention`: where a saved model looks in a text while it makes another sequence of it."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from choral.attention_picture import draw_attention
from choral.pictures import check_picture
from client.data.pronunciations import PHONES
from models import LearnerError
from models.learner import Attentive
from models.saved import restore


def character(code: int) -> str:
    """Return how a byte is written: as itself if that can be seen, else as hexadecimal."""
    return chr(code) if 32 < code < 127 else f"{code:#04x}"


NAMES = {"phones": PHONES, "bytes": tuple(map(character, range(256)))}
"""What `--symbols` may name at once."""


def attention(
    model: Annotated[Path, typer.Argument(help="A saved model: a checkpoint, or the model.safetensors of a run.")],
    text: Annotated[str, typer.Argument(help="The source; the model reads its bytes.")],
    output: Annotated[Path, typer.Option("--out", "-o", help="The picture: .png, .svg or .pdf.")] = Path(
        "attention.png"
    ),
    symbols: Annotated[
        str | None,
        typer.Option(
            help="What the model's output codes are: phones, as in the data kind pronunciations; bytes; or their names in order, with "
            "spaces between. Default: their numbers."
        ),
    ] = None,
) -> None:
    """Print what a model makes of a text, and draw where it looks meanwhile.

    Example: choral attention simulated/model.safetensors boston --symbols phones --out attention.png
    """
    check_picture(output)
    learner, saved = restore(model)
    if not isinstance(learner, Attentive):
        raise LearnerError(
            f"Saved model {model}: the learner must have attention, as seq2seq and transformer have, got {saved.learner.name}."
        )
    source = torch.tensor(list(text.encode()), dtype=torch.int64)
    codes, weights = learner.attend(saved.state, source)
    if not len(codes):
        raise LearnerError(
            f"Saved model {model}: the model must make something of {text!r}, got nothing. Train it more."
        )
    outputs = [_named(code, symbols) for code in codes.tolist()]
    sources = [character(code) for code in source.tolist()]
    draw_attention(output, weights.numpy(), sources, outputs, f"{text:.40} in {saved.learner.name}")
    typer.echo(" ".join(outputs))
    typer.echo(f"{output}: the picture")


def _named(code: int, symbols: str | None) -> str:
    if symbols is None:
        return str(code)
    names = NAMES.get(symbols) or symbols.split()
    if code >= len(names):
        raise LearnerError(f"Option --symbols: there must be a name for each code, got {len(names)} and code {code}.")
    return names[code]
