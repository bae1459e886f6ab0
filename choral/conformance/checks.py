"""The checks, by what they show: of a learner on its own, and of whole federations of it.

Each takes a case and raises `Nonconforming` when the learner does not do what it shows.
"""

import math
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from choral.conformance.case import SEED, Case, are_alike, are_equal, copied, generators, require
from choral.conformance.federations import central_state, deployed_model, serial_model, site_of
from choral.conformance.memory import LiveTensors
from models import DataError, Examples, ServerOptimizer, TrainingStopped
from models.saved import read_saved
from server.aggregation import WeightedMean
from wire.grid import Grid
from wire.tensors import Layout, State

NO_ROWS = torch.arange(0)

ROUNDS = 4
"""Rounds in which the loss must fall; a learner whose phases take longer has as many as its spec."""

MOST_MEMORY, LEAST_MEMORY = 2, 0.1
"""What `fit` may take of the bytes that are declared for a step, and what it must take, so that nobody declares any number."""


def init_follows_from_the_seed(case: Case) -> None:
    """`init` gives the same state for a seed, another for another, whatever else draws, and leaves torch's generator alone."""
    before = generators(case.device)
    learner = case.learner()
    first = learner.init(SEED)
    require(are_alike(before, generators(case.device)), "building and `init` must leave torch's generator alone")
    require(are_equal(first, learner.init(SEED)), "`init` must give the same state for the same seed")
    require(are_equal(first, case.learner().init(SEED)), "`init` must depend on the seed and the parameters alone")
    require(
        not are_equal(first, learner.init(SEED + 1)) or not _is_drawn(case, first),
        "`init` must give another state for another seed",
    )


def _is_drawn(case: Case, state: State) -> bool:
    """Tell whether a state must have been drawn: no base gave it, and not each of its tensors is one number."""
    floating = [tensor for tensor in state.values() if tensor.is_floating_point()]
    return case.spec.learner.base is None and any(bool((part != part.flatten()[:1]).any()) for part in floating)


def state_survives_the_vector(case: Case) -> None:
    """State to vector to state is the identity."""
    layout = Layout.of(case.state)
    views = layout.views(layout.flatten(case.state))
    require(all(torch.equal(view, case.state[name]) for name, view in views.items()), "tensors must be float32")


def is_built_without_memory(case: Case) -> None:
    """A coordinator builds it on torch's meta device, and finds the same layouts and the same initial state."""
    learner = case.learner("meta")
    require(are_equal(learner.init(SEED), case.state), "`init` must give the same state on the meta device")
    require(
        learner.contribution_layout == case.learner().contribution_layout,
        "`contribution_layout` must be the same on the meta device",
    )


def loss_falls(case: Case) -> None:
    """A few rounds on its examples lower the loss, and training measures finite numbers."""
    learner, server = case.learner(), ServerOptimizer(case.spec.server.optimizer)
    state = case.state
    before = learner.evaluate(state, case.data, case.data)
    require("loss" in before.metrics, "`evaluate` must report a loss")
    start = found = before.metrics["loss"]
    most = max(ROUNDS, case.spec.rounds)
    for number in range(1, most + 1):
        state = case.next(learner, state, server)
        if number >= ROUNDS and (found := learner.evaluate(state, case.data, case.data).metrics["loss"]) < start:
            return
    require(
        False,
        f"{most} rounds on the same examples must lower the loss, got {start:.6g} before and {found:.6g} after",
    )


