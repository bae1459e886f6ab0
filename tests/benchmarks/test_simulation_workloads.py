import copy

import pytest
import torch

from benchmarks import plain_loop
from benchmarks.peer_result import check_rounds, evenly, summarize
from benchmarks.simulation_workloads import WORKLOADS, Workload
from client.data import load, parse_source
from models import build_learner
from models.classifier import Classifier
from wire.spec import Named


@pytest.mark.parametrize("workload", list(WORKLOADS.values()), ids=lambda item: item.name)
def test_build_has_the_parameters_and_the_logits_of_the_learner(workload: Workload) -> None:
    # Drawn, because all images of the largest workload would swell this process, and the peaks of those that it starts.
    inputs = torch.rand(3, *workload.learner.get("image", [1, 8, 8]))
    learner = build_learner(Named.model_validate(workload.learner))
    assert isinstance(learner, Classifier)
    plain, built = workload.build().eval(), learner.build().eval()
    plain.load_state_dict(dict(zip(plain.state_dict(), built.state_dict().values(), strict=True)))
    assert torch.equal(plain(inputs), built(inputs))


@pytest.mark.parametrize(
    ("name", "parameter_count", "steps_per_round"),
    [
        ("digits-cnn", 13_706, 40),
        ("digits-cnn-100", 13_706, 200),
        ("digits-mlp", 4_810, 40),
        ("pfl-cifar", 1_626_442, 250),
    ],
)
def test_workload_has_the_stated_size(name: str, parameter_count: int, steps_per_round: int) -> None:
    workload = WORKLOADS[name]
    assert sum(parameter.numel() for parameter in workload.build().parameters()) == parameter_count
    assert workload.steps_per_round == steps_per_round


def test_clients_hold_every_digit_once_and_take_equally_many_steps() -> None:
    workload = WORKLOADS["digits-cnn"]
    clients = workload.clients()
    assert [len(targets) for _, targets in clients] == [18] * 97 + [17] * 3
    dealt = torch.cat([inputs for inputs, _ in clients])
    assert torch.equal(dealt.sum(0), load(parse_source("digits")).inputs.sum(0))
    steps = {plain_loop.fit(workload.build(), data, workload) for data in (clients[0], clients[-1])}
    assert steps == {workload.steps_per_client}


def test_average_puts_the_weighted_mean_of_the_clients_in_place() -> None:
    workload = WORKLOADS["digits-mlp"]
    clients = workload.clients()
    cohort = [clients[0], clients[-1]]
    model = workload.build()
    untrained = copy.deepcopy(model)
    torch.manual_seed(0)
    assert plain_loop.average(model, cohort, workload) == 4
    torch.manual_seed(0)
    expected = [torch.zeros_like(parameter) for parameter in model.parameters()]
    for data in cohort:
        local = copy.deepcopy(untrained)
        plain_loop.fit(local, data, workload)
        for total, parameter in zip(expected, local.parameters(), strict=True):
            total += len(data[1]) / 35 * parameter.detach()
    for parameter, total in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), total)


def test_evenly_spreads_rounds_that_were_told_of_at_once() -> None:
    assert evenly([9.0, 12.0, 12.0, 15.0]) == [9.0, 11.0, 13.0, 15.0]


def test_summarize_takes_the_median_of_all_rounds_but_the_first() -> None:
    result = summarize([9.0, 10.0, 12.0, 15.0], 4)
    assert (result.first_round_seconds, result.round_seconds, result.step_seconds) == (9.0, 2.0, 0.5)


def test_check_rounds_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2, of which the first is not counted, got 1"):
        check_rounds(1)
