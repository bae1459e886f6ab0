"""Every way of descent on real digits: gradient descent, one example a step, mini-batches, AdaGrad, RMSprop, Adam and L-BFGS.

Central training is measured on a fifth of the digits, drawn at random; runs by form block on blocks that are nobody's.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models import Examples, build_learner
from tests.models.form_blocks import blocks, played
from tests.simulation.federations import SOFTMAX
from wire.spec import LocalSpec, Named

MLP = Named(name="mlp", inputs=[64], hidden=[64])
NETWORK = {"name": "mlp", "inputs": [1, 8, 8], "hidden": [64]}
LBFGS = {"name": "lbfgs", "learning_rate": 1.0, "max_iter": 20, "line_search_fn": "strong_wolfe"}
SGD = {"name": "sgd", "learning_rate": 0.2}
SPLITS = range(5)

METHODS: dict[str, dict[str, Any]] = {
    "gradient-descent": {"epochs": 1000, "batch_size": "all", "optimizer": {"name": "sgd", "learning_rate": 1.0}},
    "one-example": {"epochs": 10, "batch_size": 1, "optimizer": {"name": "sgd", "learning_rate": 0.05}},
    "mini-batch": {"epochs": 40, "batch_size": 16, "optimizer": SGD},
    "adagrad": {"epochs": 40, "batch_size": 16, "optimizer": {"name": "adagrad", "learning_rate": 0.05}},
    "rmsprop": {"epochs": 40, "batch_size": 16, "optimizer": {"name": "rmsprop", "learning_rate": 0.001}},
    "adam": {"epochs": 40, "batch_size": 16, "optimizer": {"name": "adam", "learning_rate": 0.002}},
    "lbfgs": {"epochs": 3, "batch_size": "all", "optimizer": LBFGS},
}

FLOORS = {
    "gradient-descent": 0.965,
    "one-example": 0.967,
    "mini-batch": 0.962,
    "adagrad": 0.967,
    "rmsprop": 0.965,
    "adam": 0.965,
    "lbfgs": 0.958,
}
"""Means over five splits. Measured: .976, .976, .973, .978, .974, .973 and .967, each to .009 more or less on a single split.

