"""How many clients fit at a time, worked out by hand."""

import torch

from models import build_learner
from models.gradient import GradientLearner
from simulation.block_size import CPU_BYTES, most_clients
from wire.spec import Named


def fitting(batch_size: int, shape: tuple[int, ...], **named: object) -> int:
    learner = build_learner(Named.model_validate(named))
    assert isinstance(learner, GradientLearner)
    return most_clients(learner, torch.zeros(1, *shape), batch_size, torch.device("cpu"))


def test_most_clients_counts_parameters_and_the_activations_of_a_batch() -> None:
    # 650 parameters, 7 times; for each of 10 examples the 64 inputs laid flat and 10 outputs, 4 times; 4 bytes each.
    bytes_each = 4 * (7 * 650 + 4 * 10 * (64 + 10))
    assert fitting(10, (64,), name="mlp", inputs=[64], hidden=[], classes=10) == CPU_BYTES // bytes_each


def test_most_clients_counts_the_patches_of_a_convolution() -> None:
    # Convolution: 2 x 16 outputs and 9 x 16 in patches; ReLU 2 x 16; pool, flat: 8 each; dense: 3.
    parameter_count = 2 * 9 + 2 + 8 * 3 + 3
    bytes_each = 4 * (7 * parameter_count + 4 * 5 * (32 + 144 + 32 + 8 + 8 + 3))
    found = fitting(5, (1, 4, 4), name="cnn", image=[1, 4, 4], channels=[2], classes=3)
    assert found == CPU_BYTES // bytes_each


def test_most_clients_is_one_for_a_model_that_fills_memory_by_itself() -> None:
    assert fitting(32, (4000,), name="mlp", inputs=[4000], hidden=[5000], classes=10) == 1
