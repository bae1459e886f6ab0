"""Files that clients may send for a first model: taken whole, or refused with a reason and without harm."""

from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from safetensors.torch import save as save_torch

from server.errors import ContributionRefused
from server.first_model import FirstModel
from wire.federation_pb2 import RefusalReason

LAYOUT = '[["a",[2],"bfloat16"]]'
A = np.array([1.0, -2.0], dtype=np.float32)


def taken(data: bytes) -> FirstModel:
    first = FirstModel()
    first.add(np.frombuffer(data, dtype=np.uint8), 0)
    return first


def file(layout: str = LAYOUT, /, **tensors: Any) -> bytes:
    return save({"a": A} | tensors, {"layout": layout})


def test_add_takes_the_vector_and_what_does_not_travel() -> None:
    model = taken(file(count=np.array(3), mask=np.array([True]))).model
    assert model is not None
    assert model.vector.tolist() == [1.0, -2.0]
    assert {name: constant.tolist() for name, constant in model.constants.items()} == {"count": 3, "mask": [True]}
    assert model.layout.json == LAYOUT


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        pytest.param(b"", "must be a safetensors file", id="nothing"),
        pytest.param(b"\xff" * 64, "must be a safetensors file", id="noise"),
        pytest.param(file()[:-1], "must be a safetensors file", id="cut-off"),
        pytest.param(save_torch({"a": torch.zeros(2, dtype=torch.bfloat16)}), "of numpy's types", id="bfloat16"),
        pytest.param(save({"a": A}), "Layout: must be a list", id="no-layout"),
        pytest.param(file('[["a",[1099511627775],"float32"]]'), "layout must be that of its tensors", id="huge"),
        pytest.param(file('[["b",[2],"float32"]]'), r"tensor 'b' must have shape \(2,\) float32", id="absent"),
        pytest.param(file(a=A.astype(np.float64)), r"tensor 'a' must have shape \(2,\) float32", id="float64"),
        pytest.param(file(rest=A), "must be integers or truth values, got 'rest'", id="stray"),
        pytest.param(
            file(**{"optimizer/step": np.array(1)}), "must be integers or truth values, got 'step'", id="slot"
        ),
    ],
)
def test_add_what_is_no_model_raises_and_takes_nothing(data: bytes, problem: str) -> None:
    first = FirstModel()
    with pytest.raises(ContributionRefused, match=problem) as refusal:
        first.add(np.frombuffer(data, dtype=np.uint8), 0)
    assert refusal.value.reason == RefusalReason.REFUSAL_REASON_WRONG_LAYOUT
    assert first.model is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_add_a_number_that_is_not_finite_raises_and_takes_nothing(value: float) -> None:
    first = FirstModel()
    with pytest.raises(ContributionRefused, match="every number of a first model must be finite") as refusal:
        first.add(np.frombuffer(file(a=np.array([1.0, value], dtype=np.float32)), dtype=np.uint8), 0)
    assert refusal.value.reason == RefusalReason.REFUSAL_REASON_NOT_FINITE
    assert first.model is None
