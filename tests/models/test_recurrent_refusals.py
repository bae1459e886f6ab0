"""Parameters and data that do not suit a recurrent network, and what is said of them."""

import pytest
import torch
from torch import Tensor

from models import DataError, Examples, LearnerError
from models.learner import PADDING
from tests.models.recurrences import recurrent


def test_features_of_the_next_character_are_refused() -> None:
    message = r"^Learner rnn: .*features must be 0 to predict the next character, got 2\.$"
    with pytest.raises(LearnerError, match=message):
        recurrent("rnn", features=2)


FINE = torch.tensor([[1, 2, 0], [3, 0, 1]])


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        pytest.param(
            torch.tensor([[1, 2, 0], [3, PADDING, 1]]),
            FINE,
            "codes must not go on behind padding, got others in example 1",
            id="gap",
        ),
        pytest.param(
            torch.tensor([[PADDING] * 3, [3, 1, 1]]),
            FINE,
            "codes must have at least 1 step each, got others in example 0",
            id="empty",
        ),
        pytest.param(
            torch.tensor([[1, 2, 0], [3, 1, PADDING]]),
            FINE,
            "targets must be as long as their sequences, got others in example 1",
            id="shorter",
        ),
        pytest.param(FINE, FINE - 3, "targets must be 0 to 7, got -2 in example 0", id="negative"),
        pytest.param(FINE, FINE[:, :2], r"examples must be windows of text, got shape \(3,\)", id="target-shape"),
    ],
)
def test_text_that_does_not_suit_is_refused(inputs: Tensor, targets: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=rf"^Learner gru: {message}\.$"):
        recurrent("gru", vocabulary=8).check(Examples(inputs, targets))


NAN = torch.nan


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        pytest.param(
            torch.ones(2, 3),
            torch.ones(2, 1),
            r"examples must be series of shape \(time, 2\) float32, got \(3,\) float32",
            id="axes",
        ),
        pytest.param(
            torch.ones(2, 3, 1),
            torch.ones(2, 1),
            r"examples must be series of shape \(time, 2\) float32, got \(3, 1\) float32",
            id="features",
        ),
        pytest.param(FINE[:, :, None], torch.ones(2, 1), r"\(time, 2\) float32, got \(3, 1\) int64", id="codes"),
        pytest.param(
            torch.tensor([[[1, NAN], [1, 1]]]),
            torch.ones(1, 1),
            "steps must be finite, or all NaN behind the last one, got others in example 0",
            id="partly",
        ),
        pytest.param(
            torch.tensor([[[1, 1], [1, torch.inf]]]), torch.ones(1, 1), "steps must be finite, .*", id="infinite"
        ),
        pytest.param(
            torch.tensor([[[NAN, NAN], [1, 1]]]), torch.ones(1, 1), "series must not go on behind .*", id="gap"
        ),
        pytest.param(torch.ones(1, 0, 2), torch.ones(1, 1), "series must have at least 1 step each, .*", id="empty"),
        pytest.param(
            torch.ones(2, 3, 2),
            torch.ones(2, 3),
            r"targets must be 1 float32 an example, got shape \(2, 3\) float32",
            id="outputs",
        ),
        pytest.param(
            torch.ones(2, 3, 2),
            FINE[:, :1],
            r"targets must be 1 float32 an example, got shape \(2, 1\) int64",
            id="classes",
        ),
        pytest.param(
            torch.ones(2, 3, 2),
            torch.tensor([[1], [NAN]]),
            "targets must be finite, got another one in example 1",
            id="missing",
        ),
    ],
)
def test_series_that_does_not_suit_a_forecast_is_refused(inputs: Tensor, targets: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=f"^Learner lstm: .*{message}\\.$"):
        recurrent("lstm", task="forecast", features=2).check(Examples(inputs, targets))


def test_classes_beyond_their_number_are_refused() -> None:
    learner = recurrent("rnn", task="classify", vocabulary=8, classes=3)
    learner.check(Examples(FINE, torch.tensor([0, 2])))
    with pytest.raises(DataError, match=r"^Learner rnn: classes must be 0 to 2, got 3 in example 1\.$"):
        learner.check(Examples(FINE, torch.tensor([0, 3])))
