"""When a simulated client is there: periods of presence and absence in turn, found at any moment without those before it."""

import math
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from wire.realism import PresenceSpec
from wire.seeds import derive_seed


@dataclass(frozen=True, slots=True)
class Presence:
    """One period of a client.

    Attributes:
        is_present: Whether the client is there.
        since: When the period began, seconds since the run's start; before the run it is negative, down to minus infinity.
        until: When it ends and the next begins; infinite if it never does.
    """

    is_present: bool
    since: float
    until: float


ALWAYS = Presence(is_present=True, since=-math.inf, until=math.inf)


class Periods(Protocol):
    """The periods of one client."""

    def at(self, time: float) -> Presence:
        """Return the period that contains `time`, seconds since the run's start."""


class RandomPeriods:
    """Periods of exponential length.

    Two independent Poisson processes stand for them: one of calls to come, one of calls to go, and the client is as the latest call of
    both has it. From any moment, the next call to go is then exponential with the mean length of presence, and the next call to come
    with that of absence, whatever was before. So no period has to be drawn after the one before it, and at the run's start each
    client is somewhere within a period.

    Source: Kingman, "Poisson Processes", Oxford University Press, 1993, chapters 2 and 5.
    """

    def __init__(self, spec: PresenceSpec, seed: int, client_id: str) -> None:
        self._comings = _PoissonProcess(spec.absent_seconds, seed, "come", client_id)
        self._goings = _PoissonProcess(spec.present_seconds, seed, "go", client_id)

    def at(self, time: float) -> Presence:
        """Return the period that contains `time`."""
        coming, going = self._comings.last(time), self._goings.last(time)
        if coming >= going:
            since = self._comings.after(math.nextafter(going, -math.inf))
            return Presence(is_present=True, since=since, until=self._goings.after(time))
        return Presence(is_present=False, since=self._goings.after(coming), until=self._comings.after(time))


class TracedPeriods:
    """Periods that were measured, once or over and over."""

    def __init__(self, edges: Sequence[float], cycle_seconds: float | None) -> None:
        """Build the periods.

        Args:
            edges: When the client comes and goes, in turn, ascending, seconds from 0 to the end of the cycle, (2 * periods,).
            cycle_seconds: When the periods begin anew; None for never.
        """
        is_wrapped = bool(edges) and edges[0] == 0 and edges[-1] == cycle_seconds
        self._edges = edges[1:-1] if is_wrapped else edges
        self._is_first_present = is_wrapped
        self._cycle_seconds = cycle_seconds

    def at(self, time: float) -> Presence:
        """Return the period that contains `time`."""
        passed = self._passed(time)
        is_present = self._is_first_present != (passed % 2 == 1)
        return Presence(is_present, self._edge(passed - 1), self._edge(passed))

    def _passed(self, time: float) -> int:
        """Return how many edges there are up to `time`, since 0."""
        if self._cycle_seconds is None or not self._edges:
            return bisect_right(self._edges, time)
        cycle = math.floor(time / self._cycle_seconds)
        passed = cycle * len(self._edges) + bisect_right(self._edges, time - cycle * self._cycle_seconds)
        # The rounding of a late time may be wrong by an edge. A period must hold at its own `since` and not at its `until`.
        while self._edge(passed) <= time:
            passed += 1
        while self._edge(passed - 1) > time:
            passed -= 1
        return passed

    def _edge(self, index: int) -> float:
        if self._cycle_seconds is not None and self._edges:
            cycle, index = divmod(index, len(self._edges))
            return cycle * self._cycle_seconds + self._edges[index]
        if 0 <= index < len(self._edges):
            return self._edges[index]
        return math.copysign(math.inf, index)


class _PoissonProcess:
    """Moments of a Poisson process over all of time, drawn in blocks that have a seed each."""

    LEAST_COUNT = 16
    BLOCKS_KEPT = 3

    def __init__(self, mean_seconds: float, seed: int, purpose: str, client_id: str) -> None:
        # A power of two, so that no rounding takes a time for one of another block.
        _, exponent = math.frexp(self.LEAST_COUNT * mean_seconds)
        self._block_seconds = math.ldexp(1.0, exponent)
        self._mean_count = self._block_seconds / mean_seconds
        self._seed, self._purpose, self._client_id = seed, purpose, client_id
        self._blocks: dict[int, array[float]] = {}

    def last(self, time: float) -> float:
        """Return the last moment up to `time`."""
        number = math.floor(time / self._block_seconds)
        while not (position := bisect_right(block := self._block(number), time)):
            number -= 1
        return block[position - 1]

    def after(self, time: float) -> float:
        """Return the first moment later than `time`."""
        number = math.floor(time / self._block_seconds)
        while (position := bisect_right(block := self._block(number), time)) == len(block):
            number += 1
        return block[position]

    def _block(self, number: int) -> "array[float]":
        if (block := self._blocks.get(number)) is None:
            if len(self._blocks) == self.BLOCKS_KEPT:
                del self._blocks[next(iter(self._blocks))]
            block = self._blocks[number] = self._draw(number)
        return block

    def _draw(self, number: int) -> "array[float]":
        """Draw a block: a number of moments by Poisson's law, each anywhere in it."""
        seed = derive_seed(self._seed, f"{self._purpose} {number}", client_id=self._client_id)
        generator = np.random.Generator(np.random.Philox(seed))
        places = np.sort(generator.random(generator.poisson(self._mean_count)))
        return array("d", ((number + places) * self._block_seconds).tobytes())
