"""Pictures are drawn for every shape of partition; what they show is read back from their pixels."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image, ImageColor

from models.learner import Examples
from simulation.errors import PartitionError
from simulation.partition import partition
from simulation.picture import COLOURS, PLAIN, draw_partition


def classes(count: int, class_count: int) -> Examples:
    return Examples(torch.zeros(count, 1), torch.arange(count) % class_count)


def pixel_counts(path: Path, colours: Iterable[str | Sequence[float]]) -> list[int]:
    """Return how many pixels of the picture have each colour."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    values = [ImageColor.getrgb(colour) if isinstance(colour, str) else colour for colour in colours]
    return [int((pixels == np.array(value)).all(axis=2).sum()) for value in values]


def test_bars_have_an_area_that_goes_with_the_number_of_examples(tmp_path: Path) -> None:
    # Of class 0 there is six times as much as of class 1, in one client each.
    examples = Examples(torch.zeros(70, 1), torch.tensor([0] * 60 + [1] * 10))
    draw_partition(tmp_path / "a.png", examples, partition(examples, "by-key", 2, 0, examples.targets.numpy()), "title")
    first, second, other = pixel_counts(tmp_path / "a.png", COLOURS[:3])
    assert other == 0
    assert first / second == pytest.approx(6, rel=0.15)


def test_heat_map_of_one_class_a_client_is_a_diagonal(tmp_path: Path) -> None:
    # 100 clients, 10 classes, 10 examples each: a tenth of the cells holds everything, in the last colour of the map.
    examples = classes(1000, 10)
    draw_partition(tmp_path / "a.png", examples, partition(examples, "shards,per_client=1", 100, 0), "title")
    full, empty = pixel_counts(tmp_path / "a.png", [colormaps["cividis"](end, bytes=True)[:3] for end in (1.0, 0.0)])
    assert empty / full == pytest.approx(9, rel=0.1)


@pytest.mark.parametrize(
    ("client_count", "class_count", "scheme"),
    [
        pytest.param(1, 1, "iid", id="one-client"),
        pytest.param(40, 10, "dirichlet,alpha=0.3", id="most-bars"),
        pytest.param(41, 10, "dirichlet,alpha=0.3,over=clients,minimum=1", id="fewest-lines"),
        pytest.param(5, 11, "iid", id="too-many-classes-for-colours"),
        pytest.param(1000, 3, "power-law", id="sizes-that-need-a-logarithm"),
        pytest.param(10_000, 62, "shards", id="ten-thousand-clients"),
    ],
)
@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_draw_partition_writes_a_picture(
    tmp_path: Path, client_count: int, class_count: int, scheme: str, suffix: str
) -> None:
    examples = classes(20_000, class_count)
    path = tmp_path / f"a.{suffix}"
    draw_partition(path, examples, partition(examples, scheme, client_count, 0), "title")
    start = path.read_bytes()[:5]
    assert start == (b"\x89PNG\r" if suffix == "png" else b"<?xml")


@pytest.mark.parametrize("client_count", [3, 500])
def test_draw_partition_of_text_shows_sizes(tmp_path: Path, client_count: int) -> None:
    examples = Examples(torch.zeros(2000, 4, dtype=torch.int64), torch.zeros(2000, 4, dtype=torch.int64))
    draw_partition(tmp_path / "a.png", examples, partition(examples, "iid", client_count, 0), "title")
    assert pixel_counts(tmp_path / "a.png", (PLAIN,))[0] > 100_000


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("a.gif", "name must end with one of .png, .svg, .pdf, got 'a.gif'. Rename it", id="suffix"),
        pytest.param("none/a.png", "file must be writable, got No such file or directory. Choose another", id="folder"),
    ],
)
def test_draw_partition_where_nothing_can_be_written_is_refused(tmp_path: Path, name: str, message: str) -> None:
    examples = classes(10, 2)
    with pytest.raises(PartitionError, match=f"^Picture {tmp_path / name}: {message}"):
        draw_partition(tmp_path / name, examples, partition(examples, "iid", 2, 0), "title")
    assert list(tmp_path.iterdir()) == []
