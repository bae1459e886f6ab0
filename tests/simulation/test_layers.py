"""Layers for a stack of clients against the module itself, one client after another."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from models import build_learner
from models.activations import ACTIVATIONS, Gaussian, Step
from models.dropout import Dropout
from models.gradient import GradientLearner
from simulation import layers
from simulation.layers import MaskedDropout, StackedModule, _under_vmap
from wire.spec import Named

CLIENTS, BATCH = 3, 5


class Residual(nn.Module):
    """A module whose own code says in which order its layers come."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(2, 2, 3, padding=1)
        self.dropout = nn.Dropout(0.4)

    def forward(self, inputs: Tensor) -> Tensor:
        dropped: Tensor = self.dropout(self.inner(inputs).flatten(1))
        return inputs + dropped.view(inputs.shape)


class Shift(nn.Module):
    """Adds a parameter to its inputs, whose gradient is then that of the inputs of what follows."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(shape))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.value


def test_first_layer_may_take_integers() -> None:
    stacked = StackedModule(nn.Sequential(nn.Embedding(3, 2), nn.Flatten(), nn.Linear(4, 1)))
    state = {name: torch.randn(2, *value.shape) for name, value in stacked.module.named_parameters()}
    outputs, back = stacked(state, torch.tensor([[[0, 1]], [[1, 1]]]))
    grads = back(torch.ones_like(outputs))
    # Each row is that of the weights it is multiplied with; what a client does not have learns nothing.
    first, second = state["2.weight"].view(2, 2, 2)
    expected = torch.stack([torch.stack([*first, torch.zeros(2)]), torch.stack([*torch.zeros(2, 2), torch.zeros(2)])])
    expected[1, 1] = second.sum(0)
    torch.testing.assert_close(grads["0.weight"], expected)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Dropout(0.1), nn.Linear(3, 2)), True),
        (nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.MaxPool2d(2), nn.Flatten()), True),
        (nn.Sequential(nn.Linear(4, 3), nn.Tanh()), False),
        (nn.Sequential(nn.AvgPool2d(2)), False),
        (Residual(), False),
    ],
    ids=["dense", "convolution", "tanh", "average", "own"],
)
def test_is_by_hand_unless_a_layer_asks_autograd(module: nn.Module, expected: bool) -> None:
    assert StackedModule(module).is_by_hand is expected


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(
    ("module", "shape", "masks"),
    [
        pytest.param(nn.Sequential(nn.Linear(4, 3)), (4,), {}, id="dense"),
        pytest.param(nn.Sequential(nn.Linear(4, 3, bias=False)), (4,), {}, id="dense-no-bias"),
        pytest.param(nn.Sequential(nn.Linear(4, 3)), (2, 4), {}, id="dense-of-several-axes"),
        pytest.param(nn.Linear(4, 3), (4,), {}, id="dense-alone"),
        pytest.param(nn.Sequential(nn.Conv2d(2, 3, 3, padding="same")), (2, 4, 6), {}, id="convolution"),
        pytest.param(nn.Sequential(nn.Conv2d(2, 3, 3)), (2, 4, 6), {}, id="convolution-without-margin"),
        pytest.param(nn.Sequential(nn.Conv2d(2, 3, 3, stride=2)), (2, 5, 6), {}, id="convolution-by-vmap"),
        pytest.param(nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 2)), (2, 4, 4), {}, id="max-pool"),
        pytest.param(nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 2)), (2, 4, 4), {}, id="average-pool"),
        pytest.param(
            nn.Sequential(nn.ReLU(), nn.Tanh(), nn.Sequential(nn.Sigmoid(), nn.GELU()), nn.Identity(), nn.Linear(4, 2)),
            (4,),
            {},
            id="pointwise-and-nested",
        ),
        pytest.param(nn.Sequential(nn.LeakyReLU(), nn.Linear(4, 3), Gaussian(), Step()), (4,), {}, id="more-pointwise"),
        pytest.param(
            nn.Sequential(nn.Dropout(0.0), nn.Dropout(0.5), nn.Linear(4, 2)), (4,), {"1.mask": (4,)}, id="dropout"
        ),
        pytest.param(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2)), (4,), {}, id="normalised-by-vmap"),
        pytest.param(
            nn.Sequential(nn.Conv2d(2, 2, 1), Residual()), (2, 4, 4), {"1.dropout.mask": (32,)}, id="module-by-vmap"
        ),
        pytest.param(Residual(), (2, 4, 4), {"dropout.mask": (32,)}, id="module-by-vmap-alone"),
    ],
)
@pytest.mark.parametrize("are_channels", [True, False], ids=["as-on-a-cpu", "as-elsewhere"])
def test_outputs_and_gradients_equal_each_clients_own(
    module: nn.Module,
    shape: tuple[int, ...],
    masks: dict[str, tuple[int, ...]],
    are_channels: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layers, "_are_clients_channels", lambda device: are_channels)
    torch.manual_seed(1)
    stacked = StackedModule(nn.Sequential(Shift(*shape), copy.deepcopy(module)).double())
    kept_shapes = {f"1.{name}": kept for name, kept in masks.items()}
    assert {f"{name}.mask" for name in stacked.dropouts} == kept_shapes.keys()
    parameters = {name: drawn(CLIENTS, *value.shape) for name, value in stacked.module.named_parameters()}
    state = parameters | {
        name: torch.rand(CLIENTS, BATCH, *kept, dtype=torch.float64) for name, kept in kept_shapes.items()
    }
    inputs = torch.randn(CLIENTS, BATCH, *shape, dtype=torch.float64)
    outputs, back = stacked(state, inputs)
    expected = torch.stack(
        [
            functional_call(stacked.module, {name: value[client] for name, value in state.items()}, (inputs[client],))
            for client in range(CLIENTS)
        ]
    )
    torch.testing.assert_close(outputs, expected)
    pull = torch.randn(outputs.shape, dtype=torch.float64)
    found = back(pull.clone())
    assert found.keys() == parameters.keys()
    expected_grads = torch.autograd.grad(expected, list(parameters.values()), pull)
    for name, grad in zip(parameters, expected_grads, strict=True):
        torch.testing.assert_close(found[name], grad)


@pytest.mark.parametrize("kind", [nn.Dropout, Dropout])
def test_masks_are_what_the_layer_itself_would_draw(kind: type[nn.Dropout]) -> None:
    layer, seed = kind(0.4), 11
    mask = MaskedDropout(layer).draw((3, 7), torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    assert torch.equal(mask, layer(torch.ones(3, 7)))


class Summed(nn.Module):
    """A module whose gradient is one number for all its inputs, in the same place of memory."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.sum(-1, keepdim=True) * self.scale