References, of a split or a few: .975, .977, .972, .977, .978, .981 and .968. Over ten splits a plain loop of torch has .976 by
mini-batches, .974 by RMSprop and .975 by Adam, and this .976, .975 and .975: what lies between them and the references is the split.
"""

TORCHS: dict[str, Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]] = {
    "gradient-descent": partial(torch.optim.SGD, lr=1.0),
    "one-example": partial(torch.optim.SGD, lr=0.05),
    "mini-batch": partial(torch.optim.SGD, lr=0.2),
    "adagrad": partial(torch.optim.Adagrad, lr=0.05),
    "rmsprop": partial(torch.optim.RMSprop, lr=0.001),
    "adam": partial(torch.optim.Adam, lr=0.002),
}


def local(method: str, **changes: Any) -> LocalSpec:
    return LocalSpec.model_validate(METHODS[method] | changes)


def halves(digits: Examples, seed: int) -> tuple[Examples, Examples]:
    """Return four fifths of the digits to train on and one to measure on."""
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(seed))
    cut = len(digits) * 4 // 5
    return digits.select(order[:cut]), digits.select(order[cut:])


def fitted(training: Examples, how: LocalSpec, seed: int) -> tuple[dict[str, Tensor], list[float]]:
    """Return the trained state, and what was reported: once a batch."""
    learner = build_learner(MLP, torch.device("cpu"))
    state, reports = learner.init(seed), list[float]()
    generator = torch.Generator().manual_seed(seed)
    change = learner.fit(state, training, how, generator, reports.append).vector
    moved = learner.contribution_layout.views(change)
    return {name: tensor + moved[name] for name, tensor in state.items()}, reports


def accuracy(state: dict[str, Tensor], held_out: Examples) -> float:
    return build_learner(MLP, torch.device("cpu")).evaluate(state, held_out).metrics["accuracy"]


# --- Central training ---


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_method_reaches_its_reference_on_held_out_digits(digits: Examples, method: str) -> None:
    reached = []
    for seed in SPLITS:
        training, held_out = halves(digits, seed)
        reached.append(accuracy(fitted(training, local(method), seed)[0], held_out))
    assert sum(reached) / len(reached) >= FLOORS[method]


@pytest.mark.parametrize(
    ("method", "epochs"),
    [
        ("gradient-descent", 200),
        ("one-example", 2),
        ("mini-batch", 16),
        ("adagrad", 8),
        ("rmsprop", 8),
        ("adam", 8),
        ("lbfgs", 3),
    ],
)
def test_method_learns_in_a_second_by_as_many_steps_as_it_should_take(
    digits: Examples, method: str, epochs: int
) -> None:
    training, held_out = halves(digits, 0)
    how = local(method, epochs=epochs)
    state, reports = fitted(training, how, 0)
    assert accuracy(state, held_out) >= 0.94
    steps = {"gradient-descent": 1, "lbfgs": 1, "one-example": len(training)}.get(method, -(-len(training) // 16))
    assert len(reports) == epochs * steps


def network(start: Mapping[str, Tensor]) -> nn.Sequential:
    """Return what `MLP` describes, made here, with parameters to start from."""
    module = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    for parameter, value in zip(module.parameters(), start.values(), strict=True):
        parameter.data.copy_(value)
    return module


@pytest.mark.parametrize("method", TORCHS)
def test_method_is_a_plain_loop_of_torchs_own_to_the_bit(digits: Examples, method: str) -> None:
    training = digits.select(torch.arange(150))
    how = local(method, epochs=2)
    state, _ = fitted(training, how, 3)
    start = build_learner(MLP, torch.device("cpu")).init(3)
    module = network(start)
    optimizer, generator = TORCHS[method](module.parameters()), torch.Generator().manual_seed(3)
    torch.randint(1 << 62, (), generator=generator)  # the seed of dropout, which this network has not
    for _ in range(2):
        order = torch.randperm(150, generator=generator)
        for begin in range(0, 150, how.batch_size):
            rows = order[begin : begin + how.batch_size]
            optimizer.zero_grad()
            functional.cross_entropy(module(training.inputs[rows]), training.targets[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    for parameter, (name, value) in zip(module.parameters(), start.items(), strict=True):
        assert torch.equal(state[name], value + (parameter.detach() - value))


def test_lbfgs_is_torchs_own_with_a_closure_over_all_examples(digits: Examples) -> None:
    training, _ = halves(digits, 0)
    state, _ = fitted(training, local("lbfgs", epochs=1, optimizer=LBFGS | {"max_iter": 5}), 0)
    module = network(build_learner(MLP, torch.device("cpu")).init(0))
    optimizer = torch.optim.LBFGS(module.parameters(), lr=1.0, max_iter=5, line_search_fn="strong_wolfe")
    losses = []

    def closure() -> float:
        optimizer.zero_grad()
        loss = functional.cross_entropy(module(training.inputs), training.targets)
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(float(loss.detach()))
        return losses[-1]

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    # The search along a line asks for more losses than there are iterations.
    assert len(losses) > 5
    assert losses[-1] < 0.7 * losses[0]
    # Not to the bit: the examples lie in another order.
    for parameter, value in zip(module.parameters(), state.values(), strict=True):
        torch.testing.assert_close(value, parameter.detach(), rtol=0, atol=1e-4)


# --- In a federated run ---


@pytest.mark.parametrize("part", ["local", "server"])
async def test_schedule_that_ends_at_0_leaves_the_last_round_without_a_step(tmp_path: Path, part: str) -> None:
    optimizers = {"local": SGD, "server": {"name": "sgd", "learning_rate": 1.0}}
    changes: dict[str, Any] = {part: {"optimizer": optimizers[part], "schedule": {"kind": "linear"}}}
    some = dict(list(blocks().items())[:2])
    records = await played(SOFTMAX, some, tmp_path / "run", rounds=3, **changes)
    digests = [record.model_sha256 for record in records]
    assert digests[0] != digests[1] == digests[2]


async def late_loss(folder: Path, seed: int, schedule: dict[str, Any], rounds: int) -> float:
    how = {"batch_size": 16, "optimizer": {"name": "sgd", "learning_rate": 5.0}, "schedule": schedule}
    records = await played(SOFTMAX, blocks(), folder, seed, rounds=rounds, local=how)
    assert records[-1].metrics["accuracy"] > 0.84
    return records[-1].metrics["loss"]


async def test_schedule_calms_a_rate_that_is_too_high(tmp_path: Path) -> None:
    constant = await late_loss(tmp_path / "constant", 0, {"kind": "constant"}, 10)
    assert await late_loss(tmp_path / "falling", 0, {"kind": "inverse_root"}, 10) < 0.9 * constant


@pytest.mark.slow
@pytest.mark.parametrize(
    "schedule",
    [
        {"kind": "linear"},
        {"kind": "cosine"},
        {"kind": "cosine", "warmup_rounds": 5},
        {"kind": "exponential", "decay": 0.8},
        {"kind": "step", "every": 5, "decay": 0.3},
        {"kind": "inverse_root"},
    ],
    ids=lambda schedule: "-".join(map(str, schedule.values())),
)
async def test_every_schedule_calms_a_rate_that_is_too_high(tmp_path: Path, schedule: dict[str, Any]) -> None:
    # Measured over three seeds: a loss of .52 without one; .41, .44, .42, .43, .49 and .39 with them.
    constant = [await late_loss(tmp_path / f"constant-{seed}", seed, {"kind": "constant"}, 20) for seed in range(3)]
    scheduled = [await late_loss(tmp_path / f"scheduled-{seed}", seed, schedule, 20) for seed in range(3)]
    assert sum(scheduled) < 0.97 * sum(constant)


@pytest.mark.parametrize(
    ("server", "floor"),
    [
        # Measured with three seeds: .880 to .890, .885 to .893, .866 to .906. A block alone has .82 at best, FedAvg here .87.
        pytest.param({"name": "sgd", "learning_rate": 0.5, "momentum": 0.9}, 0.86, id="momentum"),
        pytest.param({"name": "adam", "learning_rate": 0.05}, 0.86, id="adam"),
        pytest.param({"name": "lbfgs", "learning_rate": 0.5}, 0.84, id="lbfgs"),
    ],
)
async def test_server_optimizer_reaches_its_floor_on_unseen_blocks(
    tmp_path: Path, server: dict[str, Any], floor: float
) -> None:
    how = {"batch_size": 16, "optimizer": SGD}
    records = await played(NETWORK, blocks(), tmp_path / "run", 1, local=how, server={"optimizer": server})
    assert records[-1].metrics["accuracy"] >= floor


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "floor"),
    [
        # Measured with two seeds: .882 and .893, .893 and .890, .898 and .903.
        pytest.param(
            {"epochs": 5, "batch_size": "all", "optimizer": {"name": "sgd", "learning_rate": 1.0}},
            0.86,
            id="gradient-descent",
        ),
        pytest.param({"batch_size": 1, "optimizer": {"name": "sgd", "learning_rate": 0.05}}, 0.86, id="one-example"),
        pytest.param({"batch_size": "all", "optimizer": LBFGS | {"max_iter": 5}}, 0.87, id="lbfgs"),
    ],
)
async def test_clients_method_reaches_its_floor_on_unseen_blocks(
    tmp_path: Path, how: dict[str, Any], floor: float
) -> None:
    records = await played(NETWORK, blocks(), tmp_path / "run", local=how)
    assert records[-1].metrics["accuracy"] >= floor
