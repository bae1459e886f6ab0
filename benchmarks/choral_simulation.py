"""Choral's own simulation of a workload, in a process of its own, as its peers are measured: no evaluation, every round stored.

A round's time is the mean from the commit of the first to that of the last, with the choice of clients, the exact sum, checkpoints and
the transactions of the store: short rounds are committed several at a time, so that they have no end of their own.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peer_process import Peer, exit_on_error
from benchmarks.peer_result import PeerResult, check_rounds, evenly, process_seconds, rounds_argument, summarize
from benchmarks.simulation_workloads import WORKLOADS, Workload

PEER = Peer(name="Choral", module="benchmarks.choral_simulation", environment={"RAY_TMPDIR": "{home}"})


def write_data(workload: Workload, folder: Path) -> Path:
    """Write a workload's examples where `npz:` reads them, once for all engines, and return the file."""
    path = folder / f"{workload.example_count}-of-{workload.name.partition('-')[0]}.npz"
    if not path.exists():
        inputs, targets = workload.load()
        np.savez(path, x=inputs.numpy(), y=targets.numpy())
    return path


def spec_of(workload: Workload, rounds: int) -> dict[str, Any]:
    """Return the spec of a run that trains as a workload says and evaluates nothing."""
    return {
        "name": workload.name,
        "learner": dict(workload.learner),
        "rounds": rounds,
        "cohort": {"size": workload.cohort_size},
        "local": {
            "epochs": workload.epochs,
            "batch_size": workload.batch_size,
            "optimizer": {"name": "sgd", "learning_rate": workload.learning_rate},
        },
        "evaluate": {"every": 0},
    }


def measure(workload: Workload, rounds: int, engine: str, data: Path, options: Sequence[str] = ()) -> PeerResult:
    """Run a simulation in a fresh process.

    Args:
        workload: One of `WORKLOADS`.
        rounds: Rounds to run, 2 or more; the first is left out of the medians.
        engine: As for `choral simulate --engine`.
        data: What `write_data` returned.
        options: Options of `main`, such as "--threads", "1".

    Raises:
        ValueError: There are too few rounds. Nothing was started.
        PeerFailedError: The process failed or ran out of time. It has ended.
    """
    arguments = [workload.name, engine, str(data), "--rounds", str(check_rounds(rounds)), *options]
    return PEER.run(sys.executable, arguments, timeout_seconds=600.0)


def run(workload: Workload, rounds: int, data: Path, **setting: Any) -> PeerResult:
    """Run the simulation in this process; see `measure`."""
    # Here, so that its time counts, as that of a peer's imports does.
    import choral

    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        result = choral.simulate(
            spec_of(workload, rounds),
            folder,
            lambda _: ends.append(process_seconds()),
            data=f"npz:{data}",
            clients=workload.client_count,
            held_out=0.0,
            **setting,
        )
    for record in result.rounds:
        steps = sum(-(-part.example_count // workload.batch_size) for part in record.contributions) * workload.epochs
        assert steps == workload.steps_per_round, steps
    print(f"engine {result.engine}", file=sys.stderr)
    return summarize(evenly(ends), workload.steps_per_round)


def main() -> None:
    """Read the command line, simulate in this process and print the figures as one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.choral_simulation", description="Time our own rounds.")
    parser.add_argument("workload", choices=WORKLOADS, help="what is trained")
    parser.add_argument("engine", help="as for choral simulate --engine")
    parser.add_argument("data", type=Path, help="NPZ file of the workload's examples; written if it is not there")
    parser.add_argument("--rounds", type=rounds_argument, default=12, help="rounds to run; the first is not counted")
    parser.add_argument("--device", default="auto", help="where clients train")
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--workers", type=int, help="workers of processes and ray")
    arguments = parser.parse_args()
    workload = WORKLOADS[arguments.workload]
    if not arguments.data.exists():
        inputs, targets = workload.load()
        np.savez(arguments.data, x=inputs.numpy(), y=targets.numpy())
    setting = {name: getattr(arguments, name) for name in ("engine", "device", "threads", "workers")}
    with exit_on_error():
        print(run(workload, arguments.rounds, arguments.data, **setting).json)


if __name__ == "__main__":
    main()