@pytest.mark.parametrize(
    "after",
    [
        pytest.param([Summed()], id="gradient-that-is-expanded"),
        pytest.param([Shift(1, 4), nn.Linear(4, 2)], id="gradient-that-is-a-parameters-too"),
        pytest.param([relu := nn.ReLU(), nn.Linear(4, 4), relu, nn.Linear(4, 2)], id="layer-that-comes-twice"),
    ],
)
def test_gradients_that_share_memory_are_not_written_over(after: list[nn.Module]) -> None:
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), *after).double()
    inputs = torch.randn(1, 1, 4, dtype=torch.float64)
    expected = module(inputs[0])
    pull = torch.randn(expected.shape, dtype=torch.float64)
    expected_grads = torch.autograd.grad(expected, list(module.parameters()), pull)
    stacked = StackedModule(module)
    outputs, back = stacked({name: value[None] for name, value in module.named_parameters()}, inputs)
    torch.testing.assert_close(outputs[0], expected)
    found = back(pull[None])
    for (name, _), grad in zip(module.named_parameters(), expected_grads, strict=True):
        torch.testing.assert_close(found[name][0], grad)


def test_stand_ins_keep_the_parameters_and_draw_no_dropout_by_themselves() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3, padding="same"), nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, 2))
    before = dict(module.named_parameters())
    stacked = StackedModule(module)
    assert dict(stacked.module.named_parameters()) == before
    assert list(stacked.dropouts) == ["2"]
    assert isinstance(module[2], MaskedDropout)
    assert module[2].rate == 0.5


@pytest.mark.parametrize(
    "named",
    [
        *(
            pytest.param({"name": "mlp", "dropout": 0.5, "activation": activation}, id=f"mlp-{activation}")
            for activation in ACTIVATIONS
        ),
        pytest.param({"name": "cnn", "dropout": 0.5, "hidden": 8, "pooling": "average"}, id="cnn"),
    ],
)
def test_learners_of_the_zoo_need_no_vmap(named: dict[str, object]) -> None:
    learner = build_learner(Named.model_validate(named))
    assert isinstance(learner, GradientLearner)
    assert all(layer.form is not _under_vmap for layer in StackedModule(learner.build())._layers)


def test_gradient_of_a_dense_layer_lies_in_memory_as_its_weights() -> None:
    # A step that adds the one to the other would otherwise jump about in memory.
    stacked = StackedModule(nn.Linear(4, 3))
    state = {"weight": torch.randn(2, 3, 4), "bias": torch.randn(2, 3)}
    outputs, back = stacked(state, torch.randn(2, 5, 4))
    assert back(outputs)["weight"].stride() == state["weight"].stride()


@pytest.mark.parametrize("channels", [3, 16])
def test_convolution_of_one_client_that_diverged_touches_no_other(channels: int) -> None:
    convolutions = [nn.Conv2d(channels, channels, 3, padding="same") for _ in range(2)]
    stacked = StackedModule(nn.Sequential(*convolutions, nn.MaxPool2d(2)))
    state = {name: torch.randn(3, *value.shape) for name, value in stacked.module.named_parameters()}
    inputs = torch.randn(3, 2, channels, 4, 4)
    state["0.weight"][1], inputs[1] = float("nan"), float("nan")
    outputs, back = stacked(state, inputs)
    for tensor in (outputs, *back(torch.ones_like(outputs)).values()):
        assert tensor[::2].isfinite().all()
