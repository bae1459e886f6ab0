"""Flower's simulation, for comparison: `run_simulation` with FedAvg on Ray, every setting at its default.

Given are the number of SuperNodes, the part of them that trains in a round, no evaluation and, if wanted, the cores of a
client: with one, as many clients train side by side as there are cores. The app is `benchmarks/flower_simulation_app.py`. Telemetry,
Ray's usage statistics and the update check are off, so that nothing leaves the machine.

Source: Beutel et al., "Flower: A Friendly Federated Learning Research Framework", arXiv 2020.
https://arxiv.org/abs/2007.14390 and https://flower.ai/docs/framework/
"""

import argparse
import sys

from benchmarks.peer_process import Peer, exit_on_error
from benchmarks.peer_result import PeerResult, check_rounds, rounds_argument
from benchmarks.simulation_workloads import WORKLOADS, Workload

PEER = Peer(
    name="Flower's simulation",
    module="benchmarks.flower_simulation_app",
    packages=("flwr", "ray", "torch"),
    requirement="flwr[simulation]==1.41.*",
    environment={
        "HOME": "{home}",
        "FLWR_HOME": "{home}",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_TMPDIR": "{home}",
        "RAY_USAGE_STATS_ENABLED": "0",
    },
)


def measure(
    workload: Workload,
    rounds: int,
    python: str = sys.executable,
    client_cores: int | None = None,
    timeout_seconds: float = 600.0,
) -> PeerResult:
    """Run rounds of FedAvg between simulated clients.

    Args:
        workload: One of `WORKLOADS`. Each of its clients is a SuperNode.
        rounds: Rounds to run, 2 or more; the first, before which Ray is started, is left out of the medians.
        python: Interpreter of the environment that Flower is installed in.
        client_cores: Cores that a client is given; None for Flower's default.
        timeout_seconds: Limit for everything.

    Returns:
        Figures of all of Flower's and Ray's processes; memory is sampled ten times a second.

    Raises:
        ValueError: There are too few rounds. Nothing was started.
        PeerMissingError: Flower, Ray or torch is not installed beside `python`. Nothing was started.
        PeerFailedError: The simulation failed or ran out of time. All processes have ended.
    """
    return PEER.run(python, [workload.name, str(check_rounds(rounds)), str(client_cores or 0)], timeout_seconds)


def main() -> None:
    """Read the command line, measure and print the figures as one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flower_simulation", description="Time Flower's rounds.")
    parser.add_argument("workload", choices=WORKLOADS, help="what is trained")
    parser.add_argument("--rounds", type=rounds_argument, default=6, help="rounds to run; the first is not counted")
    parser.add_argument("--flower-python", default=sys.executable, help="interpreter that flwr is installed beside")
    parser.add_argument("--client-cores", type=int, help="cores of a client; Flower's default without")
    arguments = parser.parse_args()
    with exit_on_error():
        workload, cores = WORKLOADS[arguments.workload], arguments.client_cores
        print(measure(workload, arguments.rounds, arguments.flower_python, cores).json)


if __name__ == "__main__":
    main()
