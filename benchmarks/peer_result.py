"""What is measured of a simulation, Choral's or a peer's, and the clock and the memory it is read from.

Nothing but the standard library is needed here, so that an environment in which Choral is not installed can import this
module too. It reads /proc, so it measures on Linux only.
"""

import argparse
import itertools
import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class PeerResult:
    """What was measured of a simulation.

    Attributes:
        step_seconds: A round over its local steps, those of all its clients.
        round_seconds: From the end of one round to the end of the next, all but the first: the median, or the mean of rounds without
            ends of their own.
        first_round_seconds: From the start of the process, imports and the loading of data included, to the end of the first
            round.
        rss_mb: Peak resident memory, the data included, in MB (10^6 bytes). With several processes the sum of theirs, in
            which what they share counts for each.
        steps_per_round: Local SGD steps of all clients of a round.
    """

    step_seconds: float
    round_seconds: float
    first_round_seconds: float
    rss_mb: float
    steps_per_round: int

    @property
    def json(self) -> str:
        """The result on one line."""
        return json.dumps(asdict(self))


def check_rounds(rounds: int) -> int:
    """Return `rounds`, the first round included, if there is one after the first.

    Raises:
        ValueError: There is none.
    """
    if rounds < 2:
        raise ValueError(f"Rounds must be at least 2, of which the first is not counted, got {rounds}. Run more.")
    return rounds


def rounds_argument(text: str) -> int:
    """Return the rounds that a command line gives; for argparse."""
    try:
        return check_rounds(int(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def process_seconds() -> float:
    """Return the seconds since this process was started, to 0.01 s; their differences are exact."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - _STARTED


def summarize(ends: Sequence[float], steps_per_round: int) -> PeerResult:
    """Return the figures of this process.

    Args:
        ends: The end of each round, 2 or more of them, by `process_seconds`.
        steps_per_round: Local steps of a round.
    """
    seconds = statistics.median(end - start for start, end in itertools.pairwise(ends))
    return PeerResult(seconds / steps_per_round, seconds, ends[0], _peak_rss_bytes() / 1e6, steps_per_round)


def evenly(ends: Sequence[float]) -> list[float]:
    """Return ends of rounds that are equally long, from the first to the last: those that are told of many at a time have only a mean."""
    mean = (ends[-1] - ends[0]) / (len(ends) - 1)
    return [ends[0] + mean * place for place in range(len(ends))]


def _start_time() -> float:
    """Return when this process was started, in seconds since the machine was."""
    # What follows the command's name, which may hold blanks, begins with field 3; the start is field 22 of proc_pid_stat(5).
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return int(fields[22 - 3]) / os.sysconf("SC_CLK_TCK")


def _peak_rss_bytes() -> int:
    # Not getrusage: its peak includes that of the process which started this one.
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return 1024 * int(line.split()[1])


_STARTED = _start_time()
