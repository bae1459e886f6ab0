"""Trackers of experiments, which are written what a run has brought: TensorBoard and MLflow.

A run is known by its identity, so that one that is taken up again goes on where it was. Everything here blocks: call it in a thread.
"""

import logging
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from server.errors import ConfigurationError
from server.records import RoundRecord, RunRecord, RunState

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)

EXPERIMENT = "choral"
"""Experiment of MLflow that has all runs."""

MOST_PARAMETERS = 100
"""Parameters that MLflow takes at a time."""


class Tracker(Protocol):
    """Something that is written the rounds of runs."""

    name: str

    def write(self, run: RunRecord, rounds: Sequence[RoundRecord], model: Path | None) -> None:
        """Write committed rounds, ascending, each once; all of them again in a new process, and after a write that failed.

        Args:
            run: The run as it is now.
            rounds: Perhaps none, when only the run has changed.
            model: The file of its last model, when it has ended and has one.
        """


class TensorBoard:
    """Writes a folder of event files for each run."""

    name = "TensorBoard"

    def __init__(self, folder: Path) -> None:
        """Write below `folder`."""
        # Here, because only who asks for it needs the package.
        from torch.utils.tensorboard import SummaryWriter

        self._new_writer = SummaryWriter
        self._folder = folder
        self._writers: dict[str, SummaryWriter] = {}

    def write(self, run: RunRecord, rounds: Sequence[RoundRecord], model: Path | None) -> None:
        """Write the numbers of rounds, and first the spec."""
        try:
            writer = self._writers.get(run.run_id) or self._open(run)
            for record in rounds:
                for name, value in numbers(record):
                    writer.add_scalar(name, value, record.number, record.ended_time)
            writer.flush()
            if run.state.is_final:
                self._writers.pop(run.run_id).close()
        except BaseException:
            self._writers.pop(run.run_id, None)
            raise

    def _open(self, run: RunRecord) -> "SummaryWriter":
        # Whatever was written before is given again, and hidden from here on.
        folder = self._folder / f"{run.spec.name}-{run.run_id}"
        writer = self._writers[run.run_id] = self._new_writer(str(folder), purge_step=0)
        lines = (f"    {name}: {value}" for name, value in parameters(run).items())
        writer.add_text("spec", "\n".join(lines), 0)
        return writer


class MLflow:
    """Writes a run of MLflow for each run, with the spec as parameters and, in the end, the model."""

    name = "MLflow"

    def __init__(self, uri: str) -> None:
        """Write to the tracking server, or the store, at `uri`.

        Raises:
            ConfigurationError: MLflow takes no such address.
        """
        # A server that does not answer is tried again with the next round; and nothing goes anywhere but to it.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # It would tell of each retry, for as long as a server is away; that one is away is told once.
        logging.getLogger("urllib3").setLevel(logging.ERROR)
        from mlflow import entities
        from mlflow.tracking import MlflowClient

        _check_tracking_uri(uri)
        self._entities = entities
        self._uri = uri
        self._new_client = MlflowClient
        self._opened: Any = None
        self._runs: dict[str, tuple[str, int]] = {}

    @property
    def _client(self) -> Any:
        if self._opened is None:
            self._opened = self._new_client(tracking_uri=self._uri)
        return self._opened

    def write(self, run: RunRecord, rounds: Sequence[RoundRecord], model: Path | None) -> None:
        """Write the numbers of rounds that its run does not have yet, and the model."""
        run_id, last = self._runs.get(run.run_id) or self._open(run)
        for record in rounds:
            if record.number > last:
                self._write_round(run_id, record)
                last = record.number
                self._runs[run.run_id] = run_id, last
        if run.state.is_final:
            if model is not None:
                self._client.log_artifact(run_id, str(model), "model")
            status = {RunState.FINISHED: "FINISHED", RunState.STOPPED: "KILLED"}.get(run.state, "FAILED")
            self._client.set_terminated(run_id, status)

    def _write_round(self, run_id: str, record: RoundRecord) -> None:
        when = int((record.ended_time or record.started_time) * 1000)
        metrics = [self._entities.Metric(name, value, when, record.number) for name, value in numbers(record)]
        # In one call with the number, so that no round is written twice.
        self._client.log_batch(run_id, metrics, tags=[self._entities.RunTag("choral.round", str(record.number))])

    def _open(self, run: RunRecord) -> tuple[str, int]:
        """Find the run, or make it, and return its identity and its last round."""
        found = self._client.get_experiment_by_name(EXPERIMENT)
        experiment = found.experiment_id if found else self._client.create_experiment(EXPERIMENT)
        runs = self._client.search_runs([experiment], f"tags.`choral.run_id` = '{run.run_id}'")
        if not runs:
            tags = {"choral.run_id": run.run_id, "choral.round": "0"}
            runs = [self._client.create_run(experiment, int(run.submitted_time * 1000), tags, run.spec.name)]
        run_id = runs[0].info.run_id
        given = [self._entities.Param(name, value) for name, value in parameters(run).items()]
        for start in range(0, len(given), MOST_PARAMETERS):
            self._client.log_batch(run_id, params=given[start : start + MOST_PARAMETERS])
        self._runs[run.run_id] = run_id, int(runs[0].data.tags["choral.round"])
        return self._runs[run.run_id]


