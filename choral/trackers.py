"""The options that choose trackers of experiments, for `choral serve` and `choral simulate`."""

import hashlib
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer

from server.monitoring.trackers import MLflow, TensorBoard, Tracker, Tracking
from server.records import RoundRecord, RunRecord, RunState
from wire.spec import RunSpec

TensorBoardFolder = Annotated[
    Path | None, typer.Option("--tensorboard", help="Folder for TensorBoard: one in it for each run.")
]
MLflowAddress = Annotated[
    str, typer.Option("--mlflow", envvar="CHORAL_MLFLOW", help="Tracking server of MLflow, such as http://HOST:5000.")
]


def chosen(tensorboard: Path | None, mlflow: str) -> tuple[Tracker, ...]:
    """Return the trackers that were asked for."""
    trackers: list[Tracker] = []
    if tensorboard is not None:
        trackers.append(TensorBoard(tensorboard))
    if mlflow:
        trackers.append(MLflow(mlflow))
    return tuple(trackers)


class TrackedSimulation:
    """A simulation that is tracked, as the run of its folder: the same command goes on in the same run of a tracker.

    Trackers are written in a thread of their own, whatever has come while it was busy at once: a slow one holds nothing up.
    """

    def __init__(self, trackers: tuple[Tracker, ...], spec: RunSpec, folder: Path) -> None:
        where = folder.resolve()
        run_id = f"{where.name}-{hashlib.sha256(str(where).encode()).hexdigest()[:8]}"
        self._run = RunRecord(run_id=run_id, spec=spec, state=RunState.RUNNING, submitted_time=time.time())
        self._rounds: list[RoundRecord] = []
        self._trackings = [Tracking(tracker) for tracker in trackers]
        self._written = [0] * len(trackers)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trackers")
        self._writing: Future[None] | None = None

    def add(self, record: RoundRecord) -> None:
        """Take the next round."""
        self._rounds.append(record)
        if self._writing is None or self._writing.done():
            self._writing = self._thread.submit(self._write, self._run, None)

    def end(self, run: RunRecord, model: Path) -> None:
        """Write what is left, that the simulation has ended, and its model."""
        self._thread.submit(self._write, self._run.with_(state=run.state), model)
        self._thread.shutdown()

    def _write(self, run: RunRecord, model: Path | None) -> None:
        count = len(self._rounds)
        for index, tracking in enumerate(self._trackings):
            is_well = tracking.write(run, self._rounds[self._written[index] : count], model)
            self._written[index] = count if is_well else 0