def fit_is_a_function(case: Case) -> None:
    """`fit` depends on its arguments alone, and changes neither them nor torch's generator."""
    learner, before = case.learner(), generators(case.device)
    state, kept_state = case.state, copied(case.state)
    kept = Examples(case.data.inputs.clone(), case.data.targets.clone())
    first = case.fit(learner, state)
    vector = first.vector.copy()
    require(are_alike(before, generators(case.device)), "`fit` must leave torch's generator alone")
    require(are_equal(state, kept_state), "`fit` must leave the state unchanged")
    is_kept = _same(kept.inputs, case.data.inputs) and _same(kept.targets, case.data.targets)
    require(is_kept, "`fit` must leave the data unchanged")
    case.fit(learner, learner.init(SEED + 1), case.parts(2)[0])
    learner.evaluate(learner.init(SEED + 2), case.data)
    again = case.fit(learner, state)
    require(again.vector.tobytes() == vector.tobytes(), "`fit` must not depend on what the learner did before")
    require(dict(again.metrics) == dict(first.metrics), "`fit` must measure the same again")
    require(first.example_count == len(case.data), "`fit` must count the examples that it was given")
    require(bool(np.isfinite(vector).all()), "a contribution must be finite")
    layout = learner.contribution_layout
    has_layout = vector.dtype == np.float32 and vector.shape == (layout.size,)
    require(has_layout, "a contribution must have its layout")
    check_metrics(first.metrics)


def _same(left: torch.Tensor, right: torch.Tensor) -> bool:
    return torch.equal(left.nan_to_num(), right.nan_to_num()) if left.is_floating_point() else torch.equal(left, right)


def fit_can_be_stopped(case: Case) -> None:
    """`fit` reports how far it is, up to 1, ends when it is told to, and the learner may be used again."""
    fractions: list[float] = []
    learner = case.learner()
    expected = case.fit(learner, case.state, report=fractions.append).vector.copy()
    require(fractions == sorted(fractions), "`fit` must report fractions that do not fall")
    require(bool(fractions) and math.isclose(fractions[-1], 1.0), "`fit` must report 1 at its end")

    def stop(fraction: float) -> None:
        raise TrainingStopped("The round closed.")

    try:
        case.fit(learner, case.state, report=stop)
    except TrainingStopped:
        pass
    else:
        require(False, "`fit` must end when `report` raises `TrainingStopped`")
    again = case.fit(learner, case.state).vector
    require(again.tobytes() == expected.tobytes(), "a learner that was stopped must be as good as new")


def memory_is_as_declared(case: Case) -> None:
    """`fit` holds at most twice as many bytes at a time as `step_bytes` says, which is an estimate and leaves no trace."""
    learner, before = case.learner(), generators(case.device)
    declared = learner.step_bytes(case.data, case.spec.local)
    require(are_alike(before, generators(case.device)), "`step_bytes` must leave torch's generator alone")
    with LiveTensors() as live:
        vector = case.fit(learner, case.state).vector.copy()
    require(
        live.most <= MOST_MEMORY * declared,
        f"`fit` must hold at most {MOST_MEMORY} times the {declared:,} bytes of `step_bytes`, got {live.most:,}",
    )
    require(
        live.most >= LEAST_MEMORY * declared,
        f"`fit` must hold at least {LEAST_MEMORY} times the {declared:,} bytes of `step_bytes`, got {live.most:,}",
    )
    is_same = case.fit(case.learner(), case.state).vector.tobytes() == vector.tobytes()
    require(is_same, "`fit` must give the same after `step_bytes`")


def bad_data_is_refused(case: Case) -> None:
    """No examples, inputs of another shape and inputs of another type each get a `DataError`."""
    learner, data = case.learner(), case.data
    other_type = data.inputs.nan_to_num().long() if data.inputs.is_floating_point() else data.inputs.float()
    for what, bad in {
        "inputs with one axis more": Examples(data.inputs[..., None], data.targets),
        "inputs of another type": Examples(other_type, data.targets),
        "targets with two axes more": Examples(data.inputs, data.targets[..., None, None]),
    }.items():
        _must_refuse(what, lambda bad=bad: learner.check(bad))  # type: ignore[misc]
    _must_refuse(
        "training without examples", lambda: case.fit(learner, case.state, data.select(NO_ROWS.to(case.device)))
    )


def _must_refuse(what: str, act: Callable[[], object]) -> None:
    try:
        act()
    except DataError as error:
        require(len(str(error)) > 20 and "got" in str(error), f"the error for {what} must say what was got")
        return
    require(False, f"{what} must be refused with a DataError")