class Tracking:
    """One tracker that may fail. It never harms a run."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._is_failing = False
        self._ended: set[str] = set()

    def write(self, run: RunRecord, rounds: Sequence[RoundRecord], model: Path | None) -> bool:
        """Write, and tell whether that went well; if not, everything of the run is to be given again. It never raises."""
        if run.run_id in self._ended:
            return True
        try:
            self._tracker.write(run, rounds, model)
        except Exception as error:  # noqa: BLE001 - whatever a library and its server come up with
            if not self._is_failing:
                log.warning(
                    "%s cannot be written, trying again with each round: %s", self._tracker.name, _one_line(error)
                )
            self._is_failing = True
            return False
        self._is_failing = False
        if run.state.is_final:
            self._ended.add(run.run_id)
        return True


def numbers(record: RoundRecord) -> Iterator[tuple[str, float]]:
    """Yield what trackers show of a round, finite numbers by name."""
    yield "round/seconds", (record.ended_time or record.started_time) - record.started_time
    yield "round/contributions", float(len(record.contributions))
    yield "round/examples", float(record.example_count)
    for name, value in record.metrics.items():
        if math.isfinite(value):
            yield name, value


def parameters(run: RunRecord) -> dict[str, str]:
    """Return the spec's fields by their path, such as "learner.name"."""
    return dict(_flat(run.spec.model_dump(mode="json", exclude_none=True)))


def _flat(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in document.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


def _check_tracking_uri(uri: str) -> None:
    """Raise `ConfigurationError` for an address that MLflow would refuse with each round, or would take for the name of a file.

    Source: MLflow documentation, `mlflow.set_tracking_uri`, and "MLflow Plugins".
    https://mlflow.org/docs/latest/api_reference/python_api/mlflow.html#mlflow.set_tracking_uri
    """
    from mlflow.store.db.db_types import DATABASE_ENGINES

    plugins = {found.name for found in entry_points(group="mlflow.tracking_store")}
    databases = DATABASE_ENGINES if find_spec("sqlalchemy") else []
    schemes = sorted({"databricks", "file", "http", "https", *databases, *plugins})
    try:
        parts = urlsplit(uri)
    except ValueError:
        parts = urlsplit("")
    is_known = parts.scheme.partition("+")[0] in schemes or uri == "databricks"
    if not is_known or (parts.scheme in ("http", "https") and not parts.hostname):
        raise ConfigurationError(
            f"MLflow: tracking URI must have one of the schemes {', '.join(schemes)}, got {_without_user(uri)!r}. "
            "Give a server as http://HOST:5000."
        )


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {_without_user(' '.join(str(error).split()))[:300]}"


def _without_user(text: str) -> str:
    """Return a text without the users and passwords of its addresses."""
    return re.sub(r"[^/\s]*@", "****@", text)
