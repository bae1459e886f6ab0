"""`choral sample`: what a saved generative model makes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from choral.output import write_rows, write_text
from choral.pictures import SUFFIXES, check_picture, draw_points, draw_samples
from models import LearnerError
from models.bayesian_network import BayesianNetwork
from models.learner import PADDING, Sampler, SampleRequest
from models.saved import restore
from wire.validation import shown


def sample(
    model: Annotated[Path, typer.Argument(help="A saved model: a checkpoint, or the model.safetensors of a run.")],
    count: Annotated[int, typer.Option(min=1, max=10_000, help="Samples to make.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Seed of every draw.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Where they go: .png, .svg or .pdf for images and points, .csv for rows, any file for text. Default: as fits.",
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="What a text begins with.")] = None,
    length: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="Codes that are added to a text. Default: 200.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.01, help="Of text: below 1 safer, above 1 bolder. Default: 1.")
    ] = None,
) -> None:
    """Draw samples from a saved model: texts are printed, images and points drawn, other rows written as CSV.

    Example: choral sample simulated/model.safetensors --count 32 --seed 1 --out samples.png
    """
    learner, saved = restore(model)
    if not isinstance(learner, Sampler):
        raise LearnerError(f"Saved model {model}: the learner must be a generative one, got {saved.learner.name}.")
    if not learner.samples_text:
        _refuse(saved.learner.name, {"--prompt": prompt, "--length": length, "--temperature": temperature})
        if output is not None and output.suffix != ".csv":
            check_picture(output)
    codes = torch.tensor(list(prompt.encode()), dtype=torch.int64) if prompt else None
    request = SampleRequest(count, torch.Generator().manual_seed(seed), codes, length or 200, temperature or 1.0)
    with torch.no_grad():
        samples = learner.sample(saved.state, request).cpu()
    if learner.samples_text:
        _tell(samples, output)
    else:
        # With the names of its variables, which other commands read a table by.
        names = (
            [variable.name for variable in learner.parameters.variables] if isinstance(learner, BayesianNetwork) else []
        )
        _write(samples, output, f"{count} samples of {saved.learner.name}", names)


def _refuse(learner: str, options: Mapping[str, object]) -> None:
    """Refuse options of text for a learner of something else."""
    for option, value in options.items():
        if value is not None:
            raise LearnerError(
                f"Option {option}: must be left out for learner {learner}, which makes no text, got {shown(value)}."
            )


def _tell(samples: Tensor, output: Path | None) -> None:
    """Print texts, or write them to a file."""
    rows = [bytes(row[(row != PADDING) & (row < 256)].tolist()).decode(errors="replace") for row in samples]
    text = "\n".join(f"--- {place} ---\n{row}" for place, row in enumerate(rows, 1))
    if output is None:
        typer.echo(text)
    else:
        write_text(output, text + "\n")
        typer.echo(f"{output}: {len(rows)} texts")


def _write(samples: Tensor, output: Path | None, title: str, names: list[str]) -> None:
    """Write rows below `names`, points or images to a file that suits them, or to the one that is wanted."""
    is_image = samples.dim() == 4 and samples.shape[1] in (1, 3)
    is_points = samples.dim() == 2 and samples.shape[1] == 2 and samples.is_floating_point()
    path = output or Path("samples.png" if is_image or is_points else "samples.csv")
    if path.suffix == ".csv":
        write_rows(path, [names] * bool(names) + samples.flatten(1).tolist())
    elif is_image:
        draw_samples(path, samples.clamp(0, 1), title)
    elif is_points:
        draw_points(path, samples, title)
    else:
        found = f"shape {tuple(samples.shape[1:])}"
        raise LearnerError(
            f"Samples: must be images or points for a picture ({', '.join(SUFFIXES)}), got {found}. Write a .csv."
        )
    typer.echo(f"{path}: {title}")
