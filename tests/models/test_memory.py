"""What a step of training takes: worked out by hand, in proportion to the batch, and without a trace."""

import pytest
import torch
from torch.nn import functional

from choral.conformance.memory import LiveTensors
from models import DataError, Examples, build_learner
from models.gradient import GradientLearner
from models.learner import PADDING
from models.memory import KeptForBackward, longest, slots
from wire.spec import LocalSpec, Named

SOFTMAX = Named(name="mlp", inputs=[64], hidden=[])


def local(batch_size: int, **settings: object) -> LocalSpec:
    return LocalSpec.model_validate({"batch_size": batch_size, **settings})


@pytest.mark.parametrize(
    ("settings", "copies"),
    [
        pytest.param({}, 2, id="sgd"),
        pytest.param({"proximal_mu": 0.1}, 5, id="fedprox"),
        pytest.param({"optimizer": {"name": "sgd", "momentum": 0.9}}, 3, id="momentum"),
        pytest.param({"optimizer": {"name": "adam"}}, 4 + 1 / 1024, id="adam"),
    ],
)
def test_step_bytes_of_softmax_regression_are_those_worked_out_by_hand(
    digits: Examples, settings: dict[str, object], copies: float
) -> None:
    # 650 parameters. Kept of an example: the logarithms of 10 probabilities, whose gradient comes twice; the loss keeps one number more.
    # The batch: 64 inputs and a class.
    expected = int(4 * 650 * copies) + 100 * 3 * 10 * 4 + 4 + 100 * (64 * 4 + 8)
    assert build_learner(SOFTMAX).step_bytes(digits, local(100, **settings)) == expected


def test_step_bytes_are_of_the_data_where_a_batch_has_room_for_more(digits: Examples) -> None:
    learner, few = build_learner(SOFTMAX), digits.select(torch.arange(30))
    assert learner.step_bytes(few, local(1000)) == learner.step_bytes(few, local(30))
    assert learner.step_bytes(few, local(30)) < learner.step_bytes(digits, local(1000))


def test_step_bytes_leave_module_and_generator_as_they_were(images: Examples) -> None:
    learner, settings = build_learner(Named(name="mlp", inputs=[1, 8, 8], batch_norm=True, dropout=0.5)), local(16)
    assert isinstance(learner, GradientLearner)
    own = learner._module.state_dict()
    before, kept = torch.get_rng_state(), {name: tensor.clone() for name, tensor in own.items()}
    found = learner.step_bytes(images, settings)
    assert found == learner.step_bytes(images, settings)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(tensor, kept[name]) for name, tensor in own.items())
    assert all(parameter.grad is None for parameter in learner._module.parameters())


def test_step_bytes_refuse_what_fit_refuses(images: Examples) -> None:
    learner = build_learner(Named(name="mlp", inputs=[1, 8, 8], batch_norm=True))
    with pytest.raises(DataError, match="batches must have at least 2 examples, got 1"):
        learner.step_bytes(images.select(torch.arange(1)), local(16))


@pytest.mark.parametrize(
    "learner",
    [
        Named(name="cnn", channels=[8, 16], image=[1, 8, 8]),
        Named(name="mlp", inputs=[1, 8, 8], hidden=[500]),
        Named(name="gan", inputs=[1, 8, 8], hidden=[32]),
        Named(name="rbf_network", inputs=[1, 8, 8], centres=20, readout="gradient"),
        Named(name="rbf_network", inputs=[1, 8, 8], centres=20),
    ],
)
@pytest.mark.parametrize("batch_size", [4, 64, 1000])
def test_fit_takes_about_the_declared_memory_whatever_the_batch(
    images: Examples, learner: Named, batch_size: int
) -> None:
    subject, settings = build_learner(learner), local(batch_size, proximal_mu=0.1)
    # Late enough for a network of radial bases to learn its readout.
    state = {**subject.init(1), **({"round": torch.tensor(50.0)} if learner.name == "rbf_network" else {})}
    with LiveTensors() as live:
        subject.fit(state, images, settings, torch.Generator().manual_seed(1), lambda fraction: None)
    assert 0.1 < live.most / subject.step_bytes(images, settings) < 2


@pytest.mark.parametrize(
    ("name", "settings", "count"),
    [("sgd", {}, 0), ("sgd", {"momentum": 0.9}, 1), ("adamw", {}, 2), ("lbfgs", {"history_size": 7}, 18)],
)
def test_slots_are_those_of_each_parameter(name: str, settings: dict[str, object], count: int) -> None:
    assert slots(Named(name=name, **settings)) == pytest.approx(count, abs=0.01)


def test_longest_have_the_least_padding() -> None:
    codes = torch.tensor([[1, PADDING, PADDING], [1, 2, 3], [1, 2, PADDING], [4, 5, 6]])
    none = torch.zeros(4, 0, dtype=torch.int64)
    assert longest(Examples(codes, none), 3).inputs.tolist() == [[1, 2, 3], [4, 5, 6], [1, 2, PADDING]]
    series = torch.tensor([[[1.0], [torch.nan]], [[-1.0], [-1.0]]])
    assert torch.equal(longest(Examples(series, none[:2]), 1).inputs, series[1:])


def test_kept_for_backward_counts_shared_memory_once_and_only_while_it_is_kept() -> None:
    weight = torch.ones(10, requires_grad=True)
    kept = KeptForBackward([weight])
    with kept.watching():
        for _ in range(2):
            sigmoid = functional.sigmoid(weight)  # 40 bytes, kept by both operations
            (sigmoid * sigmoid[:10]).sum().backward()  # type: ignore[no-untyped-call]
            del sigmoid
    assert (kept.most, kept.largest) == (40, 40)


def test_live_tensors_count_the_memory_that_is_alive_at_a_time() -> None:
    given = torch.zeros(1000)
    with LiveTensors() as live:
        first = torch.zeros(100)
        first.view(10, 10).add_(1)
        given.mul_(2)
        assert live.most == 400
        del first
        torch.zeros(50)
        assert live.most == 400
        _both = torch.zeros(75), torch.zeros(50)
        assert live.most == 500
