import copy
import subprocess
import sys
from functools import partial
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from models.optimizers import Descent, Optimizer, ServerOptimizer, build_optimizer, check_optimizer, optimizer_classes
from wire.errors import LearnerError
from wire.spec import Named

SHAPES = {"0.weight": (3, 2), "0.bias": (3,), "1.weight": (1,)}
SERVER_NAMES = sorted(optimizer_classes().keys() - {"lbfgs", "muon", "sparseadam"})


def tensors(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def reference(named: Named, step_count: int) -> list[dict[str, Tensor]]:
    """States after each step of one optimizer of torch.optim that lives through all of them, on minus the mean."""
    parameters = {name: tensor.requires_grad_() for name, tensor in tensors(0).items()}
    arguments = dict(named.parameters)
    if "learning_rate" in arguments:
        arguments["lr"] = arguments.pop("learning_rate")
    optimizer = optimizer_classes()[named.name](list(parameters.values()), **arguments)
    states = []
    for step in range(1, step_count + 1):
        for name, mean in tensors(step).items():
            parameters[name].grad = -mean
        optimizer.step()
        states.append({name: parameter.detach().clone() for name, parameter in parameters.items()})
    return states


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def test_step_of_sgd_with_rate_one_adds_the_mean_to_the_bit() -> None:
    state, mean = tensors(0), tensors(1)
    expected = {name: state[name] + mean[name] for name in SHAPES}
    found = ServerOptimizer(Named(name="sgd", learning_rate=1.0)).step(state, mean)
    assert_equal(dict(found), expected)


def test_step_moves_the_state_in_place_and_detaches_it() -> None:
    state = tensors(0)
    found = ServerOptimizer(Named(name="sgd", learning_rate=1.0)).step(state, tensors(1))
    for name in SHAPES:
        assert found[name].data_ptr() == state[name].data_ptr()
        assert not found[name].requires_grad


CONFIGURED = [
    Named(name="sgd", learning_rate=0.5, momentum=0.9),
    Named(name="sgd", learning_rate=0.5, momentum=0.9, nesterov=True, weight_decay=0.01),
    Named(name="adam", learning_rate=0.1, betas=[0.8, 0.95], amsgrad=True),
    Named(name="rmsprop", momentum=0.5, centered=True),
    *(Named(name=name) for name in SERVER_NAMES),
]


@pytest.mark.parametrize("named", CONFIGURED, ids=lambda named: f"{named.name}-{len(named.parameters)}")
def test_step_through_checkpoints_equals_an_undisturbed_torch_run_to_the_bit(named: Named) -> None:
    state: Any = tensors(0)
    stored = save({})
    for step, expected in enumerate(reference(named, 6), start=1):
        optimizer = ServerOptimizer(named, load(stored))
        state = optimizer.step(state, tensors(step))
        assert_equal(state, expected)
        stored = save({name: slot.contiguous() for name, slot in optimizer.slots().items()})


def test_step_with_one_optimizer_for_all_steps_equals_the_torch_run() -> None:
    named = Named(name="adam", learning_rate=0.1)
    state: Any = tensors(0)
    optimizer = ServerOptimizer(named)
    for step, expected in enumerate(reference(named, 4), start=1):
        state = optimizer.step(state, tensors(step))
        assert_equal(state, expected)


def test_step_without_its_slots_differs_from_the_torch_run() -> None:
    named = Named(name="sgd", learning_rate=0.5, momentum=0.9)
    state: Any = tensors(0)
    for step in (1, 2):
        state = ServerOptimizer(named).step(state, tensors(step))
    assert not torch.equal(state["0.bias"], reference(named, 2)[-1]["0.bias"])


def test_slots_are_named_by_slot_and_tensor() -> None:
    optimizer = ServerOptimizer(Named(name="adam"))
    assert optimizer.slots() == {}
    optimizer.step(tensors(0), tensors(1))
    assert {name.partition("/")[0] for name in optimizer.slots()} == {"step", "exp_avg", "exp_avg_sq"}
    assert optimizer.slots()["exp_avg/0.weight"].shape == (3, 2)
    assert float(optimizer.slots()["step/0.bias"]) == 1


def test_slots_of_plain_sgd_are_none() -> None:
    optimizer = ServerOptimizer(Named(name="sgd"))
    optimizer.step(tensors(0), tensors(1))
    assert optimizer.slots() == {}


def test_build_learning_rate_stands_for_lr() -> None:
    optimizer = build_optimizer(Named(name="adamw", learning_rate=0.25, weight_decay=0), [torch.zeros(1)])
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]["lr"] == 0.25


