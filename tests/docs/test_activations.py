import numpy as np
import pytest
from PIL import Image

from docs.activations import PICTURE, draw_activations
from models.activations import ACTIVATIONS


def test_picture_has_a_panel_with_both_curves_for_each_activation() -> None:
    panels = [panel for panel in draw_activations().axes if panel.get_title()]
    assert [panel.get_title() for panel in panels] == list(ACTIVATIONS)
    for panel in panels:
        (points, output), (_, gradient) = (np.asarray(line.get_data()) for line in panel.get_lines())
        # The step's gradient is not its own: it is that of the identity, from -1 to 1.
        rise = 2.0 if panel.get_title() == "step" else output[-1] - output[0]
        assert np.trapezoid(gradient, points) == pytest.approx(rise, abs=0.01)


def test_picture_in_the_docs_is_an_image_of_that_size() -> None:
    with Image.open(PICTURE) as image:
        width, height = draw_activations().get_size_inches() * 110
        assert image.size == (round(width), round(height))
