"""`choral maps`: where the layers of a saved model respond to an image."""

from pathlib import Path
from typing import Annotated

import typer

from choral.pictures import check_picture, draw_maps
from models import LearnerError
from models.learner import ActivationMaps
from models.saved import restore


def maps(
    model: Annotated[Path, typer.Argument(help="A saved model: a checkpoint, or the model.safetensors of a run.")],
    image: Annotated[Path, typer.Argument(help="An image; it is resized to the shape of the model's images.")],
    output: Annotated[Path, typer.Option("--out", "-o", help="The picture: .png, .svg or .pdf.")] = Path("maps.png"),
) -> None:
    """Draw the activation maps of each layer of a convolutional network for an image.

    Example: choral maps simulated/model.safetensors seven.png --out maps.png
    """
    check_picture(output)
    learner, saved = restore(model)
    if not isinstance(learner, ActivationMaps):
        raise LearnerError(
            f"Saved model {model}: the learner must have activation maps, as cnn has, got {saved.learner.name}."
        )
    # Here, because Pillow is an extra.
    from client.data.images import load_image

    pixels = load_image(image, learner.image_shape)
    found = learner.maps(saved.state, pixels)
    draw_maps(output, pixels, found, f"{image.name} in {saved.learner.name}")
    typer.echo(f"{output}: {sum(map(len, found.values()))} maps of {len(found)} layers")
