"""The plain loop, for comparison: FedAvg as a researcher writes it in torch, one client after another in one process.

Each client trains a deep copy of the global model with an optimizer of its own; the weighted mean of the copies is the new
global model.
"""

import argparse
import copy
import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.peer_result import PeerResult, check_rounds, process_seconds, rounds_argument, summarize
from benchmarks.simulation_workloads import WORKLOADS, ClientData, Workload

_SEED = 0


def measure(workload: Workload, rounds: int, threads: int, timeout_seconds: float = 600.0) -> PeerResult:
    """Run the loop in a fresh process.

    Args:
        workload: One of `WORKLOADS`.
        rounds: Rounds to run, 2 or more; the first is left out of the medians.
        threads: Threads of torch, 1 or more.
        timeout_seconds: Limit for everything.

    Raises:
        ValueError: There are too few rounds. Nothing was started.
        PeerFailedError: The process failed or ran out of time. It has ended.
    """
    # Not at the top: an environment in which only torch is installed imports this module for `fit`.
    from benchmarks.peer_process import Peer

    arguments = [workload.name, "--rounds", str(check_rounds(rounds)), "--threads", str(threads)]
    return Peer("Plain loop", "benchmarks.plain_loop").run(sys.executable, arguments, timeout_seconds)


def run(workload: Workload, rounds: int, device: str = "cpu") -> PeerResult:
    """Run the loop in this process, with all clients' data on a device; see `measure`."""
    torch.manual_seed(_SEED)
    generator = np.random.default_rng(_SEED)
    clients = [(inputs.to(device), targets.to(device)) for inputs, targets in workload.clients()]
    model = workload.build().to(device)
    ends = []
    for _ in range(rounds):
        cohort = generator.choice(workload.client_count, workload.cohort_size, replace=False)
        steps = average(model, [clients[client] for client in cohort], workload)
        assert steps == workload.steps_per_round, steps
        if device != "cpu":
            torch.accelerator.synchronize()
        ends.append(process_seconds())
    return summarize(ends, workload.steps_per_round)


def average(model: nn.Module, cohort: list[ClientData], workload: Workload) -> int:
    """Put the mean of the clients' models, weighted by their examples, in the place of `model`; return the local steps."""
    steps = 0
    mean = [torch.zeros_like(parameter) for parameter in model.parameters()]
    example_count = sum(len(targets) for _, targets in cohort)
    for data in cohort:
        local = copy.deepcopy(model)
        steps += fit(local, data, workload)
        with torch.no_grad():
            for total, parameter in zip(mean, local.parameters(), strict=True):
                total.add_(parameter, alpha=len(data[1]) / example_count)
    with torch.no_grad():
        for parameter, total in zip(model.parameters(), mean, strict=True):
            parameter.copy_(total)
    return steps


def fit(model: nn.Module, data: ClientData, workload: Workload) -> int:
    """Train `model` on one client's data, and return the steps that took."""
    inputs, targets = data
    optimizer = torch.optim.SGD(model.parameters(), lr=workload.learning_rate)
    model.train()
    steps = 0
    for _ in range(workload.epochs):
        for rows in torch.split(torch.randperm(len(targets), device=targets.device), workload.batch_size):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs[rows]), targets[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            steps += 1
    return steps


def main() -> None:
    """Read the command line, run the loop in this process and print the figures as one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plain_loop", description="Time a plain loop's rounds.")
    parser.add_argument("workload", choices=WORKLOADS, help="what is trained")
    parser.add_argument("--rounds", type=rounds_argument, default=12, help="rounds to run; the first is not counted")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--device", default="cpu", help="where clients train")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(run(WORKLOADS[arguments.workload], arguments.rounds, arguments.device).json)


if __name__ == "__main__":
    main()
