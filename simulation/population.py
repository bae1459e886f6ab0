"""The clients of a simulation: how long each takes, when it falls out, and when it is there.

Everything is a function of the spec, the seed, the client, the round and attempt, and the time (law L8), so that a simulation that goes on
after it was cut off meets the clients that an undisturbed one met. What is drawn once is kept, for clients that were asked about.
"""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simulation.errors import SimulationError
from simulation.presence import ALWAYS, Periods, Presence, RandomPeriods, TracedPeriods
from simulation.trace import Device, Trace, read_trace
from wire.errors import SpecError
from wire.realism import MOST, SimulationSpec
from wire.seeds import derive_seed

FORWARD_PART = 1 / 3
"""Time of a forward pass as a part of that of a training example, whose backward pass takes twice as long."""

SHOWN_COUNT = 3

UNTRACED = Device(None, None, array("d"))


@dataclass(frozen=True, slots=True)
class _Pace:
    seconds_per_example: float
    bytes_per_second: float


class Population:
    """Clients as a spec describes them. Not safe for use by several threads at a time."""

    def __init__(self, spec: SimulationSpec, client_ids: Sequence[str], seed: int) -> None:
        """Build the population.

        Args:
            spec: How clients behave.
            client_ids: Identities of all clients.
            seed: The run's seed, 0 to 2**63 - 1.

        Raises:
            SimulationError: The trace cannot be read, breaks a rule, or lacks a client.
            SpecError: The spec asks for what does not go with this trace.
        """
        self._spec = spec
        self._seed = seed
        self._trace = None if spec.trace is None else _suitable_trace(spec, spec.trace, client_ids)
        self._may_leave = spec.presence is not None or (self._trace is not None and self._trace.has_periods)
        self._paces: dict[str, _Pace] = {}
        self._periods: dict[str, Periods] = {}
        self._latest: dict[str, Presence] = {}

    def train_seconds(  # noqa: PLR0913 - one number of each kind, and the engines ask in one place
        self, client_id: str, round_number: int, attempt: int, example_count: int, epochs: int, byte_count: int
    ) -> float:
        """Return the time from asking a client to train to the end of its upload.

        Args:
            client_id: One of the clients.
            round_number: 1 or more.
            attempt: At this round, from 0.
            example_count: Examples that it trains on.
            epochs: Passes over them.
            byte_count: What goes over its link: the model down and the contribution up.
        """
        pace = self._pace(client_id)
        seconds = byte_count / pace.bytes_per_second + example_count * epochs * pace.seconds_per_example
        return seconds * self._jitter(f"train jitter {attempt}", client_id, round_number)

    def evaluate_seconds(self, client_id: str, round_number: int, example_count: int, byte_count: int) -> float:
        """Return the time from asking a client to evaluate a model of `byte_count` bytes on `example_count` examples to its answer."""
        pace = self._pace(client_id)
        seconds = byte_count / pace.bytes_per_second + example_count * pace.seconds_per_example * FORWARD_PART
        return seconds * self._jitter("evaluate jitter", client_id, round_number)

    def dropout_seconds(self, client_id: str, round_number: int, attempt: int, train_seconds: float) -> float | None:
        """Return how long after being asked a client falls out of work that takes `train_seconds`, or None if it does not."""
        if not self._spec.dropout:
            return None
        generator = self._generator(f"dropout {attempt}", client_id, round_number)
        if generator.random() >= self._spec.dropout:
            return None
        return generator.random() * train_seconds

    def presence(self, client_id: str, time: float) -> Presence:
        """Return the period of presence or absence that contains `time`, seconds since the run's start, at least 0."""
        if not self._may_leave:
            return ALWAYS
        latest = self._latest.get(client_id)
        if latest is None or not latest.since <= time < latest.until:
            latest = self._latest[client_id] = self._periods_of(client_id).at(time)
        return latest

    def next_presence(self, client_id: str, time: float) -> float:
        """Return the first moment from `time` on at which a client is present; infinite if there is none."""
        period = self.presence(client_id, time)
        return time if period.is_present else period.until

    def _pace(self, client_id: str) -> _Pace:
        if (pace := self._paces.get(client_id)) is None:
            pace = self._paces[client_id] = self._draw_pace(client_id)
        return pace

    def _draw_pace(self, client_id: str) -> _Pace:
        device = self._device(client_id)
        per_example, rate = device.seconds_per_example, device.bytes_per_second
        if per_example is None:
            per_example = self._spec.seconds_per_example.draw(self._generator("seconds per example", client_id))
        if rate is None:
            link = self._spec.bytes_per_second
            rate = math.inf if link is None else link.draw(self._generator("bytes per second", client_id))
        return _Pace(per_example, rate)

    def _device(self, client_id: str) -> Device:
        """Return what the trace says of a client."""
        if self._trace is None:
            return UNTRACED
        if self._trace.clients:
            return self._trace.clients[client_id]
        devices = self._trace.devices
        return devices[int(self._generator("device", client_id).integers(len(devices)))]

    def _periods_of(self, client_id: str) -> Periods:
        if (periods := self._periods.get(client_id)) is None:
            periods = self._periods[client_id] = self._new_periods(client_id)
        return periods

    def _new_periods(self, client_id: str) -> Periods:
        if self._spec.presence is not None:
            return RandomPeriods(self._spec.presence, self._seed, client_id)
        return TracedPeriods(self._device(client_id).edges, self._spec.trace_period_seconds)

    def _jitter(self, purpose: str, client_id: str, round_number: int) -> float:
        if not self._spec.jitter:
            return 1.0
        return self._generator(purpose, client_id, round_number).lognormal(0.0, self._spec.jitter)

    def _generator(self, purpose: str, client_id: str, round_number: int = 0) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(derive_seed(self._seed, purpose, round_number, client_id)))


def _suitable_trace(spec: SimulationSpec, path: str, client_ids: Sequence[str]) -> Trace:
    """Read a trace and check that it suits the spec and the clients."""
    trace = read_trace(Path(path), spec.trace_period_seconds or MOST)
    subject = f"Trace {path}"
    if trace.has_periods and spec.presence is not None:
        raise SpecError(
            f"{subject}: simulation.presence must be left out with a trace that has periods of presence, got both. "
            "Remove the key, or the trace's columns from_seconds and until_seconds."
        )
    if not trace.has_periods and spec.trace_period_seconds is not None:
        raise SpecError(
            f"{subject}: simulation.trace_period_seconds must come with a trace that has periods of presence, got "
            f"{spec.trace_period_seconds:g}. Remove the key, or give the trace columns from_seconds and until_seconds."
        )
    missing = [client_id for client_id in client_ids if client_id not in trace.clients] if trace.clients else []
    if missing:
        more = len(missing) - SHOWN_COUNT
        names = ", ".join(map(repr, missing[:SHOWN_COUNT])) + (f" and {more} more" if more > 0 else "")
        raise SimulationError(
            f"{subject}: client must name each of the {len(client_ids)} clients, got none for {len(missing)} of them: "
            f"{names}. Add their rows, or leave out the column so that each client draws a row."
        )
    return trace
