"""Metrics over the rounds of a run as curves of a few hundred points, however many rounds there are.

A committed round does not change. So the numbers of the runs that were asked for last are kept, and only what is new is read.
"""

import asyncio
from collections import OrderedDict, defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from server.history import summaries
from server.records import RoundSummary, RunRecord
from server.store import Store

MOST_RUNS = 32
"""Runs whose numbers are kept, each a few bytes a round and metric."""

PAGE_ROUNDS = 500

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
        self._reading = asyncio.Lock()

    async def of(self, run: RunRecord, names: Sequence[str], point_count: int) -> MetricCurves:
        """Return metrics of a run in at most `point_count` buckets; all of them without `names`, those that there are with."""
        async with self._reading:
            columns = self._columns.setdefault(run.run_id, _Columns())
            self._columns.move_to_end(run.run_id)
            if len(self._columns) > MOST_RUNS:
                self._columns.popitem(last=False)
            while new := await summaries(self._store, run, columns.last_number, PAGE_ROUNDS):
                await asyncio.to_thread(columns.add, new)
            return await asyncio.to_thread(columns.curves, names, point_count)


class _Columns:
    """The numbers of one run's rounds."""

    def __init__(self) -> None:
        self.last_number = 0
        self._numbers: list[int] = []
        self._values: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
        """By metric, its mean, low and high in each round."""

    def add(self, new: Sequence[RoundSummary]) -> None:
        """Add rounds, which follow those that are here."""
        none = (np.nan, np.nan, np.nan)
        for summary in new:
            for name in summary.metrics.keys() - self._values.keys():
                self._values[name] = [none] * len(self._numbers)
            for name, values in self._values.items():
                spread = summary.spread.get(name, none)
                values.append((summary.metrics.get(name, np.nan), spread[0], spread[-1]))
            self._numbers.append(summary.number)
        self.last_number = new[-1].number

    def curves(self, names: Sequence[str], point_count: int) -> MetricCurves:
        """Return metrics in at most so many buckets of equally many rounds."""
        numbers = np.array(self._numbers, dtype=np.int64)
        width = max(1, -(-self.last_number // point_count))
        buckets = (numbers - 1) // width
        starts = np.flatnonzero(np.diff(buckets, prepend=-1))
        ends = np.append(starts[1:], len(numbers)) - 1
        wanted = [name for name in (names or sorted(self._values)) if name in self._values]
        series = {name: _curve(np.array(self._values[name][: len(numbers)]), starts) for name in wanted}
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
    return [value if np.isfinite(value) else None for value in values.tolist()]
