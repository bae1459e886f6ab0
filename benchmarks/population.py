"""Rounds of 100 clients out of ever larger populations: what grows with the population, and not with the cohort.

The clients hold 20 random images of the digits' size each and train the digits' network on them; nothing is evaluated. Time and memory of
a round should be those of its cohort: only the data itself, and the clients' names, grow with the population.
"""

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
import torch

from benchmarks.choral_simulation import spec_of, write_data
from benchmarks.peer_process import PeerFailedError, exit_on_error
from benchmarks.peer_result import evenly, process_seconds, rounds_argument, summarize
from benchmarks.simulation_workloads import WORKLOADS, ClientData, Workload

COHORT_SIZE = 100
EXAMPLES_PER_CLIENT = 20
TIMEOUT_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class PopulationResult:
    """What was measured of a population. Memory is resident, in MB (10^6 bytes).

    Attributes:
        round_seconds: Median from the end of one round to the end of the next, all but the first.
        first_round_seconds: From the start of the process to the end of the first round.
        rss_mb: After the first round.
        growth_mb: From then to the end of the last round.
        data_mb: Size of all clients' examples.
    """

    round_seconds: float
    first_round_seconds: float
    rss_mb: float
    growth_mb: float
    data_mb: float


def workload_of(client_count: int) -> Workload:
    """Return the workload of a population."""
    digits, example_count = WORKLOADS["digits-cnn"], EXAMPLES_PER_CLIENT * client_count
    return Workload(
        "population",
        digits.learner,
        digits.build,
        functools.partial(_draw_images, example_count),
        example_count,
        client_count,
        COHORT_SIZE,
    )


def measure(client_count: int, rounds: int, folder: Path) -> PopulationResult:
    """Run a simulation in a fresh process.

    Args:
        client_count: `COHORT_SIZE` or more.
        rounds: Rounds to run, 2 or more.
        folder: Where the examples lie, or are written.

    Raises:
        PeerFailedError: The process failed or ran out of time. It has ended.
    """
    data = write_data(workload_of(client_count), folder)
    arguments = [str(client_count), str(data), "--rounds", str(rounds)]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.population", *arguments],
            cwd=Path(__file__).resolve().parents[1],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise PeerFailedError(
            f"Choral: {rounds} rounds of {client_count} clients must end in time, got no end."
        ) from error
    if done.returncode:
        raise PeerFailedError(
            f"Choral: exit status of {client_count} clients must be 0, got {done.returncode}.\n{done.stderr[-3000:]}"
        )
    return PopulationResult(**json.loads(done.stdout.splitlines()[-1]))


def run(client_count: int, rounds: int, data: Path) -> PopulationResult:
    """Run the simulation in this process; see `measure`."""
    # Here, so that its time counts in the first round, as elsewhere.
    import choral

    workload, process = workload_of(client_count), psutil.Process()
    ends: list[float] = []
    resident: list[int] = []

    def note(_: object) -> None:
        ends.append(process_seconds())
        resident.append(process.memory_info().rss)

    with tempfile.TemporaryDirectory() as folder:
        choral.simulate(
            spec_of(workload, rounds),
            folder,
            note,
            data=f"npz:{data}",
            clients=client_count,
            held_out=0.0,
            device="cpu",
        )
    with np.load(data, allow_pickle=False) as arrays:
        data_bytes = sum(arrays[name].nbytes for name in arrays.files)
    figures = summarize(evenly(ends), workload.steps_per_round)
    growth = resident[-1] - resident[0]
    return PopulationResult(
        figures.round_seconds, figures.first_round_seconds, resident[0] / 1e6, growth / 1e6, data_bytes / 1e6
    )


def median(results: Sequence[PopulationResult]) -> PopulationResult:
    """Return the median of each figure over repeats, one or more."""
    names = PopulationResult.__dataclass_fields__
    return PopulationResult(**{name: statistics.median(asdict(result)[name] for result in results) for name in names})


def flat(results: Mapping[int, Sequence[PopulationResult]]) -> dict[str, float | None]:
    """Return the medians of populations by name, such as "population_1000_rss_mb"; None for what was not run."""
    names = PopulationResult.__dataclass_fields__
    return {
        f"population_{client_count}_{name}": asdict(median(repeats))[name] if repeats else None
        for client_count, repeats in results.items()
        for name in names
    }


def _draw_images(count: int) -> ClientData:
    generator = np.random.default_rng(0)
    images = generator.standard_normal((count, 1, 8, 8), dtype=np.float32)
    return torch.from_numpy(images), torch.from_numpy(generator.integers(10, size=count))


def main() -> None:
    """Read the command line, simulate in this process and print the figures as one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.population", description="Time rounds of a population.")
    parser.add_argument("clients", type=int, help="clients, of which 100 train in a round")
    parser.add_argument("data", type=Path, help="NPZ file of the examples; written if it is not there")
    parser.add_argument("--rounds", type=rounds_argument, default=21, help="rounds to run; the first is not counted")
    arguments = parser.parse_args()
    if not arguments.data.exists():
        inputs, targets = workload_of(arguments.clients).load()
        np.savez(arguments.data, x=inputs.numpy(), y=targets.numpy())
    with exit_on_error():
        print(json.dumps(asdict(run(arguments.clients, arguments.rounds, arguments.data))))


if __name__ == "__main__":
    main()
