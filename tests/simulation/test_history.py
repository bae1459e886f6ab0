"""What is left for people: columns that a table program reads, and curves of which each can be read."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from PIL import Image

from server.records import RoundRecord, RoundState
from simulation.history import panels_of, write_history, write_plot


def rounds_of(*metrics: Mapping[str, float]) -> list[RoundRecord]:
    return [
        RoundRecord(run_id="run", number=number, state=RoundState.COMMITTED, metrics=dict(found), ended_time=1.0)
        for number, found in enumerate(metrics, 1)
    ]


@pytest.mark.parametrize(
    ("metrics", "panels", "size"),
    [
        pytest.param([], [], (650, 520), id="nothing"),
        pytest.param([{"refused_size": 2.0}], [], (650, 520), id="refusals"),
        pytest.param([{"loss": 2.0, "train_loss": 3.0}], [["loss", "train_loss"]], (650, 520), id="losses"),
        pytest.param(
            [{"f1": 1.0, "accuracy": 0.0, "loss": 0.5}], [["accuracy", "f1"], ["loss"]], (1300, 520), id="parts-of-one"
        ),
        # One of 25 would hide what the others do.
        pytest.param(
            [{"accuracy": 0.2, "loss": 3.2}, {"bits": 4.6, "perplexity": 25.0}, {"bits": 0.9}],
            [["accuracy"], ["bits"], ["perplexity"], ["loss"]],
            (1300, 1040),
            id="scales-of-their-own",
        ),
        pytest.param(
            [{"r2": -3.0, "mse": math.nan, "accuracy": 1.0}], [["accuracy"], ["mse"], ["r2"]], (1950, 520), id="odd"
        ),
    ],
)
def test_panels_hold_what_can_be_read_on_one_scale(
    tmp_path: Path, metrics: Sequence[Mapping[str, float]], panels: list[list[str]], size: tuple[int, int]
) -> None:
    assert panels_of(rounds_of(*metrics)) == panels
    write_plot(tmp_path / "a.png", rounds_of(*metrics), "title")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == size


def test_history_has_a_column_for_every_metric_and_nothing_where_a_round_has_none(tmp_path: Path) -> None:
    write_history(tmp_path / "a.csv", rounds_of({"loss": 2.0}, {"loss": 1.5, "accuracy": 1 / 3, "refused_size": 1.0}))
    with (tmp_path / "a.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert [first["round"], first["accuracy"], first["loss"], first["seconds"]] == ["1", "", "2", "1.000"]
    assert [second["round"], second["accuracy"], second["loss"]] == ["2", "0.333333", "1.5"]
    assert "refused_size" not in first
