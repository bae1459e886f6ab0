"""Seats whose workers die: who is given up, what the round does then, and what is left at the end."""

import asyncio
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from client.training import Result
from models import Evaluation
from simulation.cohort import Refused
from simulation.crew import AHEAD_BYTES, DEATHS, CrewCohort, Seat
from simulation.errors import WorkerLostError
from tests.simulation.federations import federation, play, sites
from wire.spec import RunSpec
from wire.tensors import Vector

SIZE = 1210


class FragileSeat:
    """A seat whose worker dies under one client, in training, in evaluation or both."""

    def __init__(self, trains: bool, evaluates: bool) -> None:
        self.trains, self.evaluates = trains, evaluates
        self.replaced = 0
        self.is_closed = False

    def train(self, client_id: str, round_number: int) -> Result | Refused:
        if client_id == "site-1" and not self.trains:
            raise WorkerLostError("Worker 7 died.")
        return Result(np.ones(SIZE, dtype=np.float32), 1, 1, {}, 0.0)

    def evaluate(self, client_ids: Sequence[str]) -> list[Evaluation | Refused]:
        if "site-1" in client_ids and not self.evaluates:
            raise WorkerLostError("Worker 7 died.")
        return [Evaluation(1, {"loss": 1.0}) for _ in client_ids]

    def replace(self) -> None:
        self.replaced += 1

    def interrupt(self) -> None:
        pass

    def close(self) -> None:
        assert not self.is_closed
        self.is_closed = True


class FragileCohort(CrewCohort):
    """A crew without workers."""

    def __init__(self, spec: RunSpec, trains: bool, evaluates: bool) -> None:
        self.seats = [FragileSeat(trains, evaluates) for _ in range(2)]
        super().__init__(spec, sites(), lambda: self.seats)

    def _publish(self, vector: Vector) -> None:
        pass

    def _stop(self) -> None:
        pass


def configured() -> RunSpec:
    spec = federation(rounds=1)
    return spec.model_copy(update={"cohort": spec.cohort.model_copy(update={"quorum": 5})})


async def test_client_under_which_workers_die_is_refused_and_the_round_goes_on(tmp_path: Path) -> None:
    cohort = FragileCohort(configured(), trains=False, evaluates=True)
    _, (record,) = await play(cohort, configured(), tmp_path / "run")
    assert len(record.contributions) == 5
    (refusal,) = record.refusals
    assert (refusal.client_id, refusal.reason) == ("site-1", "client_error")
    assert refusal.detail == f"{DEATHS} workers must not die under one client, the last one: Worker 7 died."
    assert sum(seat.replaced for seat in cohort.seats) == DEATHS
    assert all(seat.is_closed for seat in cohort.seats)


async def test_client_under_whose_evaluation_workers_die_costs_no_other_result(tmp_path: Path) -> None:
    cohort = FragileCohort(configured(), trains=True, evaluates=False)
    _, (record,) = await play(cohort, configured(), tmp_path / "run")
    assert len(record.contributions) == 6
    assert record.metrics == {"loss": 1.0}
    assert sum(seat.replaced for seat in cohort.seats) >= DEATHS


async def test_works_are_done_no_further_ahead_than_contributions_may_wait() -> None:
    cohort = FragileCohort(configured(), trains=True, evaluates=True)
    most, may_end, are_begun = 2 * len(cohort.seats), threading.Event(), threading.Event()
    begun: list[int] = []

    def work(number: int, seat: Seat) -> int:
        begun.append(number)
        if len(begun) == most:
            are_begun.set()
        assert number or may_end.wait(20)
        return number

    done = cohort._in_order([partial(work, number) for number in range(10)], AHEAD_BYTES)
    first = asyncio.ensure_future(anext(done))
    assert await asyncio.to_thread(are_begun.wait, 20)
    await asyncio.sleep(0.1)
    assert begun == list(range(most))
    may_end.set()
    assert [await first, *[number async for number in done]] == list(range(10))
    cohort.close()
