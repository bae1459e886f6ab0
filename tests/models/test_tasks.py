import math

import pytest
import torch
from torch import Tensor

from models import tasks
from models.errors import DataError
from models.learner import Examples


def test_classification_loss_of_even_odds_is_the_logarithm_of_the_classes() -> None:
    loss = tasks.classification_loss(torch.zeros(3, 4), torch.tensor([0, 1, 3]))
    assert float(loss) == pytest.approx(math.log(4))


def test_classification_measures_count_the_hits() -> None:
    outputs = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]])
    assert float(tasks.classification_measures(outputs, torch.tensor([0, 1, 1]))["accuracy"]) == pytest.approx(2 / 3)


def test_next_code_measures_of_even_odds_are_bits_of_the_vocabulary() -> None:
    measures = tasks.next_code_measures(torch.zeros(2, 8, 5), torch.zeros(2, 5, dtype=torch.int64))
    assert float(measures["bits_per_character"]) == pytest.approx(3)
    assert float(measures["accuracy"]) == 1


@pytest.mark.parametrize(
    ("inputs", "found"),
    [
        pytest.param(torch.zeros(5, 3), r"got \(3,\) float32", id="shape"),
        pytest.param(torch.zeros(5, 2, 1), r"got \(2, 1\) float32", id="axes"),
        pytest.param(torch.zeros(5, 2, dtype=torch.float64), r"got \(2,\) float64", id="float64"),
        pytest.param(torch.zeros(5, 2, dtype=torch.int64), r"got \(2,\) int64", id="integers"),
    ],
)
def test_check_features_other_than_agreed_are_refused(inputs: Tensor, found: str) -> None:
    data = Examples(inputs, torch.zeros(5, dtype=torch.int64))
    with pytest.raises(DataError, match=rf"Learner mlp: examples must have shape \(2,\) float32, {found}\."):
        tasks.check_features("mlp", data, (2,))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        pytest.param(
            torch.zeros(4, dtype=torch.int64), r"classes must be one an example, got shape \(4,\)\.", id="few"
        ),
        pytest.param(
            torch.zeros(5, 1, dtype=torch.int64), r"classes must be one an example, got shape \(5, 1\)\.", id="axes"
        ),
        pytest.param(torch.zeros(5), r"classes must be int64, got float32\.", id="floats"),
        pytest.param(torch.tensor([0, 1, 2, 3, 0]), r"classes must be 0 to 2, got 3 in example 3\.", id="high"),
        pytest.param(torch.tensor([0, -1, 2, 3, 0]), r"classes must be 0 to 2, got -1 in example 1\.", id="negative"),
    ],
)
def test_check_classes_other_than_agreed_are_refused(targets: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=f"Learner mlp: {message}"):
        tasks.check_classes("mlp", Examples(torch.zeros(5, 2), targets), 3)


def test_check_codes_names_the_first_wrong_window() -> None:
    codes = torch.tensor([[0, 1], [1, 9], [-1, 0]])
    with pytest.raises(DataError, match=r"Learner lstm: codes must be 0 to 7, got 9 in example 1\."):
        tasks.check_codes("lstm", "codes", codes, 8)


def test_check_codes_at_both_ends_pass() -> None:
    tasks.check_codes("lstm", "codes", torch.tensor([[0, 7]]), 8)
    tasks.check_codes("mlp", "classes", torch.tensor([], dtype=torch.int64), 8)


@pytest.mark.parametrize(
    ("targets", "rule"),
    [
        pytest.param(torch.tensor([0, 7, 2]), "Learner mlp: classes must be 0 to 2", id="value"),
        pytest.param(torch.zeros(3), "Learner mlp: classes must be int64", id="type"),
        pytest.param(torch.zeros(2, dtype=torch.int64), "Learner mlp: classes must be one an example", id="count"),
    ],
)
def test_check_classes_rule_has_nothing_of_the_data(targets: Tensor, rule: str) -> None:
    with pytest.raises(DataError) as caught:
        tasks.check_classes("mlp", Examples(torch.zeros(3, 2), targets), 3)
    assert caught.value.rule == rule
