"""Metrics over the rounds of a run as curves of a few hundred points, however many rounds there are.

A committed round does not change. So the numbers of the runs that were asked for last are kept, and only what is new is read.
"""

import asyncio
import math
from array import array
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from server.api.history import summaries
from server.records import RoundSummary, RunRecord
from server.store import Store

MOST_RUNS = 64
"""Runs whose numbers are kept, 24 bytes for each round and metric."""

PAGE_ROUNDS = 500

SHORT_COUNT = 2_000
"""Numbers, one for each round and metric, that are gone through at once: a thread would take longer to begin."""

Column = npt.NDArray[np.float64]


class Curve(BaseModel):
    """A metric over the buckets of rounds; null where no round of a bucket has it."""

    mean: list[float | None]
    """Mean over the bucket's rounds of the mean over the clients."""
    low: list[float | None]
    """Least value of a client."""
    high: list[float | None]
    """Greatest value of a client."""


class MetricCurves(BaseModel):
    """Metrics over the rounds of a run."""

    rounds: list[int]
    """Last round of each bucket."""
    series: dict[str, Curve]


class Curves:
    """Makes curves. One per process; used from its event loop alone."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._columns: OrderedDict[str, _Columns] = OrderedDict()

    async def of(self, run: RunRecord, names: Sequence[str], point_count: int) -> MetricCurves:
        """Return metrics of a run in at most `point_count` buckets; all of them without `names`, those that there are with."""
        columns = self._columns.setdefault(run.run_id, _Columns())
        self._columns.move_to_end(run.run_id)
        if len(self._columns) > MOST_RUNS:
            self._columns.popitem(last=False)
        async with columns.reading:
            while columns.last_number < run.round_number:
                new = await summaries(self._store, run, columns.last_number, PAGE_ROUNDS)
                if not new:
                    break
                await asyncio.to_thread(columns.add, new)
            if columns.count <= SHORT_COUNT:
                return columns.curves(names, point_count)
            return await asyncio.to_thread(columns.curves, names, point_count)


class _Columns:
    """The numbers of one run's rounds, read and added to by one at a time, who holds `reading`."""

    def __init__(self) -> None:
        self.reading = asyncio.Lock()
        self.last_number = 0
        self._numbers = array("q")
        self._values: dict[str, array[float]] = {}
        """By metric, its mean, low and high in the first round, those in the second, and so on."""

    @property
    def count(self) -> int:
        """How many numbers there are, one for each round and metric."""
        return len(self._numbers) * len(self._values)

    def add(self, new: Sequence[RoundSummary]) -> None:
        """Add rounds, which follow those that are here."""
        none = (np.nan, np.nan, np.nan)
        for summary in new:
            for name in summary.metrics.keys() - self._values.keys():
                self._values[name] = array("d", none * len(self._numbers))
            for name, values in self._values.items():
                spread = summary.spread.get(name, none)
                values.extend((summary.metrics.get(name, np.nan), spread[0], spread[-1]))
            self._numbers.append(summary.number)
        self.last_number = new[-1].number

    def curves(self, names: Sequence[str], point_count: int) -> MetricCurves:
        """Return metrics in at most so many buckets of equally many rounds."""
        numbers = np.frombuffer(self._numbers, dtype=np.int64)
        width = max(1, -(-self.last_number // point_count))
        buckets = (numbers - 1) // width
        starts = np.flatnonzero(np.diff(buckets, prepend=-1))
        ends = np.append(starts[1:], len(numbers)) - 1
        wanted = [name for name in (names or sorted(self._values)) if name in self._values]
        series = {name: _curve(np.frombuffer(self._values[name]).reshape(-1, 3), starts) for name in wanted}
        return MetricCurves(rounds=numbers[ends].tolist() if len(numbers) else [], series=series)


def _curve(values: Column, starts: npt.NDArray[np.int64]) -> Curve:
    mean, low, high = values.T
    is_known = np.isfinite(mean)
    with np.errstate(all="ignore"):
        means = np.add.reduceat(np.where(is_known, mean, 0.0), starts) / np.add.reduceat(
            is_known.astype(np.int64), starts
        )
        lows, highs = np.fmin.reduceat(low, starts), np.fmax.reduceat(high, starts)
    return Curve(mean=_listed(means), low=_listed(lows), high=_listed(highs))


def _listed(values: Column) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values.tolist()]