def test_build_leaves_the_spec_unchanged() -> None:
    named = Named(name="sgd", learning_rate=0.25)
    before = copy.deepcopy(named)
    build_optimizer(named, [torch.zeros(1)])
    assert named == before


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        pytest.param({"name": "sdg"}, r"Optimizer: name must be one of .*, sgd, .*, got 'sdg'\.", id="unknown-name"),
        pytest.param({"name": "SGD"}, r"name must be one of .*, got 'SGD'\.", id="capitals"),
        pytest.param({"name": "optimizer"}, r"name must be one of .*, got 'optimizer'\.", id="abstract"),
        pytest.param(
            {"name": "sgd", "lr": 1}, r"Optimizer sgd: parameters must be among .*learning_rate.*, got 'lr'\.", id="lr"
        ),
        pytest.param({"name": "sgd", "params": []}, r"parameters must be among .*, got 'params'\.", id="params"),
        pytest.param(
            {"name": "adam", "fused": True}, r"parameters must be among .*, got 'fused'\.", id="implementation"
        ),
        pytest.param(
            {"name": "sgd", "learning_rate": "fast"}, r"learning_rate must be a number, got 'fast'\.", id="text"
        ),
        pytest.param(
            {"name": "sgd", "learning_rate": True}, r"learning_rate must be a number, got True\.", id="boolean"
        ),
        pytest.param({"name": "sgd", "learning_rate": None}, r"learning_rate must be a number, got None\.", id="null"),
        pytest.param(
            {"name": "sgd", "nesterov": "no"}, r"nesterov must be true or false, got 'no'\.", id="not-boolean"
        ),
        pytest.param({"name": "adam", "betas": 0.9}, r"betas must be a list of 2 numbers, got 0\.9\.", id="no-list"),
        pytest.param(
            {"name": "adam", "betas": [0.9]}, r"betas must be a list of 2 numbers, got \[0\.9\]\.", id="short-list"
        ),
        pytest.param(
            {"name": "adam", "betas": ["a", "b"]}, r"betas must be a list of 2 numbers, got \['a'", id="text-list"
        ),
        pytest.param({"name": "adam", "betas": [None, 0.9]}, r"Optimizer adam: .*NoneType", id="null-in-list"),
        pytest.param(
            {"name": "adam", "betas": [1.5, 0.9]},
            r"^Optimizer adam: betas must be what torch takes, got \[1\.5, 0\.9\]: Invalid beta parameter at index 0: 1\.5\.$",
            id="range",
        ),
        pytest.param(
            {"name": "adadelta", "learning_rate": 0.1, "rho": 1.5},
            r"^Optimizer adadelta: rho must be what torch takes, got 1\.5: Invalid rho value: 1\.5\.$",
            id="range-of-one",
        ),
        pytest.param(
            {"name": "adam", "betas": [0.9, -0.5]},
            r"^Optimizer adam: betas must be numbers of at least 0, got \[0\.9, -0\.5\]\.$",
            id="negative-in-list",
        ),
        pytest.param(
            {"name": "sgd", "nesterov": True},
            r"^Optimizer sgd: nesterov must be what torch takes, got True: Nesterov momentum requires .*dampening\.$",
            id="combination",
        ),
        pytest.param({"name": "muon"}, r"Optimizer muon: .*2D parameters", id="matrices-only"),
        pytest.param({"name": "sparseadam"}, r"Optimizer sparseadam: must not need sparse gradients", id="sparse"),
    ],
)
@pytest.mark.parametrize("is_server", [False, True], ids=["local", "server"])
def test_check_what_cannot_run_is_refused(parameters: dict[str, Any], message: str, is_server: bool) -> None:
    with pytest.raises(LearnerError, match=message):
        check_optimizer(Named(**parameters), is_server)


@pytest.mark.parametrize("value", [-1, -0.5])
@pytest.mark.parametrize(
    ("name", "key"),
    [
        *((name, "learning_rate") for name in ("sgd", "adam", "adagrad", "rmsprop", "lbfgs", "adafactor")),
        *(("sgd", key) for key in ("momentum", "weight_decay", "dampening")),
        *(("rmsprop", key) for key in ("alpha", "eps", "momentum")),
        ("adadelta", "rho"),
        ("adagrad", "initial_accumulator_value"),
        ("lbfgs", "history_size"),
    ],
)
def test_check_number_below_0_is_refused_in_one_sentence(name: str, key: str, value: float) -> None:
    with pytest.raises(LearnerError, match=rf"^Optimizer {name}: {key} must be at least 0, got {value}\.$"):
        check_optimizer(Named(name=name, **{key: value}), is_server=False)


