"""The Flower app of `benchmarks/flower_simulation.py`: FedAvg in Flower's Message API, trained as the plain loop trains.

It runs where Flower is installed and Choral need not be. A process deals the data once and keeps it.
"""

# Where this file is checked Flower may be missing, and its decorators with it.
# mypy: disable-error-code="untyped-decorator"

import functools
import sys
from collections.abc import Sequence

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.peer_result import process_seconds, summarize
from benchmarks.plain_loop import fit
from benchmarks.simulation_workloads import WORKLOADS, ClientData, Workload

client_app = ClientApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train the model that the message holds on this client's data, and answer with it and the steps that took."""
    workload = WORKLOADS[str(message.content["config"]["workload"])]
    data = _clients(workload.name)[int(context.node_config["partition-id"])]
    model = workload.build()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    steps = fit(model, data, workload)
    metrics = MetricRecord({"num-examples": len(data[1]), "steps": steps})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=message)


def run(workload: Workload, rounds: int, client_cores: int | None) -> list[float]:
    """Run the simulation and return the end of each round, by `process_seconds`.

    Args:
        workload: What is trained.
        rounds: Rounds to run.
        client_cores: Cores that a client is given; None for Flower's default.

    Raises:
        RuntimeError: A client failed, so that some round had fewer steps than it must. The simulation has ended.
    """
    ends: list[float] = []
    steps: list[int] = []
    server_app = ServerApp()

    def sum_steps(replies: list[RecordDict], weighted_by_key: str) -> MetricRecord:
        steps.append(sum(int(reply["metrics"]["steps"]) for reply in replies))
        return MetricRecord({"steps": steps[-1]})

    def note_time(server_round: int, arrays: ArrayRecord) -> None:
        # Called before the first round and at the end of each one.
        if server_round:
            ends.append(process_seconds())

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        strategy = FedAvg(
            fraction_train=workload.cohort_size / workload.client_count,
            fraction_evaluate=0.0,
            min_available_nodes=workload.client_count,
            train_metrics_aggr_fn=sum_steps,
        )
        config = ConfigRecord({"workload": workload.name})
        model = ArrayRecord(workload.build().state_dict())
        strategy.start(grid, model, num_rounds=rounds, train_config=config, evaluate_fn=note_time)

    torch.manual_seed(0)
    run_simulation(
        server_app,
        client_app,
        num_supernodes=workload.client_count,
        backend_config={"client_resources": {"num_cpus": client_cores}} if client_cores else None,
    )
    if steps != [workload.steps_per_round] * rounds:
        raise RuntimeError(f"Flower: each of {rounds} rounds must have {workload.steps_per_round} steps, got {steps}.")
    return ends


@functools.cache
def _clients(name: str) -> Sequence[ClientData]:
    return WORKLOADS[name].clients()


def main() -> None:
    """Run the workload, rounds and cores of a client that the command line gives, 0 for Flower's default, and print the figures."""
    workload, rounds, client_cores = WORKLOADS[sys.argv[1]], int(sys.argv[2]), int(sys.argv[3])
    print(summarize(run(workload, rounds, client_cores or None), workload.steps_per_round).json, flush=True)
