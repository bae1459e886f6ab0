"""The convolutional network: its layers against torch's functions, its activation maps, and what it learns of real digits."""

import pytest
import torch
from torch.nn import functional

from models import Examples, Learner, LearnerError, build_learner
from models.learner import ActivationMaps
from wire.spec import LocalSpec, Named
from wire.tensors import State


def trained(learner: Learner, data: Examples, local: LocalSpec) -> State:
    """Return the state of a learner that has trained on `data` alone."""
    state, layout = learner.init(1), learner.contribution_layout
    change = learner.fit(state, data, local, torch.Generator().manual_seed(1), lambda fraction: None).vector
    return layout.views(layout.flatten(state) + change)


@pytest.mark.parametrize("pooling", ["max", "average"])
def test_maps_are_the_layers_worked_out_with_functions(images: Examples, pooling: str) -> None:
    learner = build_learner(Named(name="cnn", channels=[3, 5], pooling=pooling))
    assert isinstance(learner, ActivationMaps)
    assert learner.image_shape == (1, 8, 8)
    state = learner.init(1)
    found = learner.maps(state, images.inputs[7])
    names = ["convolution 1", f"{pooling} pool 1", "convolution 2", f"{pooling} pool 2"]
    assert list(found) == names
    pool = functional.max_pool2d if pooling == "max" else functional.avg_pool2d
    values = images.inputs[7]
    for block, layer in enumerate((0, 3)):
        values = functional.conv2d(values, state[f"{layer}.weight"], state[f"{layer}.bias"], padding=1).relu()
        torch.testing.assert_close(found[names[2 * block]], values)
        values = pool(values, 2)
        torch.testing.assert_close(found[names[2 * block + 1]], values)
    logits = functional.linear(values.flatten(), state["7.weight"], state["7.bias"])
    loss = functional.cross_entropy(logits, images.targets[7])
    assert learner.evaluate(state, images.select(torch.tensor([7]))).metrics["loss"] == pytest.approx(float(loss))


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("pooling", ["max", "average"])
def test_series_are_convolved_and_pooled_along_their_length(pooling: str, padding: str) -> None:
    learner = build_learner(
        Named(name="cnn", image=[2, 1, 13], channels=[[3, 4], 5], kernel=3, pooling=pooling, padding=padding)
    )
    assert isinstance(learner, ActivationMaps)
    state, series = learner.init(1), torch.randn(2, 1, 13, generator=torch.Generator().manual_seed(1))
    pool = functional.max_pool1d if pooling == "max" else functional.avg_pool1d
    values, margin = series.squeeze(1), int(padding == "same")
    for layers in ((0, 2), (5,)):
        for layer in layers:
            weight, bias = state[f"{layer}.weight"].squeeze(2), state[f"{layer}.bias"]
            values = functional.conv1d(values, weight, bias, padding=margin).relu()
        values = pool(values, 2)
    found = learner.maps(state, series)
    torch.testing.assert_close(found[f"{pooling} pool 2"].squeeze(1), values)
    data = Examples(series[None], torch.tensor([4]))
    logits = functional.linear(values.flatten(), state["9.weight"], state["9.bias"])
    loss = functional.cross_entropy(logits, data.targets[0])
    assert learner.evaluate(state, data).metrics["loss"] == pytest.approx(float(loss), rel=1e-5)


def test_maps_are_those_of_evaluation_and_not_of_training(images: Examples) -> None:
    learner = build_learner(Named(name="cnn", channels=[[3, 4]], batch_norm=True, feature_dropout=0.5))
    assert isinstance(learner, ActivationMaps)
    state = {name: tensor + 0.1 for name, tensor in learner.init(1).items()}
    found = learner.maps(state, images.inputs[0])
    assert list(found) == ["convolution 1", "convolution 2", "max pool 1"]
    values = functional.conv2d(images.inputs[:1], state["0.weight"], state["0.bias"], padding=1)
    mean, var, weight, bias = (state[f"1.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
    torch.testing.assert_close(found["convolution 1"], functional.batch_norm(values, mean, var, weight, bias).relu()[0])


def test_maps_without_a_clients_own_statistics_are_refused(images: Examples) -> None:
    learner = build_learner(Named(name="cnn", batch_norm=True, statistics="local"))
    assert isinstance(learner, ActivationMaps)
    with pytest.raises(
        LearnerError, match=r"^Learner cnn: statistics must be averaged where there is no training data"
    ):
        learner.maps(learner.init(1), images.inputs[0])


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["max", "average"])
def test_cnn_with_batch_norm_and_dropout_reads_new_digits(images: Examples, pooling: str) -> None:
    # Of 360 digits that nobody trained on, single seeds of this network miss 2 to 6; softmax regression misses 12.
    learner = build_learner(Named(name="cnn", pooling=pooling, batch_norm=True, dropout=0.25))
    assert learner.contribution_layout.size == 6186 + 2 * (16 + 32)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    local = LocalSpec(epochs=20, batch_size=64, optimizer=Named(name="adam", learning_rate=0.005))
    found = learner.evaluate(trained(learner, images.select(order[360:]), local), images.select(order[:360]))
    assert found.metrics["accuracy"] > 0.975