def test_check_number_below_0_passes_where_torchs_own_is_one() -> None:
    check_optimizer(Named(name="adafactor", beta2_decay=-0.5), is_server=False)


def test_check_lbfgs_serves_clients_and_without_a_search_the_server() -> None:
    check_optimizer(Named(name="lbfgs", line_search_fn="strong_wolfe"), is_server=False)
    check_optimizer(Named(name="lbfgs", history_size=5), is_server=True)
    with pytest.raises(LearnerError, match=r"Optimizer lbfgs: line_search_fn must be left out of a server step"):
        check_optimizer(Named(name="lbfgs", line_search_fn="strong_wolfe"), is_server=True)


def quadratic_descent(server: Named, steps: int, through_bytes: bool = False) -> list[float]:
    """Minimise 1/2 sum_i c_i x_i^2 by server steps on minus its gradient; return the distance from the minimum after each."""
    curvature = torch.tensor([1.0, 10.0, 100.0])
    state, distances = {"x": torch.ones(3)}, []
    slots: dict[str, Tensor] = {}
    for _ in range(steps):
        optimizer = ServerOptimizer(server, slots)
        state = dict(optimizer.step({"x": state["x"].clone()}, {"x": -curvature * state["x"]}))
        slots = (
            load(save({name: slot.contiguous() for name, slot in optimizer.slots().items()}))
            if through_bytes
            else optimizer.slots()
        )
        distances.append(float(state["x"].norm()))
    return distances


def test_lbfgs_server_steps_find_the_minimum_of_a_long_valley_that_plain_steps_do_not() -> None:
    found = quadratic_descent(Named(name="lbfgs", learning_rate=1.0), 25)
    plain = quadratic_descent(Named(name="sgd", learning_rate=0.019), 25)
    assert found[-1] < 1e-4
    assert plain[-1] > 0.5


def test_lbfgs_server_steps_are_the_same_after_a_way_through_a_checkpoint() -> None:
    server = Named(name="lbfgs", learning_rate=0.5, history_size=3)
    assert quadratic_descent(server, 12, through_bytes=True) == quadratic_descent(server, 12)


def test_lbfgs_server_step_is_that_of_one_optimizer_that_lives_on() -> None:
    curvature, x = torch.tensor([1.0, 10.0, 100.0]), torch.ones(3, requires_grad=True)
    whole = torch.optim.LBFGS([x], lr=0.5, max_iter=1)
    expected = []
    for _ in range(6):
        x.grad = curvature * x.detach()
        whole.step(lambda: torch.zeros(()))  # type: ignore[no-untyped-call]
        expected.append(float(x.detach().norm()))
    assert quadratic_descent(Named(name="lbfgs", learning_rate=0.5), 6) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("named", CONFIGURED, ids=lambda named: f"{named.name}-{len(named.parameters)}")
def test_check_every_other_optimizer_passes(named: Named) -> None:
    check_optimizer(named, is_server=False)
    check_optimizer(named, is_server=True)


def test_check_list_with_an_optional_number_passes() -> None:
    check_optimizer(Named(name="adafactor", eps=[None, 0.001]), is_server=True)


def test_plain_sgd_steps_as_torchs_to_the_bit() -> None:
    ours, theirs = ([tensor.requires_grad_() for tensor in tensors(0).values()] for _ in range(2))
    descent, sgd = build_optimizer(Named(name="sgd", learning_rate=0.3), ours), torch.optim.SGD(theirs, lr=0.3)
    assert isinstance(descent, Descent)

    def closure(optimizer: Optimizer, parameters: list[Tensor]) -> float:
        # The first parameter has no gradient.
        loss = torch.stack([(parameter**3).sum() for parameter in parameters[1:]]).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    for _ in range(3):
        descent.step(partial(closure, descent, ours))
        sgd.step(partial(closure, sgd, theirs))
        for own, parameter in zip(ours, theirs, strict=True):
            assert torch.equal(own, parameter)
    assert not descent.state


def test_plain_sgd_imports_no_compiler() -> None:
    script = """
import sys, torch
from models.optimizers import ServerOptimizer, check_optimizer
from wire.spec import Named
named = Named(name="sgd", learning_rate=0.1)
check_optimizer(named, is_server=True)
ServerOptimizer(named).step({"w": torch.zeros(2)}, {"w": torch.ones(2)})
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
