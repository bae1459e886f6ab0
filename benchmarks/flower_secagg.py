"""Flower's SecAgg+, for comparison: its workflow and its client mod in one process, without a network.

The clients are as many, share with everybody, and need as many shares as Choral's; the other settings are at their defaults. CPU time is
measured as Choral's is: without the quantisation of the update, training and averaging, which each side does beside. The app is
`benchmarks/flower_secagg_app.py`.

Source: Li, Beutel, de Gusmão et al., "Secure Aggregation for Federated Learning in Flower", DistributedML 2021.
https://arxiv.org/abs/2205.06117
"""

import argparse
import json
import sys

from benchmarks.peer_process import Peer, exit_on_error
from benchmarks.secagg_result import Case, SessionResult

PEER = Peer(
    name="Flower's SecAgg+",
    module="benchmarks.flower_secagg_app",
    packages=("flwr", "numpy"),
    requirement="flwr==1.41.*",
    environment={"HOME": "{home}", "FLWR_HOME": "{home}", "FLWR_TELEMETRY_ENABLED": "0"},
)
FULL_COUNT = 3


def measure(
    case: Case, threshold: int, full_count: int, python: str = sys.executable, timeout_seconds: float = 3600.0
) -> SessionResult:
    """Play one session.

    Args:
        case: Those who are gone answer the request for their vector with an error.
        threshold: Shares that give a secret back.
        full_count: Clients that make all their masks, 1 or more; those are whose time counts. The others do everything else. If all
            clients make theirs, the mean that comes out is checked.
        python: Interpreter of the environment that Flower is installed in.
        timeout_seconds: Limit for everything.

    Raises:
        PeerMissingError: Flower is not installed beside `python`. Nothing was started.
        PeerFailedError: The session failed or ran out of time. Its process has ended.
    """
    numbers = (case.client_count, case.parameter_count, case.gone_count, threshold, full_count)
    line = PEER.last_line(python, [str(number) for number in numbers], timeout_seconds)
    try:
        return SessionResult(**json.loads(line))
    except (TypeError, ValueError) as error:
        raise PEER.no_result(line) from error


def main() -> None:
    """Read the command line, measure and print the figures as one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flower_secagg", description="Time Flower's SecAgg+.")
    parser.add_argument("clients", type=int, help="clients, 3 or more")
    parser.add_argument("parameters", type=int, help="parameters of the model")
    parser.add_argument("--gone", type=int, default=0, help="clients that do not upload")
    parser.add_argument("--threshold", type=int, required=True, help="shares that give a secret back")
    parser.add_argument("--full", type=int, default=FULL_COUNT, help="clients that make all their masks")
    parser.add_argument("--flower-python", default=sys.executable, help="interpreter that flwr is installed beside")
    arguments = parser.parse_args()
    with exit_on_error():
        case = Case(arguments.clients, arguments.parameters, arguments.gone)
        print(measure(case, arguments.threshold, arguments.full, arguments.flower_python).json)


if __name__ == "__main__":
    main()
