"""pfl-research's simulation, for comparison: federated averaging with its PyTorch model and its simulated backend.

The settings are those of its own benchmarks, without their central evaluation. The script is
`benchmarks/pfl_simulation_app.py`.

Source: Granqvist et al., "pfl-research: simulation framework for accelerating research in Private Federated Learning",
NeurIPS 2024. https://arxiv.org/abs/2404.06430 and https://apple.github.io/pfl-research/
"""

import argparse
import contextlib
import socket
import sys

from benchmarks.peer_process import Peer, exit_on_error
from benchmarks.peer_result import PeerResult, check_rounds, rounds_argument
from benchmarks.simulation_workloads import WORKLOADS, Workload

PEER = Peer(
    name="pfl-research",
    module="benchmarks.pfl_simulation_app",
    packages=("pfl", "torch"),
    requirement="pfl[pytorch]==0.6.0",
)


def measure(
    workload: Workload,
    rounds: int,
    python: str = sys.executable,
    processes: int = 1,
    timeout_seconds: float = 600.0,
) -> PeerResult:
    """Run rounds of federated averaging between simulated users.

    Args:
        workload: One of `WORKLOADS`. Each of its clients is a user.
        rounds: Rounds to run, 2 or more; the first is left out of the medians.
        python: Interpreter of the environment that pfl-research is installed in.
        processes: Processes that share the users of a round, 1 or more, joined by torch's gloo. Several have one thread of
            torch each, a single one as many as torch takes.
        timeout_seconds: Limit for everything.

    Raises:
        ValueError: There are too few rounds. Nothing was started.
        PeerMissingError: pfl-research or torch is not installed beside `python`. Nothing was started.
        PeerFailedError: The simulation failed or ran out of time. All processes have ended.
    """
    arguments = [workload.name, str(check_rounds(rounds))]
    if processes > 1:
        arguments += ["{rank}", ",".join(f"127.0.0.1:{port}" for port in _free_ports(processes))]
    return PEER.run(python, arguments, timeout_seconds, processes)


def _free_ports(count: int) -> list[int]:
    """Pick ports that are free now; nothing holds them until they are bound again."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [open_socket.getsockname()[1] for open_socket in sockets]


def main() -> None:
    """Read the command line, measure and print the figures as one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pfl_simulation", description="Time pfl's rounds.")
    parser.add_argument("workload", choices=WORKLOADS, help="what is trained")
    parser.add_argument("--rounds", type=rounds_argument, default=12, help="rounds to run; the first is not counted")
    parser.add_argument("--processes", type=int, default=1, help="processes that share the users of a round")
    parser.add_argument("--pfl-python", default=sys.executable, help="interpreter that pfl is installed beside")
    arguments = parser.parse_args()
    workload = WORKLOADS[arguments.workload]
    with exit_on_error():
        print(measure(workload, arguments.rounds, arguments.pfl_python, arguments.processes).json)


if __name__ == "__main__":
    main()