def evaluate_is_a_function(case: Case) -> None:
    """`evaluate` gives the same numbers again, changes neither state nor data nor torch's generator, and takes no examples for none."""
    learner, before = case.learner(), generators(case.device)
    kept, inputs = copied(case.state), case.data.inputs.clone()
    first = learner.evaluate(case.state, case.data, case.data)
    check_metrics(first.metrics)
    require(first == learner.evaluate(case.state, case.data, case.data), "`evaluate` must give the same again")
    require(are_alike(before, generators(case.device)), "`evaluate` must leave torch's generator alone")
    require(are_equal(kept, case.state), "`evaluate` must leave the state unchanged")
    require(_same(inputs, case.data.inputs), "`evaluate` must leave the data unchanged")
    require(first.example_count == len(case.data), "`evaluate` must count its examples")
    none = learner.evaluate(case.state, case.data.select(NO_ROWS.to(case.device)), case.data)
    require((none.example_count, dict(none.metrics)) == (0, {}), "`evaluate` of no examples must measure nothing")


def check_metrics(metrics: Mapping[str, float]) -> None:
    """Check that a coordinator would take these metrics."""
    for name, value in metrics.items():
        require(re.fullmatch(r"[a-z][a-z0-9_]{0,63}", name) is not None, f"metric {name!r} must have a plain name")
        require(math.isfinite(value), f"metric {name} must be finite, got {value}")


def one_client_is_central_training(case: Case) -> None:
    """A federation of one client ends with the model of a plain loop over `fit` and `apply`, to the bit."""
    found = serial_model(case, {"client": site_of(case.data)}, case.rounds)
    expected = central_state(case, "client", case.rounds)
    is_equal = found.tobytes() == Layout.of(expected).flatten(expected).tobytes()
    require(is_equal, "a federation of one client must end with the model of central training, to the bit")


def order_of_clients_does_not_matter(case: Case) -> None:
    """Clients that are trained and added in another order give the same model, to the bit."""
    parts = case.parts(3)
    forth, back = (_round_in_order(case, order) for order in (parts, parts[::-1]))
    require(are_equal(forth, back), "the model must not depend on the order of the clients")


def _round_in_order(case: Case, parts: Sequence[Examples]) -> State:
    learner, limits = case.learner(), case.spec.limits
    layout = learner.contribution_layout
    total = WeightedMean(Grid(limits.coordinate_bound, limits.weight_cap, len(parts)), layout.size)
    for part in parts:
        total.add(case.fit(learner, case.state, part).vector, len(part))
    travelling = Layout.of(case.state).views(Layout.of(case.state).flatten(case.state))
    server = ServerOptimizer(case.spec.server.optimizer)
    return learner.apply(travelling, layout.views(total.mean()), server, total.weight_total)


def deployment_is_simulation(case: Case) -> None:
    """A few rounds over real gRPC, with a coordinator and clients, end with the model of the serial simulation, to the bit."""
    with tempfile.TemporaryDirectory() as folder:
        path, sites = deployed_model(case, case.parts(2), case.rounds, Path(folder))
        saved = read_saved(path)
    expected = serial_model(case, sites, case.rounds)
    layout, learner = Layout.of(case.state), case.learner()
    state = {name: saved.state[name] for name in case.state}
    require(saved.learner == case.spec.learner, "a saved model must name its learner")
    require(
        layout.flatten(state).tobytes() == expected.tobytes(),
        "a few rounds over gRPC must end with the model of the serial simulation, to the bit",
    )
    in_memory = {**case.state, **layout.views(expected)}
    require(
        learner.evaluate(state, case.data, case.data) == case.learner().evaluate(in_memory, case.data, case.data),
        "a saved model must evaluate as the one in memory",
    )


CHECKS: Mapping[str, Callable[[Case], None]] = {
    check.__name__.replace("_", " "): check
    for check in (
        init_follows_from_the_seed,
        state_survives_the_vector,
        is_built_without_memory,
        fit_is_a_function,
        fit_can_be_stopped,
        loss_falls,
        memory_is_as_declared,
        bad_data_is_refused,
        evaluate_is_a_function,
        one_client_is_central_training,
        order_of_clients_does_not_matter,
        deployment_is_simulation,
    )
}
"""What `choral models check` runs, by name."""
