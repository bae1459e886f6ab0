"""`choral encode`: what a saved autoencoder makes of examples: their codes, and how far it is from them."""

from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from choral.errors import PictureError
from choral.output import write_rows
from choral.pictures import check_picture, draw_samples
from client.data import load, parse_source
from models import LearnerError
from models.autoencoder import Reconstructor
from models.saved import restore
from models.tasks import check_features

PICTURED = 64
"""Most examples in a picture."""

PAIRS = 8
"""Pairs in one of its rows."""


def encode(
    model: Annotated[Path, typer.Argument(help="A saved model: a checkpoint, or the model.safetensors of a run.")],
    data: Annotated[str, typer.Option(help="The examples: KIND[:PATH][,key=value...], as for choral join.")] = "digits",
    output: Annotated[Path, typer.Option("--out", "-o", help="The CSV file.")] = Path("codes.csv"),
    picture: Annotated[
        Path | None,
        typer.Option(help="Images beside what is made out of each, such as without noise: .png, .svg or .pdf."),
    ] = None,
) -> None:
    """Write each example's code, a feature a column, and the error of what is made out of it: the score of an anomaly.

    Example: choral encode simulated/model.safetensors --data digits,blocks=13 --out codes.csv
    """
    learner, saved = restore(model)
    if not isinstance(learner, Reconstructor):
        raise LearnerError(f"Saved model {model}: the learner must be an autoencoder, got {saved.learner.name}.")
    if picture is not None:
        _check_images(picture, learner.example_shape)
    examples = load(parse_source(data))
    # Not the learner's own check: to be scored, an example need not have a class.
    check_features(saved.learner.name, examples, learner.example_shape)
    codes, found = learner.encode(saved.state, examples.inputs), learner.reconstruct(saved.state, examples.inputs)
    errors = (found - examples.inputs).square().flatten(1).mean(dim=1)
    write_rows(output, _table(codes, errors, examples.targets))
    typer.echo(f"{output}: {len(examples)} codes of {codes.shape[1]} numbers, mean error {float(errors.mean()):.4g}")
    if picture is not None:
        pairs = torch.stack([examples.inputs, found], dim=1)[:PICTURED].flatten(0, 1)  # (2 * examples, *shape)
        draw_samples(picture, pairs.clamp(0, 1), f"examples and what {saved.learner.name} makes of them", 2 * PAIRS)
        typer.echo(f"{picture}: {len(pairs) // 2} examples, each with what is made out of it at its right")


def _check_images(picture: Path, shape: tuple[int, ...]) -> None:
    check_picture(picture)
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise PictureError(
            f"Picture {picture}: examples must be images of 1 or 3 channels, got shape {shape}. Leave it out."
        )


def _table(codes: Tensor, errors: Tensor, targets: Tensor) -> list[list[str | float]]:
    """Return a header and a row an example: its code, (examples, code), its error, (examples,), and what targets it has."""
    targets = targets.unsqueeze(1) if targets.dim() == 1 else targets.flatten(1)
    count = targets.shape[1]
    names = ["target"] if count == 1 else [f"target_{place + 1}" for place in range(count)]
    header = [*(f"code_{place + 1}" for place in range(codes.shape[1])), "error", *names]
    columns = zip(codes.tolist(), errors.tolist(), targets.tolist(), strict=True)
    return [header, *([*code, error, *target] for code, error, target in columns)]
